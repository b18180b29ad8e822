"""Which failpoint the next server dies at: all of them, those most often that are reached."""

from __future__ import annotations

import random
from collections import Counter

from hatoba_scheduler.failpoints import POINTS, VARIABLE

PASSES = (1, 1, 1, 2, 2, 3, 5)
"""At which of its passes a server dies."""
MISS_WEIGHT = 4
"""A point that was not reached waits as if it had been reached so often more."""


class Points:
    """Spreads kills over all failpoints; what a load never comes by is tried ever more seldom."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._misses: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.armed = ""

    def next(self) -> dict[str, str]:
        """The environment of the next server: it kills itself at the point chosen."""
        order = self._dice.sample(sorted(POINTS), len(POINTS))
        self.armed = min(order, key=lambda name: self.hits[name] + MISS_WEIGHT * self._misses[name])
        count = 1 if self._misses[self.armed] else self._dice.choice(PASSES)
        return {VARIABLE: f"{self.armed}:kill9@{count}"}

    def told(self, *, reached: bool) -> None:
        """Whether the server that was armed last died there."""
        if reached:
            self.hits[self.armed] += 1
        else:
            self._misses[self.armed] += 1

    @property
    def never(self) -> list[str]:
        """Points that no server has died at."""
        return sorted(POINTS.keys() - self.hits.keys())
