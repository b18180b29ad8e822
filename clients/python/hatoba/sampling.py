"""Which traces are kept: one rule for every process that begins them. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable


class RateSampler:
    """Keeps every new trace below a rate, and a share of them above it.

    `full_below` is in traces per second, `share` a fraction; the choice above the rate depends on
    the trace id alone, so that every process that asks the same way decides the same.
    """

    def __init__(
        self,
        full_below: float = 50.0,
        share: float = 0.1,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._full_below = full_below
        self._threshold = int(share * 0x1_0000_0000)
        self._monotonic = monotonic
        self._allowance = full_below
        self._last = monotonic()

    def keep(self, trace_id: str) -> bool:
        """Whether a trace that begins now is kept."""
        now = self._monotonic()
        refill = (now - self._last) * self._full_below
        self._last = now
        self._allowance = min(self._full_below, self._allowance + refill)
        if self._allowance >= 1.0:
            self._allowance -= 1.0
            return True
        return int(trace_id[-8:], 16) < self._threshold
