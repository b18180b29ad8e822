"""A breaker: calls that keep failing are not made for a while, then one call tries.

Without I/O and clock: whoever uses it says when it is, in seconds that never go back.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum


class BreakerState(Enum):
    """Whether calls are let through."""

    CLOSED = "closed"
    """All are."""
    HALF_OPEN = "half-open"
    """One is, and decides."""
    OPEN = "open"
    """None is, for a while."""


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When it opens: after `in_a_row` failures, or when `share` of the last `window` calls failed.

    It stays open for `first_pause` seconds, twice as long each time a try failed, at most
    `longest_pause`.
    """

    in_a_row: int = 5
    share: float = 0.5
    window: int = 20
    first_pause: float = 1.0
    longest_pause: float = 60.0


class Breaker:
    """One breaker. A call asks `admit`, and then tells how it went, once."""

    def __init__(self, rules: BreakerRules = BreakerRules()) -> None:
        self._rules = rules
        self._recent: deque[bool] = deque(maxlen=rules.window)
        self._in_a_row = 0
        self._pause = rules.first_pause
        self._until = 0.0
        self._open = False
        self._trying = False

    def state(self, now: float) -> BreakerState:
        """How it stands at `now`."""
        if not self._open:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._until else BreakerState.HALF_OPEN

    def wait(self, now: float) -> float:
        """Seconds until a call may be let through; infinite while another one tries."""
        if not self._open:
            return 0.0
        if now < self._until:
            return self._until - now
        return math.inf if self._trying else 0.0

    def admit(self, now: float) -> bool:
        """Let a call through if one may be; in the half-open state it is the one that tries."""
        if self.wait(now) > 0:
            return False
        self._trying = self._open
        return True

    def succeeded(self) -> None:
        """A call got an answer, whatever it said."""
        if self._open:
            self._recent.clear()
        elif len(self._recent) == self._rules.window and all(self._recent):
            self._pause = self._rules.first_pause
        self._open = self._trying = False
        self._in_a_row = 0
        self._recent.append(True)

    def failed(self, now: float) -> None:
        """A call got no answer, or one that says that nothing works."""
        self._recent.append(False)
        self._in_a_row += 1
        if not (self._trying if self._open else self._too_many()):
            return
        self._until = now + self._pause
        self._pause = min(2 * self._pause, self._rules.longest_pause)
        self._open, self._trying = True, False

    def let_go(self) -> None:
        """A call was given up by us: it says nothing."""
        self._trying = False

    def _too_many(self) -> bool:
        if self._in_a_row >= self._rules.in_a_row:
            return True
        full = len(self._recent) == self._rules.window
        return full and self._recent.count(False) >= self._rules.share * self._rules.window
