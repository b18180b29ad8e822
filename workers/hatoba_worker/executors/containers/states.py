"""What an engine says of containers and images, in our words. Pure.

Reasons first, exit codes last: a container may end with 0 although the kernel killed part of it for
its memory, and 137 may be anybody's kill.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from hatoba.v1 import runner_pb2
from hatoba_worker.executors.containers.manifest import ATTEMPT
from hatoba_worker.executors.containers.spec import PORT
from hatoba_worker.failures import AttemptFailed
from hatoba_worker.keeper.messages import (
    AttemptStatus,
    Exit,
    FailureKind,
    LimitBy,
    Reason,
    Sample,
    SpawnFailed,
    Usage,
)

Json = Mapping[str, Any]
_NEVER = "0001-01-01T00:00:00Z"
_OVER = frozenset({"exited", "dead", "removing"})
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
IMAGE = "hatoba.dev/image"
"""Label: the image by digest."""
_FORMAT = re.compile(r"^(standard_init_linux\.go:\d+: |exec )\S.*exec format error$")
_FATAL = re.compile(r"\[FATAL tini \(\d+\)\] exec (.*) failed: (.*)")


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of an end beside the container itself.

    `asked`: we asked it to end. `killed`: somebody else had the engine end it, an operator or the
    engine's own shutdown. `away`: the engine was not there when it ended, and writes down 255 for
    what it did not see. `lines` are the last it
    wrote to stderr.
    """

    asked: bool = False
    killed: bool = False
    away: bool = False
    lines: tuple[str, ...] = ()


def seconds(text: str) -> float:
    """Unix seconds of a time in the engine's words; 0 for its never."""
    found = _TIME.fullmatch(text)
    if found is None or text.startswith(_NEVER[:19]):
        return 0.0
    zone = "+00:00" if found[3] == "Z" else found[3]
    whole = datetime.fromisoformat(found[1] + zone).astimezone(UTC).timestamp()
    return whole + float(f"0.{found[2] or 0}")


def is_over(seen: Json) -> bool:
    """It ran and does not run any more."""
    state = seen["State"]
    if state.get("Running") or state.get("Paused") or state.get("Restarting"):
        return False
    return state["Status"] in _OVER and seconds(state.get("StartedAt", _NEVER)) > 0


def never_ran(seen: Json) -> bool:
    """It was created, and the engine knows of no start."""
    return not is_over(seen) and seconds(seen["State"].get("StartedAt", _NEVER)) == 0


def status_of(name: str, seen: Json, told: Told) -> AttemptStatus:
    """A container that was started, as an executor tells of it."""
    over = is_over(seen)
    end = exit_of(seen, told) if over else None
    return AttemptStatus(
        attempt=name,
        pid=int(seen["State"].get("Pid") or 0),
        start_ticks=0,
        started_at=seconds(seen["State"]["StartedAt"]),
        limit_by=limit_by(seen),
        ending="stop" if told.asked else None,
        exit=end,
        failed=None,
        gone=over,
        lost=over and end is None,
        image=seen["Config"]["Labels"].get(IMAGE, ""),
    )


def limit_by(seen: Json) -> LimitBy:
    """What holds its memory."""
    return "cgroup" if seen["HostConfig"].get("Memory") else "none"


def lost(name: str, now: float) -> AttemptStatus:
    """A container that perhaps ran, and of which nothing is left."""
    return AttemptStatus(
        attempt=name,
        pid=0,
        start_ticks=0,
        started_at=now,
        limit_by="none",
        ending=None,
        exit=None,
        failed=None,
        gone=True,
        lost=True,
    )


def exit_of(seen: Json, told: Told) -> Exit | None:
    """How a container that is over ended; None: it is gone, and its own end was not seen."""
    state = seen["State"]
    code = int(state.get("ExitCode") or 0)
    oom = bool(state.get("OOMKilled"))
    if not told.asked and not oom and _not_its_own(code, told):
        return None
    signal = code - 128 if 128 < code <= 128 + 64 else None
    return Exit(
        exit_code=None if signal else code & 0xFF,
        signal=signal,
        oom=oom,
        reason=_reason(asked=told.asked, oom=oom),
        ended_at=seconds(state.get("FinishedAt", _NEVER)),
        usage=Usage(0.0, 0.0, _limit(seen) if oom else 0),
        failed=None if oom else not_begun(seen, told.lines),
    )


def _not_its_own(code: int, told: Told) -> bool:
    """The engine ended it, or did not see its end."""
    return (told.killed and code != 0) or (told.away and code > 128)


def _reason(*, asked: bool, oom: bool) -> Reason:
    if asked:
        return "stop"
    return "oom" if oom else "exited"


def _limit(seen: Json) -> int:
    return int(seen["HostConfig"].get("Memory") or 0)


def sample_of(name: str, told: Json) -> Sample:
    """What the engine measured of a container, by either kind of control groups."""
    memory = told.get("memory_stats", {})
    parts = memory.get("stats", {})
    resident = parts.get("total_rss", parts.get("anon", memory.get("usage", 0)))
    spent = told.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0)
    return Sample(name, cpu_seconds=spent / 1e9, rss_bytes=int(resident), pids=())


