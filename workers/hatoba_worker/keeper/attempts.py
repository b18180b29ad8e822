"""What the keeper knows of one attempt, and how it is told to clients and journal."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from hatoba_worker.keeper.cgroups import MemoryGroup
from hatoba_worker.keeper.family import Owner
from hatoba_worker.keeper.frames import Json
from hatoba_worker.keeper.launch import LaunchError

EXITED = "exited"
STOP = "stop"
KILLED_BY_US = "killed_by_us"
OOM = "oom"

BY_CGROUP = "cgroup"
BY_RLIMIT = "rlimit"
BY_NOTHING = "none"

LINGER = 5.0


class Attempt(Owner):
    """One attempt, from the intent to start it until a client has it forgotten.

    `exit` is None until its main process ended; `gone` is True once no process of it is left;
    `lost` means that its keeper died before the exit was known.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.serial = 0
        self.started_at = 0.0
        self.limit_by = BY_NOTHING
        self.memory_bytes = 0
        self.linger_grace = LINGER
        self.exit: Json | None = None
        self.failed: Json | None = None
        self.ending: str | None = None
        self.oom = False
        self.gone = False
        self.lost = False

    @property
    def over(self) -> bool:
        """True when it may be forgotten: it has ended, and no process is left."""
        return self.gone and not self.running

    def fail(self, error: LaunchError) -> None:
        """Note that nothing was started."""
        self.failed = failure(self.name, error)
        self.gone = True

    def end(self, status: int, usage: resource.struct_rusage, ended_at: float) -> None:
        """Note the end of the main process, as `wait4` and the memory counters tell it."""
        code = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss * 1024
        if self.group and self.group.oom_kills() > 0:
            self.oom = True
        if self.limit_by == BY_RLIMIT and code != 0 and self._exceeded(peak):
            self.oom = True
        self.exit = {
            "exit_code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "oom": self.oom,
            "reason": self._reason(code),
            "ended_at": ended_at,
            "rusage": {
                "utime": round(usage.ru_utime, 6),
                "stime": round(usage.ru_stime, 6),
                "maxrss": peak,
            },
        }

    def _exceeded(self, peak: int) -> bool:
        # A child's peak begins with ours, whose memory it shared between fork and exec.
        ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return peak > self.memory_bytes and peak > ours

    def _reason(self, code: int) -> str:
        if self.oom and code != 0 and not self.ending:
            return OOM
        return self.ending or EXITED

    def view(self) -> Json:
        """Return what `list` tells about it."""
        return {
            "attempt": self.name,
            "pid": self.pid,
            "start_ticks": self.start,
            "started_at": self.started_at,
            "limit_by": self.limit_by,
            "ending": self.ending,
            "exit": self.exit,
            "failed": self.failed,
            "gone": self.gone,
            "lost": self.lost,
        }

    def answer(self, *, known: bool) -> Json:
        """Return the reply to `spawn`; `known` when this one started nothing."""
        if self.failed:
            return self.failed
        reply = {
            "spawned": True,
            "known": known,
            "attempt": self.name,
            "pid": self.pid,
            "start_ticks": self.start,
            "started_at": self.started_at,
            "limit_by": self.limit_by,
        }
        return reply | {"status": self.view()} if known else reply

    def record(self) -> Json:
        """Return what the journal keeps of it."""
        group = (
            {"path": str(self.group.path), "version": self.group.version} if self.group else None
        )
        return {"kind": "attempt", "tag": self.tag, "group": group, **self.view()}


def failure(attempt: str, error: LaunchError) -> Json:
    """Return the reply to a `spawn` that started nothing."""
    return {
        "failed": True,
        "attempt": attempt,
        "errno": error.number,
        "kind": error.kind,
        "message": str(error)[:500],
    }


def restored(record: Json) -> Attempt:
    """Return the attempt that an earlier keeper journalled."""
    attempt = Attempt(record["attempt"])
    attempt.tag = record["tag"]
    attempt.pid = record["pid"]
    attempt.start = record["start_ticks"]
    attempt.started_at = record["started_at"]
    attempt.limit_by = record["limit_by"]
    attempt.exit = record["exit"]
    attempt.failed = record["failed"]
    attempt.ending = record["ending"]
    attempt.gone = record["gone"]
    attempt.lost = record["lost"]
    if record["group"]:
        attempt.group = MemoryGroup(Path(record["group"]["path"]), record["group"]["version"])
    return attempt
