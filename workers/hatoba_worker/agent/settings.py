"""What an agent was told when its machine became a device, kept in `agent.json`. Calls block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from hatoba_worker.agent import disk

FILE = "agent.json"


class BadSettings(ValueError):
    """`agent.json` cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class RegistryAccess:
    """How a registry of images is reached: at another `HOST:PORT` (a mirror), believed by this
    authority (a PEM file), with `USER:PASSWORD` from a file that only its owner reads; empty: as it
    is named, by those whom the machine believes, without. `plain`: without TLS, as one is reached
    on the machine itself that has no authority.
    """

    at: str = ""
    ca_file: str = ""
    login_file: str = ""
    plain: bool = False

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> RegistryAccess:
        """Raises ValueError."""
        known = {each.name: told[each.name] for each in fields(cls) if each.name in told}
        for name, value in known.items():
            if not isinstance(value, bool if name == "plain" else str):
                raise ValueError(f"{name} of a registry is {value!r}")
        return cls(**known)


_PLACE = "s3://BUCKET/PREFIX?region=REGION&role-alias=NAME&credentials=HOST"


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """Where models are in a bucket, and who gives credentials for it: `HOST[:PORT]` of AWS IoT's
    credential provider, and the role alias. `url` is the bucket's own.
    """

    url: str
    prefix: str
    region: str
    role_alias: str
    credentials: str

    @classmethod
    def parse(cls, text: str) -> BucketPlace:
        """From `s3://BUCKET/PREFIX?region=...`; `endpoint=https://HOST` is for buckets elsewhere.
        Raises ValueError.
        """
        found = urlsplit(text)
        told = dict(parse_qsl(found.query))
        if found.scheme != "s3" or not found.netloc:
            raise ValueError(f"{text!r} is no bucket: write {_PLACE}")
        try:
            region, alias, given = told["region"], told["role-alias"], told["credentials"]
        except KeyError as error:
            raise ValueError(f"{text!r} does not say its {error}: write {_PLACE}") from None
        url = f"https://{found.netloc}.s3.{region}.amazonaws.com"
        if "endpoint" in told:
            url = f"{told['endpoint'].rstrip('/')}/{found.netloc}"
        return cls(url, found.path.strip("/"), region, alias, given)

    def key(self, name: str) -> str:
        """The key of what has this name below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name


@dataclass(frozen=True, slots=True)
class AwsIot:
    """What a device is at AWS IoT: the name of its thing, which is its client id, and the named
    shadow that tells what is wanted of it; what it says is in another one, of that name with
    `-said`. `content` is where models are, as in `BucketPlace.parse`; empty: it can have none.
    """

    thing: str
    shadow: str = "hatoba"
    content: str = ""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> AwsIot:
        """Raises ValueError, KeyError."""
        known = {each.name: told[each.name] for each in fields(cls) if each.name in told}
        for name, value in known.items():
            if not isinstance(value, str) or (not value and name != "content"):
                raise ValueError(f"{name} at AWS IoT is {value!r}")
        if known.get("content"):
            BucketPlace.parse(known["content"])
        return cls(**({"thing": told["thing"]} | known))

    @property
    def place(self) -> BucketPlace | None:
        """Where models are."""
        return BucketPlace.parse(self.content) if self.content else None

    @property
    def said(self) -> str:
        """The shadow in which the device says how it is."""
        return f"{self.shadow}-said"


@dataclass(frozen=True, slots=True)
class Settings:
    """One device's. Bytes a day that its link may carry; 0: as many as there are. `metered`: what
    may wait does, until it is not any more.

    `address` is the `HOST:PORT` that it dials, `server_name` what the server's certificate there
    says; `token` is the id of the token by which it was enrolled at the port `server`. `engine` is
    the socket of its container engine, `none` where there is to be none, empty: the standard one if
    it is there. `jobs_idle`: seconds without any job after which what runs them ends. `registries`
    are by `HOST:PORT` as images name them, `*` stands for all others. With `aws_iot` the device
    dials AWS IoT at `address`, and not the server.
    """

    device: str
    address: str
    server_name: str
    token: str = ""
    server: str = ""
    up_per_day: int = 0
    down_per_day: int = 0
    metered: bool = False
    engine: str = ""
    jobs_idle: int = 60
    registries: Mapping[str, RegistryAccess] = field(default_factory=dict)
    aws_iot: AwsIot | None = None

    @classmethod
    def load(cls, data: Path) -> Settings | None:
        """What is kept in a directory; None: nothing. Raises BadSettings."""
        path = data / FILE
        try:
            return cls(**_checked(json.loads(path.read_text(encoding="utf-8"))))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadSettings(f"{path} cannot be used: {error!r}") from error

    def save(self, data: Path) -> None:
        """Keep it, on the disk itself. Raises OSError."""
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk.replace(data / FILE, f"{json.dumps(asdict(self), indent=1)}\n".encode())

    def reaching(self, registry: str, access: RegistryAccess | None) -> Settings:
        """The same with another way to a registry; None: as it is named."""
        others = {host: one for host, one in self.registries.items() if host != registry}
        more = {registry: access} if access is not None else {}
        return replace(self, registries={**others, **more})

    @property
    def host(self) -> str:
        """Where it dials: the host alone."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Where it dials: the port."""
        return int(self.address.rpartition(":")[2])


class Followed:
    """The settings of a directory, whoever writes them."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._seen: tuple[int, int] | None = None

    def newer(self) -> Settings | None:
        """What they are, where the file is another one than at the last call; None: it is the same,
        or cannot be used.
        """
        try:
            found = (self._data / FILE).stat()
            seen = found.st_ino, found.st_mtime_ns
            if seen == self._seen:
                return None
            self._seen = seen
            return Settings.load(self._data)
        except (OSError, BadSettings):
            return None


def _type_of(name: str) -> type:
    if name == "metered":
        return bool
    return int if name.endswith(("_per_day", "_idle")) else str


def _checked(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, without what another version of the agent knows more. Raises ValueError."""
    known = {each.name: told[each.name] for each in fields(Settings) if each.name in told}
    registries, aws_iot = known.pop("registries", {}), known.pop("aws_iot", None)
    for name, value in known.items():
        if not isinstance(value, _type_of(name)):
            raise ValueError(f"{name} is {value!r}")
    int(str(known["address"]).rpartition(":")[2])
    accesses = {host: RegistryAccess.of(one) for host, one in registries.items()}
    thing = AwsIot.of(aws_iot) if aws_iot is not None else None
    return {**known, "registries": accesses, "aws_iot": thing}
