"""The attempts this worker has, and the journal that brings them back after its death."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hatoba.v1 import job_pb2, runner_pb2, worker_pb2
from hatoba_worker.keeper.journal import Journal
from hatoba_worker.keeper.messages import AttemptStatus, Exit, LimitBy
from hatoba_worker.tombstones import Tombstones

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
Why = Literal["stop", "timeout", "away", "platform"]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Start:
    """The user's code began: `at` Unix seconds, `ticks` clock ticks since boot (0: unknown); in
    `image`, by digest, if it is a container.
    """

    at: float
    ticks: int
    limit_by: LimitBy
    image: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint that the job announced: `directory` is a name below `checkpoints/`."""

    step: int
    directory: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Logged:
    """A model that the job logged: what lies in `models/NUMBER` of its directory, with code of its
    own or the job's. Manifests and the example's bytes are filled in when it is brought out.
    """

    number: int
    model: runner_pb2.LoggedModel
    own_code: bool


@dataclass(slots=True)
class Reports:
    """Metrics on their way. Reports up to number `acked`, of the spool's first `acked_end` bytes,
    are stored; `ends` tells where each later one ends.
    """

    acked: int = 0
    acked_end: int = 0
    ends: dict[int, int] = field(default_factory=dict)
    malformed: int = 0

    @property
    def read(self) -> int:
        """The spool is read up to here, in bytes."""
        return max(self.ends.values(), default=self.acked_end)

    def cut(self, end: int) -> int:
        """Make the next report, up to `end`; return its number."""
        number = max(self.ends, default=self.acked) + 1
        self.ends[number] = end
        return number

    def ack(self, number: int) -> None:
        """Reports up to `number` are stored."""
        self.acked_end = self.ends.get(number, self.acked_end)
        self.acked = number
        self.ends = {each: end for each, end in self.ends.items() if each > number}


class GangPlace(NamedTuple):
    """A member's place in its gang: `addresses` are `host:port` of all members, by rank."""

    rank: int
    generation: int
    addresses: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt from its launch until it is forgotten.

    `exit` is None after the end of one that was lost. `ended` is set once it runs no more,
    `is_gone` once no process of it is left. `unanswered` are the items that the server has not
    answered, sent again on every new stream.
    """

    launch: worker_pb2.LaunchAttempt
    nonce: str
    home: str
    launched_ns: int
    granted: bool = False
    gang: GangPlace | None = None
    begun: Start | None = None
    exit: Exit | None = None
    lost: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    is_gone: asyncio.Event = field(default_factory=asyncio.Event)
    why: Why | None = None
    grace: float = 0.0
    dropped: bool = False
    interrupt: Callable[[], None] | None = None
    committed: asyncio.Event = field(default_factory=asyncio.Event)
    unanswered: dict[str, worker_pb2.WorkerItem] = field(default_factory=dict)
    reports: Reports = field(default_factory=Reports)
    progress: job_pb2.Progress | None = None
    checkpoint: Checkpoint | None = None
    stored_step: int | None = None
    models: dict[int, Logged] = field(default_factory=dict)
    holes: dict[str, int] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    memory_peak: int = 0
    gpu_peak: float = 0.0
    outcome: bytes = b""
    """What was committed, once the server has answered."""

    @property
    def name(self) -> str:
        """The external name."""
        return self.launch.attempt

    @property
    def fence(self) -> int:
        """The fence it was launched with."""
        return self.launch.fence

    @property
    def contained(self) -> bool:
        """True for a container, false for a process of its host."""
        return bool(self.launch.environment.image)

    @property
    def running(self) -> bool:
        """True while the user's code runs."""
        return self.begun is not None and not self.ended.is_set()

    @property
    def unwanted(self) -> bool:
        """True once it is to end, or to be forgotten."""
        return self.why is not None or self.dropped

    def learn(self, status: AttemptStatus) -> None:
        """Take in what the keeper knows of it."""
        if status.failed is None:
            self.begun = Start(status.started_at, status.start_ticks, status.limit_by, status.image)
        self.exit = status.exit
        self.lost = status.lost
        if status.exit is not None or status.lost:
            self.ended.set()
        if status.gone:
            self.is_gone.set()

    def path(self, name: str) -> str:
        """A path in its directory."""
        return f"{self.home}/{name}"