def moment(event: Json) -> str:
    """When an event was, as the engine is asked for events since then."""
    whole, rest = divmod(int(event["timeNano"]), 1_000_000_000)
    return f"{whole}.{rest:09d}"


def published(seen: Json) -> str:
    """`HOST:PORT` at which its PORT is reached; empty: it is not."""
    ports = seen.get("NetworkSettings", {}).get("Ports") or {}
    for one in ports.get(f"{PORT}/tcp") or ():
        host = one["HostIp"]
        return f"[{host}]:{one['HostPort']}" if ":" in host else f"{host}:{one['HostPort']}"
    return ""


def own_address(seen: Json) -> str:
    """Where the host itself reaches a running container."""
    networks = seen.get("NetworkSettings", {}).get("Networks") or {}
    addresses = (one.get("IPAddress") or one.get("GlobalIPv6Address") for one in networks.values())
    return next(filter(None, addresses), "127.0.0.1")


# -- what could not be started --------------------------------------------------------------------

_STARTS: tuple[tuple[re.Pattern[str], FailureKind], ...] = (
    (re.compile(r"exec format error", re.I), "wrong_arch"),
    (re.compile(r"executable file not found|no such file or directory", re.I), "not_found"),
    (re.compile(r"permission denied|is a directory", re.I), "not_executable"),
)
_PROGRAM = re.compile(r'exec: "[^"]*": (.*)')


def of_start(message: str) -> FailureKind:
    """Why the engine could not start a container (what `docker run` ends with 125 to 127 for)."""
    program = _PROGRAM.search(message)
    return of_exec(program[1]) if program else "other"


def of_exec(words: str) -> FailureKind:
    """Why a program could not be executed, in the words of whoever tried."""
    return next((kind for pattern, kind in _STARTS if pattern.search(words)), "other")


def not_begun(seen: Json, lines: tuple[str, ...]) -> SpawnFailed | None:
    """A container that is over although its command never began: why, if so."""
    state = seen["State"]
    last = lines[-1] if lines else ""
    name = seen["Config"]["Labels"].get(ATTEMPT, "")
    if not int(state.get("ExitCode") or 0):
        return None
    if found := _FATAL.search(last):
        return SpawnFailed(name, 0, of_exec(found[2]), f"{found[1]}: {found[2]}")
    if _FORMAT.search(last):
        return SpawnFailed(name, 0, "wrong_arch", last)
    error = str(state.get("Error") or "")
    return SpawnFailed(name, 0, of_start(error), error) if error else None


# -- images ---------------------------------------------------------------------------------------

Fault = Literal["missing", "denied", "wrong_arch", "invalid", "transient"]
_PULLS: tuple[tuple[re.Pattern[str], Fault], ...] = (
    (re.compile(r"toomanyrequests|rate limit|too many requests", re.I), "transient"),
    (re.compile(r"no matching manifest|does not match the specified platform", re.I), "wrong_arch"),
    (re.compile(r"no basic auth credentials|unauthorized|authentication required", re.I), "denied"),
    (re.compile(r"manifest unknown|manifest for .* not found|name unknown", re.I), "missing"),
    (re.compile(r"repository .* not found|No such image", re.I), "missing"),
    (re.compile(r"pull access denied|denied|forbidden", re.I), "denied"),
    (re.compile(r"invalid reference format|invalid tag|must be lowercase", re.I), "invalid"),
    (re.compile(r"not found", re.I), "missing"),
)
_SAID: Mapping[Fault, str] = {
    "missing": "the image {image} does not exist in its registry, nor on this host",
    "denied": (
        "the registry refuses {image}: it does not exist, or the credentials of this host do not"
        " open it (`hatoba worker start --registry HOST=SECRET`)"
    ),
    "wrong_arch": "the image {image} has nothing for {arch}, which this host is",
    "invalid": "{image!r} is no reference of an image",
    "transient": "the image {image} could not be pulled",
}
_KINDS: Mapping[Fault, runner_pb2.ExitKind.ValueType] = {
    "missing": runner_pb2.EXIT_KIND_IMAGE_MISSING,
    "denied": runner_pb2.EXIT_KIND_IMAGE_DENIED,
    "wrong_arch": runner_pb2.EXIT_KIND_IMAGE_ARCHITECTURE,
    "invalid": runner_pb2.EXIT_KIND_IMAGE_MISSING,
    "transient": runner_pb2.EXIT_KIND_IMAGE_UNREACHABLE,
}


def fault_of(status: int, message: str) -> Fault:
    """Why an image could not be had; what is not known may pass."""
    known = next((fault for words, fault in _PULLS if words.search(message)), None)
    return known or ("missing" if status == 404 else "transient")


def image_failed(fault: Fault, image: str, arch: str, detail: str = "") -> AttemptFailed:
    """The failure of an attempt whose image cannot be had."""
    text = _SAID[fault].format(image=image, arch=arch)
    return AttemptFailed(_KINDS[fault], f"{text}: {detail}" if detail else text)
