"""What a model server is told, in a JSON file of the worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_BODY_BYTES = 16 << 20
MAX_QUEUE = 64
TIMEOUT_SECONDS = 60.0
READ_SECONDS = 30.0
MOST_GOLDEN = 64
DRAIN_SECONDS = 30.0
KEPT = "kept.jsonl"
"""Where predictions are kept, in the directory that a server may write to."""
MOST_BODY = 200 << 10
"""Bytes of input and prediction together that are captured."""


class BadConfig(ValueError):
    """A setting that cannot be used; the message names it, its value and what would do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts: `max_queue` requests at a time, each for `timeout_seconds`.

    They are worked on by `concurrency` threads. A request has `read_seconds` to come, and one more
    for each MiB of it.
    """

    max_body_bytes: int = MAX_BODY_BYTES
    max_queue: int = MAX_QUEUE
    timeout_seconds: float = TIMEOUT_SECONDS
    concurrency: int = 1
    read_seconds: float = READ_SECONDS


@dataclass(frozen=True, slots=True)
class Batching:
    """Up to `max_batch` inputs are answered at once; the first waits at most `batch_wait_ms`."""

    max_batch: int = 1
    batch_wait_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Example:
    """Where the model's example lies, and what it is."""

    path: Path
    media_type: str


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS alone: the file with key and certificate, whom to believe, and who may ask.

    A client has to show a certificate of that authority with a URI that begins with one of `peers`.
    """

    certificate: Path
    authority: Path
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Where predictions are kept, and the share of requests that are captured. `revision` is what
    they are said to be of.
    """

    path: Path
    rate: float
    revision: int


@dataclass(frozen=True, slots=True)
class Config:
    """One server. Without a `ready_file` nobody is told where it listens. `golden` is how many
    golden cases lie beside the model.
    """

    model_dir: Path
    code_dir: Path
    handler: str
    name: str = ""
    deployment: str = ""
    model_version: str = ""
    example: Example | None = None
    golden: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    ready_file: Path | None = None
    limits: Limits = field(default_factory=Limits)
    batching: Batching = field(default_factory=Batching)
    drain_seconds: float = DRAIN_SECONDS
    tls: Tls | None = None
    keep: Keep | None = None

    @property
    def model(self) -> str:
        """`digits:7` for `projects/P/models/digits/versions/7`; whatever else as it is."""
        parts = self.model_version.split("/")
        if len(parts) == 6 and parts[2] == "models" and parts[4] == "versions":
            return f"{parts[3]}:{parts[5]}"
        return self.model_version


def load(path: Path) -> Config:
    """Read a file; raises BadConfig. A number that is 0 or absent means its default."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadConfig(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadConfig(f"{path} holds no JSON object")
    return _config(body)


def _config(body: Mapping[str, Any]) -> Config:
    limits, batching = _part(body, "limits"), _part(body, "batching")
    ready = _text(body, "ready_file")
    return Config(
        model_dir=Path(_text(body, "model_dir", needed=True)),
        code_dir=Path(_text(body, "code_dir", needed=True)),
        handler=_text(body, "handler", needed=True),
        name=_text(body, "name"),
        deployment=_text(body, "deployment"),
        model_version=_text(body, "model_version"),
        example=_example(body.get("example")),
        golden=int(_number(body, "golden", 0, most=MOST_GOLDEN)),
        host=_text(body, "host") or "127.0.0.1",
        port=int(_number(body, "port", 0, most=65535)),
        ready_file=Path(ready) if ready else None,
        limits=Limits(
            max_body_bytes=int(_number(limits, "max_body_bytes", MAX_BODY_BYTES, most=1 << 30)),
            max_queue=int(_number(limits, "max_queue", MAX_QUEUE, most=100_000)),
            timeout_seconds=_number(limits, "timeout_seconds", TIMEOUT_SECONDS, most=86_400),
            concurrency=int(_number(limits, "concurrency", 1, most=256)),
            read_seconds=_number(limits, "read_seconds", READ_SECONDS, most=86_400),
        ),
        batching=Batching(
            max_batch=int(_number(batching, "max_batch", 1, most=4096)),
            batch_wait_ms=_number(batching, "batch_wait_ms", 0.0, most=10_000),
        ),
        drain_seconds=_number(body, "drain_seconds", DRAIN_SECONDS, most=86_400),
        tls=_tls(_part(body, "tls")),
        keep=_keep(_part(body, "keep")),
    )


def _keep(found: Mapping[str, Any]) -> Keep | None:
    if not found:
        return None
    path = Path(_text(found, "path", needed=True))
    revision = int(_number(found, "revision", 0, most=1 << 31))
    return Keep(path, _number(found, "rate", 0.0, most=1.0), revision)


def _tls(found: Mapping[str, Any]) -> Tls | None:
    if not found:
        return None
    peers = found.get("peers")
    if not isinstance(peers, list) or not peers or not all(isinstance(one, str) for one in peers):
        raise BadConfig(f"tls.peers is {peers!r}: a list of URIs is needed")
    certificate, authority = (
        _text(found, name, needed=True) for name in ("certificate", "authority")
    )
    return Tls(Path(certificate), Path(authority), tuple(peers))


def _part(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = body.get(key) or {}
    if not isinstance(found, dict):
        raise BadConfig(f"{key} is {found!r}: an object is needed")
    return found


def _text(body: Mapping[str, Any], key: str, *, needed: bool = False) -> str:
    found = body.get(key) or ""
    if not isinstance(found, str):
        raise BadConfig(f"{key} is {found!r}: text is needed")
    if needed and not found:
        raise BadConfig(f"{key} is missing")
    return found


def _number(body: Mapping[str, Any], key: str, default: float, *, most: float) -> float:
    found = body.get(key) or default
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= most:
        raise BadConfig(f"{key} is {found!r}: a number from 0 to {most:g} is needed")
    return found


def _example(found: object) -> Example | None:
    if not found:
        return None
    if not isinstance(found, dict):
        raise BadConfig(f"example is {found!r}: an object with path and media_type is needed")
    return Example(Path(_text(found, "path", needed=True)), _text(found, "media_type", needed=True))
