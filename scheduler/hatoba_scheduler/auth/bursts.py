"""How much is told of what comes too often: all of it at first, then now and then."""

from __future__ import annotations

from collections.abc import Callable

AUDIT_BURST = 100
AUDIT_SECONDS = 10.0
CALLERS = 1_000
"""Of more than so many, those that were quiet for long are forgotten."""


class Bursts:
    """Hears AUDIT_BURST at once of one caller, then one every AUDIT_SECONDS; `unheard` counts the
    others.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.unheard = 0
        self._monotonic = monotonic
        self._until: dict[str, float] = {}

    def hears(self, by: str) -> bool:
        """Whether there is room for one more of this caller; those without a name are one."""
        now = self._monotonic()
        if len(self._until) > CALLERS:
            self._until = {name: ends for name, ends in self._until.items() if ends > now}
        until = max(self._until.get(by, now), now) + AUDIT_SECONDS
        if until > now + AUDIT_BURST * AUDIT_SECONDS:
            self.unheard += 1
            return False
        self._until[by] = until
        return True
