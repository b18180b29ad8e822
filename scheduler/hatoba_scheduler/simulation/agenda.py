"""What is to happen when: virtual time, which moves from one thing to the next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from hatoba_scheduler.domain.records import Micros

SECOND = 1_000_000
Action = Callable[[], object]


class Agenda:
    """Actions by their time; those of one moment in the order in which they were put down."""

    def __init__(self, now: Micros) -> None:
        self._now = now
        self._numbers = itertools.count()
        self._actions: list[tuple[Micros, int, Action]] = []

    @property
    def now(self) -> Micros:
        """Microseconds since 1970."""
        return self._now

    @property
    def next(self) -> Micros | None:
        """When the next action is due; None: nothing will happen any more."""
        return self._actions[0][0] if self._actions else None

    def at(self, time: Micros, action: Action) -> None:
        """Do this then; what is past is done at once."""
        heapq.heappush(self._actions, (max(time, self._now), next(self._numbers), action))

    def after(self, seconds: float, action: Action) -> None:
        """Do this so many seconds from now."""
        self.at(self._now + round(seconds * SECOND), action)

    def step(self) -> bool:
        """Move to the next moment and do all that is due there. False: there is none."""
        if not self._actions:
            return False
        self._now = self._actions[0][0]
        while self._actions and self._actions[0][0] <= self._now:
            heapq.heappop(self._actions)[2]()
        return True

    def pass_to(self, time: Micros) -> None:
        """Let time pass in which nothing happens."""
        self._now = max(self._now, time)
