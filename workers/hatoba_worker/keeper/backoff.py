"""How long to wait before a supervised process is started again."""

from __future__ import annotations

FIRST = 0.05
LONGEST = 5.0
SETTLED = 10.0


class Backoff:
    """Doubles from 50 ms to 5 s, and begins anew after a process that lived 10 s."""

    def __init__(self) -> None:
        self._next = FIRST

    def after(self, lived: float) -> float:
        """Return the seconds to wait after a process ended that had lived `lived` seconds."""
        if lived >= SETTLED:
            self._next = FIRST
        delay = self._next
        self._next = min(delay * 2, LONGEST)
        return delay
