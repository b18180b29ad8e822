"""What was found lately, so that the same question within a moment is answered once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from hatoba_plugins.backend import Clock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
MOST = 256


class Recent(Generic[K, V]):
    """Answers by question, for a moment; all of them are forgotten together."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._known: dict[K, V] = {}
        self._until = 0.0

    def get(self, key: K) -> V | None:
        """The answer, if it was found within the moment."""
        if self._clock.monotonic() >= self._until:
            self._known.clear()
        return self._known.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep an answer for the rest of the moment."""
        if not self._known or len(self._known) >= MOST:
            self._known.clear()
            self._until = self._clock.monotonic() + self._seconds
        self._known[key] = value
