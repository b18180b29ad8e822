"""How much one principal may ask for at once and in a second, so that none can take all there is.

Hosts and routers are not counted: their tokens are shared by many machines, and what they do is
bounded by the work that they were given. A runner elsewhere, and a device, is counted by itself
alone, so that ten thousand of them, each with its stream, take no place from people; of a device
there is one agent, which needs little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.errors import Reason, ResourceExhausted

AHEAD_SECONDS = 2.0
"""So much of what a second allows may be used at once after a pause."""
BUSY_SECONDS = 0.5
REMEMBERED = 10_000
UNCOUNTED = frozenset({Role.WORKER, Role.ROUTER})
ALONE = frozenset({Role.RUNNER, Role.DEVICE})
"""Counted each by itself, and not among all."""
DEVICE_CALLS, DEVICE_STREAMS, DEVICE_CHANGES = 16, 16, 10.0
"""What one device may have under way, and change in a second, unless everybody may less."""
NEW_JOBS: Final[Mapping[str, Callable[[Any], int]]] = {
    "hatoba.v1.JobService/SubmitJob": lambda request: 1,
    "hatoba.v1.JobService/SubmitJobs": lambda request: len(request.items),
    "hatoba.v1.JobService/RerunJob": lambda request: 1,
    "hatoba.v1.ScheduleService/RunSchedule": lambda request: 1,
}
"""Jobs that a call wants to make, by method; other calls make none."""


class PrincipalLimits(NamedTuple):
    """What one principal, and all together, may have under way and ask for in a second."""

    calls: int = 500
    streams: int = 6_000
    changes_per_second: float = 10_000.0
    jobs_per_second: float = 100_000.0
    all_calls: int = 2_000
    all_streams: int = 10_000


@dataclass(slots=True)
class _Usage:
    calls: int = 0
    streams: int = 0
    changes_until: float = 0.0
    jobs_until: float = 0.0


class Principals:
    """Counts what each principal has under way."""

    def __init__(
        self,
        limits: PrincipalLimits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = own = limits or PrincipalLimits()
        self._of_device = own._replace(
            calls=min(own.calls, DEVICE_CALLS),
            streams=min(own.streams, DEVICE_STREAMS),
            changes_per_second=min(own.changes_per_second, DEVICE_CHANGES),
        )
        self._monotonic = monotonic
        self._of: dict[str, _Usage] = {}
        self._room = REMEMBERED
        self._all = _Usage()

    @property
    def calls(self) -> int:
        """Calls under way that are no streams."""
        return self._all.calls

    @property
    def streams(self) -> int:
        """Streams under way."""
        return self._all.streams

    def admit(self, token: TokenRecord, *, changes: bool, stream: bool) -> None:
        """Raise ResourceExhausted, with when to come again, unless one more call may begin."""
        if token.role in UNCOUNTED:
            return
        usage, limits = self._usage(token.principal), self._limits_of(token)
        if stream:
            self._below(token, "streams", usage.streams, limits.streams)
            self._below_all(token, "streams", self._all.streams, limits.all_streams)
        else:
            self._below(token, "calls", usage.calls, limits.calls)
            self._below_all(token, "calls", self._all.calls, limits.all_calls)
        if changes:
            usage.changes_until = self._later(
                token, "changing calls", usage.changes_until, 1 / limits.changes_per_second
            )

    def _limits_of(self, token: TokenRecord) -> PrincipalLimits:
        return self._of_device if token.role == Role.DEVICE else self._limits

    def submit(self, token: TokenRecord, jobs: int) -> None:
        """Raise ResourceExhausted unless so many jobs more may be submitted now."""
        if token.role not in UNCOUNTED:
            usage = self._usage(token.principal)
            usage.jobs_until = self._later(
                token, "jobs", usage.jobs_until, jobs / self._limits.jobs_per_second
            )

    def enter(self, token: TokenRecord, *, stream: bool) -> None:
        """A call begins."""
        if token.role not in UNCOUNTED:
            self._count(self._usage(token.principal), stream, 1)
            if token.role not in ALONE:
                self._count(self._all, stream, 1)

    def leave(self, token: TokenRecord, *, stream: bool) -> None:
        """A call that had begun has ended."""
        if token.role not in UNCOUNTED:
            self._count(self._usage(token.principal), stream, -1)
            if token.role not in ALONE:
                self._count(self._all, stream, -1)

    def _usage(self, principal: str) -> _Usage:
        usage = self._of.get(principal)
        if usage is None:
            if len(self._of) >= self._room:
                self._forget()
                self._room = max(REMEMBERED, 2 * len(self._of))
            usage = self._of[principal] = _Usage()
        return usage

    def _forget(self) -> None:
        """Principals without anything under way, now or a little ago, need no record."""
        now = self._monotonic()
        self._of = {
            name: usage
            for name, usage in self._of.items()
            if usage.calls or usage.streams or max(usage.changes_until, usage.jobs_until) > now
        }

    def _count(self, usage: _Usage, stream: bool, more: int) -> None:
        if stream:
            usage.streams += more
        else:
            usage.calls += more

    def _below_all(self, token: TokenRecord, what: str, now: int, limit: int) -> None:
        if token.role not in ALONE:
            self._below(None, what, now, limit)

    def _below(self, token: TokenRecord | None, what: str, now: int, limit: int) -> None:
        if now < limit:
            return
        who = f"{token.principal} has" if token else "the server has"
        raise ResourceExhausted(
            f"{who} {now:,} {what} under way, as many as it may; end some, or come again soon",
            reason=Reason.TOO_MANY_CALLS,
            retry_after=BUSY_SECONDS,
            metadata={"limit": str(limit), "what": what},
        )

    def _later(self, token: TokenRecord, what: str, until: float, seconds: float) -> float:
        """Up to when its share of the time is used up, once what takes `seconds` is added."""
        now = self._monotonic()
        ahead = until - now
        if ahead > AHEAD_SECONDS:
            raise ResourceExhausted(
                f"{token.principal} sends more {what} than it may; "
                f"come again in {ahead - AHEAD_SECONDS:.2f} s, or send fewer",
                reason=Reason.RATE_LIMITED,
                retry_after=ahead - AHEAD_SECONDS,
                metadata={"what": what},
            )
        return max(until, now) + seconds
