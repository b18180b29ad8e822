"""How long planning takes: slices are sized by it, and operators are shown it."""

from __future__ import annotations

from collections import deque

from hatoba_plugins.backend import Clock
from hatoba_scheduler.domain.planning.model import Round
from hatoba_scheduler.domain.planning.planner import Planner
from hatoba_scheduler.domain.records import Micros

KEPT = 100
LONGEST = 0.0008
"""Seconds that a slice shall take at most; it is stopped between two units of its work."""
_FEWEST, _MOST = 10, 2_000
_FIRST = 100


class Rounds:
    """The last 100 rounds of planning."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self.count = 0
        """Rounds since the start."""

    def add(self, seconds: float) -> None:
        """A round took so long, its slices together."""
        self._seconds.append(seconds)
        self.count += 1

    @property
    def longest(self) -> float:
        """Seconds of the longest of them; 0 before the first."""
        return max(self._seconds, default=0.0)

    @property
    def mean(self) -> float:
        """Seconds of one of them on average; 0 before the first."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else 0.0


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
