"""`hatoba.toml`: read, checked whole, and told by line what is wrong with it.

No file is needed: `Config()` is the embedded server's.
"""

from __future__ import annotations

import difflib
import enum
import ipaddress
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?")
DEVICES = "iot-edge-arm"
"""The type of the backend that has devices."""
_TOML_POSITION = re.compile(r"(.*) \(at line (\d+), column (\d+)\)")


class Problem(NamedTuple):
    """One thing wrong in a configuration: `path` is `table.key`, `line` counts from 1 (0: none)."""

    path: str
    message: str
    line: int = 0

    def text(self, source: str) -> str:
        """As one line: `hatoba.toml:12: server.listen: ...`."""
        where = f"{source}:{self.line}: " if self.line else f"{source}: "
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class ConfigError(Exception):
    """A configuration that cannot be used; `problems` names all that is wrong."""

    def __init__(self, problems: Iterable[Problem], source: str = "hatoba.toml") -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.text(source) for problem in self.problems))

    @classmethod
    def of(cls, path: str, message: str) -> ConfigError:
        """One problem of one setting, found after the file was read."""
        return cls([Problem(path, message)])


@dataclass(frozen=True, slots=True)
class Address:
    """HOST:PORT; port 0 means any free one."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether it can be reached from this machine only."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class TlsMode(enum.StrEnum):
    """`auto`: plaintext on loopback, else our own CA; `files`: yours; `off`: loopback only."""

    AUTO = "auto"
    FILES = "files"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """`[server]`. `advertise` is what workers and clients elsewhere dial, when it differs."""

    listen: Address = Address("127.0.0.1", 0)
    http_listen: Address = Address("127.0.0.1", 0)
    advertise: Address | None = None
    tls: TlsMode = TlsMode.AUTO
    tls_cert: Path | None = None
    tls_key: Path | None = None
    reflection: bool = True
    log_level: str = "info"
    trace_full_below: float = 50.0
    """New traces per second that are all kept."""
    trace_share: float = 0.1
    """Share of new traces kept above that rate, 0 to 1."""
    otlp_endpoint: str = ""
    """`http://HOST:PORT` of a collector; empty: none."""


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """`[limits]`. Sizes in bytes, times in seconds."""

    max_message_bytes: int = 4 * 1024 * 1024
    max_concurrent_calls: int = 2_000
    max_unary_seconds: float = 60.0
    kept_spans: int = 100_000
    max_streams: int = 10_000
    calls_per_principal: int = 500
    """Calls that one principal may have under way, streams not counted."""
    streams_per_principal: int = 6_000
    changes_per_second: float = 10_000.0
    """Calls that change something, by one principal."""
    jobs_per_second: float = 100_000.0
    """Jobs submitted by one principal."""
    watch_behind: int = 1_000_000
    """Events by which a watcher may be behind before it is told to read the state anew."""


@dataclass(frozen=True, slots=True)
class SchedulingConfig:
    """`[scheduling]`: what the planner goes by; times in seconds."""

    preempt_gap: int = 100
    """Steps of priority that a job must be above another to take its place."""
    ageing: float = 600.0
    """Waiting so long is worth one step of priority."""
    patience: float = 1800.0
    """A large job that has waited so long has a place drained for it."""


@dataclass(frozen=True, slots=True)
class DefaultsConfig:
    """`[defaults]`: the backends that jobs and deployments get when they name none."""

    train: str = ""
    serves: str = ""


@dataclass(frozen=True, slots=True)
class BlobsConfig:
    """`[blobs]`: where chunks are kept; without `url` in the data directory.

    Credentials of an object store are never here: they come from the server's environment.
    """

    url: str = ""
    """`s3://BUCKET/PREFIX`, or another address that obstore knows; empty: a directory."""
    endpoint: str = ""
    """`http://HOST:PORT` or `https://HOST` of a store that is not AWS's own."""
    region: str = ""
    allow_http: bool = False
    virtual_hosted_style: bool = False
    lease_seconds: float = 3600.0
    """How long what was sent is kept before anything names it."""

    def of_bucket(self, name: str) -> BlobsConfig:
        """The same endpoint and region with another bucket of S3."""
        return replace(self, url=f"s3://{name}")


