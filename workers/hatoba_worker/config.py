"""What a worker is told at its start: flags, kept in `worker.json` for the next one."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hatoba.settings import LOOPBACK, parse_address
from hatoba_worker import host, logs, trees

FILE = "worker.json"


class BadConfig(ValueError):
    """`worker.json` cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Config:
    """One worker's settings; sizes in bytes, -1: what the machine has.

    An empty `server` means the embedded one, found by `server.json` of the data directory. Replicas
    listen on `serve_address`, under which routers have to reach them; empty: the address from which
    this machine reaches the server. Members of gangs reach those here at `address`; empty: that
    address too when it joined, 127.0.0.1 when embedded, else the machine's name.

    `engine` is the socket of a container engine; empty: DOCKER_HOST or the standard one, where it
    answers; `none`: no containers. All of them see `mounts`, each `SOURCE[:TARGET][:ro]`.
    `registries` names the host's secret that opens a registry, by the registry's name.

    `device` is the device whose agent started the worker, for which `server` is then a socket
    (`unix:PATH`) whose other end proves who it is.
    """

    data: Path
    server: str = ""
    token_file: str = ""
    ca_file: str = ""
    name: str = ""
    cpus: float = -1
    memory_bytes: int = -1
    gpus: int = -1
    slots: int = -1
    labels: dict[str, str] = field(default_factory=dict)
    named: dict[str, int] = field(default_factory=dict)
    embedded: bool = False
    device: str = ""
    joined: bool = False
    """It is known by the key in `tls/`, and needs no token."""
    address: str = ""
    serve_address: str = "127.0.0.1"
    engine: str = ""
    mounts: list[str] = field(default_factory=list)
    registries: dict[str, str] = field(default_factory=dict)
    log_limit_bytes: int = logs.LIMIT
    cache_limit_bytes: int = trees.LIMIT

    @property
    def token_path(self) -> Path:
        """Where the token stands."""
        return Path(self.token_file).expanduser() if self.token_file else self.data / "worker.token"

    @property
    def reached_at(self) -> str:
        """Where other hosts reach this one."""
        if self.joined:
            return self.address or facing(self.server)
        return self.address or ("127.0.0.1" if self.embedded else socket.gethostname())

    @property
    def serves_at(self) -> str:
        """Where replicas listen."""
        return self.serve_address or facing(self.server)

    def resolved(self) -> tuple[float, int, int]:
        """Cores, bytes of memory and slots to give away."""
        cpus = host.core_count() if self.cpus < 0 else self.cpus
        memory = host.memory_bytes() if self.memory_bytes < 0 else self.memory_bytes
        slots = max(1, round(cpus * host.SLOTS_PER_CORE)) if self.slots < 0 else self.slots
        return cpus, memory, slots

    def save(self) -> None:
        """Keep it for the next start; blocks."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        body = {name: value for name, value in asdict(self).items() if name != "data"}
        fresh = self.data / f"{FILE}.new"
        fresh.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.data / FILE)


def facing(server: str) -> str:
    """The address from which this machine reaches `HOST:PORT`; 127.0.0.1 where it has no route."""
    host, _, port = parse_address(server)[0].rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: the kernel only chooses the way.
            probe.connect((host.strip("[]"), int(port)))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    return LOOPBACK.match(f"[{address}]" if ":" in address else address) is not None


def load(data: Path, **told: Any) -> Config:
    """What `worker.json` says, if there is one, overridden by what is told; raises BadConfig."""
    try:
        body = json.loads((data / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        body = {}
    except (OSError, ValueError) as error:
        raise BadConfig(f"{data / FILE} cannot be read: {error}") from error
    if not isinstance(body, dict):
        raise BadConfig(f"{data / FILE} does not hold settings by name")
    unknown = set(body) - {each.name for each in fields(Config)} | set(body) & {"data"}
    if unknown:
        raise BadConfig(f"{data / FILE}: unknown settings {', '.join(sorted(unknown))}")
    return Config(data, **{**body, **told})