class Book:
    """All live attempts by name, and what is remembered of ended ones.

    Every change is added to the journal at once and is on disk after `save`. It is not fsynced:
    it has to outlive this process, not the machine, after whose restart nothing runs any more.
    """

    def __init__(self, data: Path, boot: str, nonces: Callable[[], str]) -> None:
        self._journal = Journal(data / "worker.journal")
        self._homes = data / "attempts"
        self._boot = boot
        self._nonces = nonces
        self.tombstones = Tombstones(data)
        self.live: dict[str, Attempt] = {}

    def home_of(self, name: str) -> str:
        """The directory of an attempt."""
        return f"{self._homes}/{name}"

    def load(self) -> bool:
        """Read what an earlier worker left; True when the machine was started anew since."""
        self.tombstones.load()
        boot = self._boot
        for record in self._journal.read():
            if record.get("k") == "worker":
                boot = record["boot"]
            else:
                self._replay(record)
        self._journal.rewrite(self._records())
        return boot != self._boot

    def enter(self, launch: worker_pb2.LaunchAttempt) -> Attempt | None:
        """Take in a launch; None for one that is known, was refused before, or has a bad name."""
        name = launch.attempt
        if name in self.live or name in self.tombstones or not SAFE_NAME.fullmatch(name):
            return None
        attempt = Attempt(launch, self._nonces(), self.home_of(name), time.time_ns())
        self.live[name] = attempt
        self._journal.add(_launch_record(attempt))
        return attempt

    def stopped(self, attempt: Attempt, why: Why, grace: float) -> None:
        """Note that the attempt is to end; the first reason counts."""
        attempt.why = attempt.why or why
        attempt.grace = grace
        self._journal.add({"k": "stop", "a": attempt.name, "why": attempt.why, "g": grace})

    def dropped(self, attempt: Attempt) -> None:
        """Note that the server wants nothing more of it."""
        attempt.dropped = True
        self._journal.add({"k": "drop", "a": attempt.name})

    def cut(self, attempt: Attempt, end: int) -> int:
        """Note that the next report of metrics covers the spool up to `end`; return its number."""
        number = attempt.reports.cut(end)
        self._journal.add({"k": "cut", "a": attempt.name, "n": number, "end": end})
        return number

    def acked(self, attempt: Attempt, number: int) -> None:
        """Note that reports up to `number` are stored."""
        if number > attempt.reports.acked:
            attempt.reports.ack(number)
            end = attempt.reports.acked_end
            self._journal.add({"k": "acked", "a": attempt.name, "n": number, "end": end})

    def announced(self, attempt: Attempt, found: Checkpoint) -> None:
        """Note a checkpoint that is to be brought out."""
        attempt.checkpoint = found
        values = [found.step, found.directory, found.metrics]
        self._journal.add({"k": "checkpoint", "a": attempt.name, "c": values})

    def stored(self, attempt: Attempt, step: int) -> None:
        """Note that a checkpoint was brought out and recorded."""
        attempt.stored_step = step
        self._journal.add({"k": "step", "a": attempt.name, "n": step})

    def logged(self, attempt: Attempt, found: Logged) -> None:
        """Note a model that is to be brought out when the attempt ends well."""
        attempt.models[found.number] = found
        self._journal.add(_logged_record(attempt.name, found))

    def punched(self, attempt: Attempt, stream: str, below: int) -> None:
        """Note that a log's bytes below an offset are no more."""
        attempt.holes[stream] = below
        self._journal.add({"k": "hole", "a": attempt.name, "s": stream, "n": below})

    def forget(self, name: str, outcome: str) -> None:
        """Be done with an attempt, or refuse one that never came."""
        known = self.live.pop(name, None)
        self.tombstones.add(name, outcome, known.outcome if known else b"")
        if known is not None:
            self._journal.add({"k": "done", "a": name})

    def save(self) -> None:
        """Put everything on disk; raises OSError when there is no room, and keeps it for later."""
        # The names of the ended go first: without one, a launch would be taken up again.
        self.tombstones.flush()
        self._journal.flush()
        if self._journal.large:
            self._journal.rewrite(self._records())

    def _records(self) -> Iterator[Record]:
        yield {"k": "worker", "boot": self._boot}
        for attempt in self.live.values():
            yield from _records_of(attempt)

    def _replay(self, record: Record) -> None:
        if record["k"] == "launch":
            self._replay_launch(record)
            return
        attempt = self.live.get(record["a"])
        if attempt is not None:
            self._replay_change(attempt, record)

    def _replay_launch(self, record: Record) -> None:
        launch = worker_pb2.LaunchAttempt.FromString(base64.b64decode(record["l"]))
        if launch.attempt not in self.tombstones:
            home = self.home_of(launch.attempt)
            self.live[launch.attempt] = Attempt(launch, record["n"], home, record["t"])

    def _replay_change(self, attempt: Attempt, record: Record) -> None:
        match record["k"]:
            case "stop":
                attempt.why, attempt.grace = record["why"], record["g"]
            case "drop":
                attempt.dropped = True
            case "cut":
                attempt.reports.ends[record["n"]] = record["end"]
            case "acked":
                attempt.reports.ack(record["n"])
                attempt.reports.acked_end = record["end"]
            case "checkpoint":
                attempt.checkpoint = Checkpoint(*record["c"])
            case "step":
                attempt.stored_step = record["n"]
            case "model":
                model = runner_pb2.LoggedModel.FromString(base64.b64decode(record["m"]))
                attempt.models[record["n"]] = Logged(record["n"], model, record["c"])
            case "hole":
                attempt.holes[record["s"]] = record["n"]
            case "done":
                del self.live[attempt.name]


def _launch_record(attempt: Attempt) -> Record:
    body = base64.b64encode(attempt.launch.SerializeToString(deterministic=True)).decode()
    return {
        "k": "launch",
        "a": attempt.name,
        "l": body,
        "n": attempt.nonce,
        "t": attempt.launched_ns,
    }


def _logged_record(name: str, found: Logged) -> Record:
    body = base64.b64encode(found.model.SerializeToString(deterministic=True)).decode()
    return {"k": "model", "a": name, "n": found.number, "c": found.own_code, "m": body}


def _records_of(attempt: Attempt) -> Iterator[Record]:
    name, reports = attempt.name, attempt.reports
    yield _launch_record(attempt)
    if attempt.why:
        yield {"k": "stop", "a": name, "why": attempt.why, "g": attempt.grace}
    if attempt.dropped:
        yield {"k": "drop", "a": name}
    if reports.acked:
        yield {"k": "acked", "a": name, "n": reports.acked, "end": reports.acked_end}
    for number, end in reports.ends.items():
        yield {"k": "cut", "a": name, "n": number, "end": end}
    if attempt.checkpoint:
        found = attempt.checkpoint
        yield {"k": "checkpoint", "a": name, "c": [found.step, found.directory, found.metrics]}
    if attempt.stored_step is not None:
        yield {"k": "step", "a": name, "n": attempt.stored_step}
    for each in attempt.models.values():
        yield _logged_record(name, each)
    for stream, below in attempt.holes.items():
        yield {"k": "hole", "a": name, "s": stream, "n": below}
