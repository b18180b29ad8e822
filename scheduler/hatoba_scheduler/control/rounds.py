"""Planning in slices that are sized by how long the ones before took."""

from __future__ import annotations

from hatoba_plugins.backend import Clock
from hatoba_scheduler.domain.planning.model import Round
from hatoba_scheduler.domain.planning.planner import Planner
from hatoba_scheduler.domain.records import Micros

LONGEST = 0.0008
"""Seconds that a slice shall take at most; it is stopped between two units of its work."""
_FEWEST, _MOST = 10, 2_000
_FIRST = 100


class Slice:
    """Plans for less than a millisecond at a time: as much as was done in that time before."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._work = _FIRST

    def plan(self, planner: Planner, now: Micros) -> tuple[Round, float]:
        """One slice, and the seconds that it took."""
        began = self._clock.monotonic()
        found = planner.plan(now, self._work)
        spent = self._clock.monotonic() - began
        if spent > LONGEST:
            self._work = max(_FEWEST, round(self._work * LONGEST / spent))
        elif found.more:
            self._work = min(_MOST, self._work + self._work // 4 + 1)
        return found, spent
