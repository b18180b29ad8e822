"""When it is certain that what cannot be seen does not exist.

Providers whose look-ups lag behind their creations show nothing for a while. What was asked for, or
may have been asked for before we were opened, is then neither there nor absent.
"""

from __future__ import annotations

from hatoba_plugins.backend import Clock


class Settling:
    """What was asked to be created, and when: until that settles, absence is no proof."""

    def __init__(self, clock: Clock, settles_after: float) -> None:
        self._clock = clock
        self._settles_after = settles_after
        self._opened = clock.monotonic()
        self._asked: dict[str, float] = {}

    def asked(self, name: str) -> None:
        """A creation is on its way. Those before it that settled are forgotten."""
        self._asked.pop(name, None)
        self._asked[name] = self._clock.monotonic()
        while self.settled_in(oldest := next(iter(self._asked))) <= 0 and oldest != name:
            del self._asked[oldest]

    def seen(self, name: str) -> None:
        """It was seen; from now on absence is proof."""
        self._asked[name] = -self._settles_after

    def under_way(self, name: str) -> bool:
        """Whether a creation of our own may still come to be seen."""
        return name in self._asked and self.settled_in(name) > 0

    def settled_in(self, name: str) -> float:
        """Seconds until it is certain that a name which cannot be seen does not exist."""
        since = self._asked.get(name, self._opened)
        return max(0.0, since + self._settles_after - self._clock.monotonic())
