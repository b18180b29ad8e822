"""What ECS does not notice: roll-outs that come to nothing, tasks that soon die again. Pure.

Its circuit breaker counts neither: a task that ran for a minute was healthy, and one that waits for
room is only pending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hatoba.v1 import common_pb2

WINDOW = 600.0
"""Seconds in which ends are counted."""
LEAST_ENDS = 4


@dataclass(slots=True)
class Progress:
    """How far a revision has come, and since when."""

    ready: int = -1
    wanted: int = -1
    since: float = 0.0

    def saw(self, ready: int, wanted: int, now: float) -> None:
        """So many of so many are ready; more than before is progress, so is another number."""
        if ready > self.ready or wanted != self.wanted:
            self.since = now
        self.ready, self.wanted = ready, wanted

    def stuck(self, deadline: float, now: float) -> bool:
        """Whether too few are ready and that has not changed for so long."""
        return self.ready < self.wanted and now - self.since >= deadline


def no_progress(progress: Progress, revision: int, deadline: float, why: str) -> common_pb2.Cause:
    """What to tell of a revision that is stuck; `why` is what ECS said last."""
    said = f" ECS says: {why}" if why else ""
    return common_pb2.Cause(
        code=common_pb2.CAUSE_CODE_NOT_READY,
        origin=common_pb2.ORIGIN_INFRASTRUCTURE,
        message=(
            f"Revision {revision} has {progress.ready} of {progress.wanted} replicas ready, no more"
            f" for {deadline:g} s.{said}"
        )[:1024],
        retryable=True,
    )


def churns(ends: Sequence[float], wanted: int, now: float) -> int:
    """How many tasks ended lately, where those are too many; else 0."""
    lately = sum(now - at < WINDOW for at in ends)
    return lately if lately >= max(LEAST_ENDS, 2 * wanted) else 0


def churning(ends: int, revision: int, last: common_pb2.Cause | None) -> common_pb2.Cause:
    """What to tell of a revision whose tasks come and go."""
    because = f" The last: {last.message}" if last is not None else ""
    cause = common_pb2.Cause(
        code=common_pb2.CAUSE_CODE_CRASH_LOOP,
        origin=last.origin if last is not None else common_pb2.ORIGIN_USER,
        message=(
            f"{ends} tasks of revision {revision} ended within {WINDOW / 60:g} minutes, which the"
            f" circuit breaker takes for healthy.{because}"
        )[:1024],
        retryable=False,
    )
    cause.evidence["ended_tasks"] = str(ends)
    return cause