@dataclass(frozen=True, slots=True)
class WebhooksConfig:
    """`[webhooks]`: hosts to which events may be posted, as patterns (`*.example.org`)."""

    allow: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True)
class DevicesConfig:
    """`[devices]`: the port of devices. `advertise` is what they dial, when it differs."""

    listen: Address | None = None
    """None: there is no such port, and nothing becomes a device."""
    advertise: Address | None = None
    alive_every: float = 30.0
    """Seconds after which a device that has nothing to say says that it lives."""
    certificate_days: int = 90
    """Life of a device's certificate; it asks for the next when two thirds are over."""


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """`[backends.NAME]`: the plug-in's type, and options that it checks itself."""

    type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cost_per_hour: float = 0.0
    """Price of one hour of a task; among backends that could take a job the cheapest gets it."""
    deadline: float = 30.0
    """Seconds after which a call to it is given up."""
    reap_after: float = 300.0
    """Seconds for which something of ours that nobody wants is left alone there."""


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration. Without backends the server opens one of type `hosts`."""

    server: ServerConfig = ServerConfig()
    limits: LimitsConfig = LimitsConfig()
    scheduling: SchedulingConfig = SchedulingConfig()
    defaults: DefaultsConfig = DefaultsConfig()
    blobs: BlobsConfig = BlobsConfig()
    webhooks: WebhooksConfig = WebhooksConfig()
    devices: DevicesConfig = DevicesConfig()
    backends: Mapping[str, BackendConfig] = field(default_factory=dict)


def load_config(path: Path) -> Config:
    """Read a file; ConfigError names every problem in it, FileNotFoundError a missing file."""
    return parse_config(path.read_bytes(), str(path))


def parse_config(raw: bytes, source: str = "hatoba.toml") -> Config:
    """A configuration from TOML; ConfigError names every problem with its line."""
    try:
        text = raw.decode()
        tables = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("", f"not UTF-8: {error}")], source) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax(error)], source) from error
    reader = _Reader(_lines(text))
    config = reader.config(tables)
    if reader.problems:
        raise ConfigError(sorted(reader.problems, key=lambda found: found.line), source)
    return config


def parse_address(text: str) -> Address:
    """HOST:PORT, an IPv6 host in brackets; ValueError says what is wrong."""
    host, separator, port = text.rpartition(":")
    if not separator:
        raise ValueError(f"{text!r} has no port; write HOST:PORT, for example 127.0.0.1:7420")
    if not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{port!r} is no port; use 0 to 65535 (0: any free one)")
    if host.startswith("[") and host.endswith("]"):
        return Address(str(_ipv6(host[1:-1])), int(port))
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is no host name or address; write for example 127.0.0.1:{port}")
    return Address(host, int(port))


def _ipv6(text: str) -> ipaddress.IPv6Address:
    try:
        return ipaddress.IPv6Address(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no IPv6 address") from error


class _Reader:
    """Turns tables into dataclasses, collecting problems as it goes."""

    def __init__(self, lines: Mapping[tuple[str, ...], int]) -> None:
        self.problems: list[Problem] = []
        self._lines = lines

    def config(self, tables: Mapping[str, Any]) -> Config:
        self._known((), tables, [part.name for part in fields(Config)])
        config = Config(
            server=ServerConfig(**self._settings("server", tables, _SERVER)),
            limits=LimitsConfig(**self._settings("limits", tables, _LIMITS)),
            scheduling=SchedulingConfig(**self._settings("scheduling", tables, _SCHEDULING)),
            defaults=DefaultsConfig(**self._settings("defaults", tables, _DEFAULTS)),
            blobs=BlobsConfig(**self._settings("blobs", tables, _BLOBS)),
            webhooks=WebhooksConfig(**self._settings("webhooks", tables, _WEBHOOKS)),
            devices=DevicesConfig(**self._settings("devices", tables, _DEVICES)),
            backends=self._backends(tables.get("backends", {})),
        )
        self._default_exists(config)
        self._bucket_fits(config.blobs)
        self._port_is_there(config.devices)
        self._devices_are_of_one(config.backends)
        return config

    def _settings(
        self, table: str, tables: Mapping[str, Any], readers: Mapping[str, Callable[[Any], Any]]
    ) -> dict[str, Any]:
        given = tables.get(table, {})
        if not isinstance(given, dict):
            self._problem((table,), f"must be a table, written [{table}]")
            return {}
        self._known((table,), given, readers)
        return self._read((table,), given, readers)

    def _read(
        self,
        path: tuple[str, ...],
        given: Mapping[str, Any],
        readers: Mapping[str, Callable[[Any], Any]],
    ) -> dict[str, Any]:
        values = {}
        for key, value in given.items():
            if key in readers:
                try:
                    values[key] = readers[key](value)
                except ValueError as error:
                    self._problem((*path, key), str(error))
        return values

    def _backends(self, given: Any) -> dict[str, BackendConfig]:
        if not isinstance(given, dict):
            self._problem(("backends",), "must be tables, written [backends.NAME]")
            return {}
        read = {name: self._backend(name, table) for name, table in given.items()}
        return {name: backend for name, backend in read.items() if backend is not None}

    def _backend(self, name: str, table: Any) -> BackendConfig | None:
        path = ("backends", name)
        if not _NAME.fullmatch(name):
            self._problem(
                path, "a backend's name has 1 to 48 lower-case letters, digits and dashes"
            )
        if not isinstance(table, dict):
            self._problem(path, f"must be a table, written [backends.{name}]")
            return None
        self._known(path, table, ("type", "options", *_BACKEND))
        kind, options = table.get("type"), table.get("options", {})
        if not isinstance(kind, str) or not kind:
            self._problem((*path, "type"), 'is needed: the plug-in\'s type, such as "hosts"')
            return None
        if not isinstance(options, dict):
            self._problem((*path, "options"), f"must be a table, [backends.{name}.options]")
            return None
        return BackendConfig(kind, options, **self._read(path, table, _BACKEND))

    def _default_exists(self, config: Config) -> None:
        for key in ("train", "serves"):
            name = getattr(config.defaults, key)
            if name and config.backends and name not in config.backends:
                self._problem(("defaults", key), _unknown("backend", name, config.backends))

    def _bucket_fits(self, blobs: BlobsConfig) -> None:
        if blobs.endpoint.startswith("http://") and not blobs.allow_http:
            self._problem(
                ("blobs", "endpoint"), "is not encrypted; set `allow_http = true` as well"
            )

    def _port_is_there(self, devices: DevicesConfig) -> None:
        if devices.advertise is not None and devices.listen is None:
            self._problem(("devices", "advertise"), "needs `listen`, which opens the port")

    def _devices_are_of_one(self, backends: Mapping[str, BackendConfig]) -> None:
        names = [name for name, one in backends.items() if one.type == DEVICES]
        if len(names) > 1:
            told = ", ".join(map(repr, names))
            self._problem(
                ("backends", names[1], "type"),
                f"{DEVICES!r} is the type of {told}, and all devices are of one backend: keep one, "
                'with `transport = "both"` where some dial this server and some AWS IoT',
            )

    def _known(self, path: tuple[str, ...], given: Iterable[str], known: Iterable[str]) -> None:
        names = list(known)
        what = "setting" if path else "table"
        for key in given:
            if key not in names:
                self._problem((*path, key), _unknown(what, key, names))

    def _problem(self, path: tuple[str, ...], message: str) -> None:
        line = self._lines.get(path) or self._lines.get(path[:-1], 0)
        self.problems.append(Problem(".".join(path), message, line))


def _unknown(what: str, key: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(sorted(names))}"
    return f"unknown {what}; {hint}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text in quotes, got {_kind(value)}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, got {_kind(value)}")
    return value


def _number(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number, got {_kind(value)}")
        if not low <= value <= high:
            raise ValueError(f"must be {low:g} to {high:g}, got {value:g}")
        return float(value)

    return read


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, got {_kind(value)}")
        if not low <= value <= high:
            raise ValueError(f"must be {low:,} to {high:,}, got {value:,}")
        return value

    return read


def _one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if _text(value) not in words:
            raise ValueError(f"must be one of {', '.join(words)}, got {value!r}")
        return str(value)

    return read


def _address(value: Any) -> Address:
    return parse_address(_text(value))


def _opened(value: Any) -> Address | None:
    return _address(value) if _text(value) else None


def _advertised(value: Any) -> Address | None:
    return _dialled(_address(value)) if _text(value) else None


def _dialled(address: Address) -> Address:
    if address.host in {"0.0.0.0", "::"}:
        raise ValueError(f"nobody can dial {address.host}; name the host that others reach")
    return address


def _mode(value: Any) -> TlsMode:
    return TlsMode(_one_of(*TlsMode)(value))


def _path(value: Any) -> Path | None:
    return Path(value).expanduser() if _text(value) else None


def _endpoint(value: Any) -> str:
    if _text(value) and not re.fullmatch(r"https?://[^/\s]+/?", value):
        raise ValueError(f"must be http://HOST:PORT or https://HOST:PORT, got {value!r}")
    return str(value)


def _bucket(value: Any) -> str:
    if _text(value) and not re.fullmatch(r"[a-z][a-z0-9]*://[^/\s]+(/\S*)?", value):
        raise ValueError(f"must be s3://BUCKET or s3://BUCKET/PREFIX, got {value!r}")
    return str(value)


def _patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"must be a list of texts, got {_kind(value)}")
    return tuple(_text(one).lower() for one in value)


def _kind(value: Any) -> str:
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    names |= {list: "a list", dict: "a table"}
    return names.get(type(value), type(value).__name__)


_SERVER: dict[str, Callable[[Any], Any]] = {
    "listen": _address,
    "http_listen": _address,
    "advertise": _advertised,
    "tls": _mode,
    "tls_cert": _path,
    "tls_key": _path,
    "reflection": _flag,
    "log_level": _one_of("debug", "info", "warning"),
    "trace_full_below": _number(0, 1e6),
    "trace_share": _number(0, 1),
    "otlp_endpoint": _endpoint,
}
_LIMITS: dict[str, Callable[[Any], Any]] = {
    "max_message_bytes": _whole(65_536, 64 * 1024 * 1024),
    "max_concurrent_calls": _whole(1, 1_000_000),
    "max_unary_seconds": _number(1, 3_600),
    "kept_spans": _whole(0, 100_000_000),
    "max_streams": _whole(1, 1_000_000),
    "calls_per_principal": _whole(1, 1_000_000),
    "streams_per_principal": _whole(1, 1_000_000),
    "changes_per_second": _number(1, 1e9),
    "jobs_per_second": _number(1, 1e9),
    "watch_behind": _whole(100, 1_000_000_000),
}
_SCHEDULING: dict[str, Callable[[Any], Any]] = {
    "preempt_gap": _whole(1, 10_000),
    "ageing": _number(1, 1e9),
    "patience": _number(1, 1e9),
}
_BLOBS: dict[str, Callable[[Any], Any]] = {
    "url": _bucket,
    "endpoint": _endpoint,
    "region": _text,
    "allow_http": _flag,
    "virtual_hosted_style": _flag,
    "lease_seconds": _number(1, 7 * 24 * 3600),
}
_BACKEND: dict[str, Callable[[Any], Any]] = {
    "cost_per_hour": _number(0, 1e6),
    "deadline": _number(0.1, 600),
    "reap_after": _number(1, 7 * 24 * 3600),
}
_WEBHOOKS: dict[str, Callable[[Any], Any]] = {"allow": _patterns}
_DEVICES: dict[str, Callable[[Any], Any]] = {
    "listen": _opened,
    "advertise": _advertised,
    "alive_every": _number(1, 3_600),
    "certificate_days": _whole(1, 3_650),
}
_DEFAULTS: dict[str, Callable[[Any], Any]] = {"train": _text, "serves": _text}


def _syntax(error: tomllib.TOMLDecodeError) -> Problem:
    position = _TOML_POSITION.fullmatch(str(error))
    if position is None:
        return Problem("", str(error))
    return Problem("", f"{position[1]} (column {position[3]})", int(position[2]))


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Where tables and keys stand. tomllib does not tell, so headers and `key =` are looked for."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.fullmatch(line)
        if header:
            table = _parts(header[1])
            for depth in range(1, len(table) + 1):
                lines.setdefault(table[:depth], number)
        elif "=" in line:
            lines.setdefault((*table, *_parts(line.partition("=")[0])), number)
    return lines


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
