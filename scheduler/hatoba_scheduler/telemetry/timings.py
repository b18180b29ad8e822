"""How long something that happens again and again took of late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

KEPT = 100


def _nobody(seconds: float) -> None:
    del seconds


class Timings:
    """The last 100 times. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self.count = 0
        """How often since the start."""
        self.observe: Callable[[float], None] = _nobody
        """Told of each as well, for whoever counts them all."""

    def add(self, seconds: float) -> None:
        """It took so long once more."""
        self._seconds.append(seconds)
        self.count += 1
        self.observe(seconds)

    @property
    def longest(self) -> float:
        """Seconds of the longest of them; 0 before the first."""
        return max(self._seconds.copy(), default=0.0)

    @property
    def mean(self) -> float:
        """Seconds of one of them on average; 0 before the first."""
        seconds = self._seconds.copy()
        return sum(seconds) / len(seconds) if seconds else 0.0
