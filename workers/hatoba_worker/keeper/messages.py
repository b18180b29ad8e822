"""What a client says to the keeper and hears from it. Times are Unix seconds, sizes bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hatoba_worker.keeper.frames import Json

LimitBy = Literal["cgroup", "rlimit", "none"]
FailureKind = Literal[
    "not_found", "not_executable", "cwd_missing", "tombstone", "wrong_arch", "lost", "other"
]
Reason = Literal["exited", "stop", "killed_by_us", "oom"]
Ending = Literal["tombstone", "stopping", "ended"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may use; None leaves what the keeper itself has.

    `memory_bytes` is for all processes of the attempt together, `nofile` and `core` (bytes) for
    each of them.
    """

    memory_bytes: int | None = None
    nofile: int | None = None
    core: int | None = None


@dataclass(frozen=True, slots=True)
class Spawn:
    """A process to start: `env` is complete, `stdout` and `stderr` are paths to append to.

    What the main process leaves behind gets SIGTERM, and SIGKILL `linger_grace` seconds later.
    """

    attempt: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    stdout: str
    stderr: str
    limits: Limits = field(default_factory=Limits)
    linger_grace: float = 5.0

    def command(self) -> Json:
        """Return it as the keeper reads it."""
        return {
            "op": "spawn",
            "attempt": self.attempt,
            "argv": list(self.argv),
            "env": dict(self.env),
            "cwd": self.cwd,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "limits": {
                "memory_bytes": self.limits.memory_bytes,
                "nofile": self.limits.nofile,
                "core": self.limits.core,
            },
            "linger_grace": self.linger_grace,
        }


@dataclass(frozen=True, slots=True)
class KeeperInfo:
    """Who the keeper is: `incarnation` differs at every start."""

    pid: int
    started: float
    boot_id: str
    incarnation: str
    version: str
    protocol: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What the main process and the children it waited for used: seconds of cpu, peak bytes."""

    utime: float
    stime: float
    maxrss: int


@dataclass(frozen=True, slots=True)
class Exit:
    """How the main process ended: one of `exit_code` and `signal` is set.

    `oom` tells that the kernel or the memory watch killed a process of the attempt; `failed`, that
    what ended is a container whose command could not be started.
    """

    exit_code: int | None
    signal: int | None
    oom: bool
    reason: Reason
    ended_at: float
    usage: Usage
    failed: SpawnFailed | None = None


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """Nothing was started."""

    attempt: str
    errno: int
    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class AttemptStatus:
    """What the keeper knows of an attempt.

    `exit` is None while it runs, and for ever when it is `lost`: its keeper died. `gone` tells
    that no process of it is left.
    """

    attempt: str
    pid: int
    start_ticks: int
    started_at: float
    limit_by: LimitBy
    ending: str | None
    exit: Exit | None
    failed: SpawnFailed | None
    gone: bool
    lost: bool
    image: str = ""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process runs, or ran: `status` is given when an earlier request had started it.

    `image` is what a container was made from, by digest.
    """

    attempt: str
    pid: int
    start_ticks: int
    started_at: float
    limit_by: LimitBy
    status: AttemptStatus | None = None
    image: str = ""


@dataclass(frozen=True, slots=True)
class SupervisedStatus:
    """A supervised process; `pid` is None between two lives."""

    name: str
    pid: int | None
    started_at: float
    restarts: int
    last_end: str | None


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that the keeper has, until it is told to forget."""

    attempts: tuple[AttemptStatus, ...]
    supervised: tuple[SupervisedStatus, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """What all processes of an attempt use now; `cpu_seconds` since its start."""

    attempt: str
    cpu_seconds: float
    rss_bytes: int
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exited:
    """Event: the main process ended; unless `gone`, a Gone follows."""

    attempt: str
    pid: int
    started_at: float
    limit_by: LimitBy
    gone: bool
    exit: Exit


@dataclass(frozen=True, slots=True)
class Gone:
    """Event: no process of the attempt is left."""

    attempt: str


@dataclass(frozen=True, slots=True)
class Stray:
    """Event: an orphan that belongs to no known attempt was killed."""

    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class JoinedEnded:
    """Event: a process that joined an attempt ended; `signal` is 0 when it exited."""

    join: str
    exit_code: int
    signal: int


@dataclass(frozen=True, slots=True)
class Join:
    """A process to start beside a running attempt's: `name` tells its end apart from others'.

    `directory` holds the socket that gives it its handles, see `joined`. `env` is added to what the
    attempt's main process was started with.
    """

    attempt: str
    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    directory: str
    cwd: str

    def command(self) -> Json:
        """Return it as the keeper reads it."""
        return {
            "op": "join",
            "attempt": self.attempt,
            "join": self.name,
            "argv": list(self.argv),
            "env": dict(self.env),
            "directory": self.directory,
            "cwd": self.cwd,
        }


@dataclass(frozen=True, slots=True)
class Joined:
    """It was started."""

    pid: int
    start_ticks: int


Event = Exited | Gone | Stray | JoinedEnded


def info_of(body: Json) -> KeeperInfo:
    """Read the reply to `hello`."""
    return KeeperInfo(
        pid=body["pid"],
        started=body["started"],
        boot_id=body["boot_id"],
        incarnation=body["incarnation"],
        version=body["version"],
        protocol=body["protocol"],
    )


def spawned_of(body: Json) -> Spawned | SpawnFailed:
    """Read the reply to `spawn`."""
    if body.get("failed"):
        return _failed_of(body)
    status = body.get("status")
    return Spawned(
        attempt=body["attempt"],
        pid=body["pid"],
        start_ticks=body["start_ticks"],
        started_at=body["started_at"],
        limit_by=body["limit_by"],
        status=status_of(status) if status else None,
    )


def status_of(body: Json) -> AttemptStatus:
    """Read one entry of the reply to `list`."""
    return AttemptStatus(
        attempt=body["attempt"],
        pid=body["pid"],
        start_ticks=body["start_ticks"],
        started_at=body["started_at"],
        limit_by=body["limit_by"],
        ending=body["ending"],
        exit=_exit_of(body["exit"]) if body["exit"] else None,
        failed=_failed_of(body["failed"]) if body["failed"] else None,
        gone=body["gone"],
        lost=body["lost"],
    )


def supervised_of(body: Json) -> SupervisedStatus:
    """Read one supervised process of the reply to `list`."""
    return SupervisedStatus(
        name=body["name"],
        pid=body["pid"],
        started_at=body["started_at"],
        restarts=body["restarts"],
        last_end=body["last_end"],
    )


def sample_of(body: Json) -> Sample:
    """Read one entry of the reply to `sample`."""
    return Sample(
        attempt=body["attempt"],
        cpu_seconds=body["cpu_seconds"],
        rss_bytes=body["rss_bytes"],
        pids=tuple(body["pids"]),
    )


def event_of(body: Json) -> Event:
    """Read one event."""
    match body["event"]:
        case "exited":
            return Exited(
                attempt=body["attempt"],
                pid=body["pid"],
                started_at=body["started_at"],
                limit_by=body["limit_by"],
                gone=body["gone"],
                exit=_exit_of(body),
            )
        case "gone":
            return Gone(body["attempt"])
        case "joined_ended":
            return JoinedEnded(body["join"], body["exit_code"], body["signal"])
        case _:
            return Stray(pid=body["pid"], command=body["command"])


def _exit_of(body: Json) -> Exit:
    usage = body["rusage"]
    return Exit(
        exit_code=body["exit_code"],
        signal=body["signal"],
        oom=body["oom"],
        reason=body["reason"],
        ended_at=body["ended_at"],
        usage=Usage(usage["utime"], usage["stime"], usage["maxrss"]),
    )


def _failed_of(body: Json) -> SpawnFailed:
    return SpawnFailed(
        attempt=body["attempt"],
        errno=body["errno"],
        kind=body["kind"],
        message=body["message"],
    )
