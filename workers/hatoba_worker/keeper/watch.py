"""The memory limit where there is no control group: look, and kill what is over it."""

from __future__ import annotations

from collections.abc import Callable

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.attempts import Attempt
from hatoba_worker.keeper.family import Family
from hatoba_worker.keeper.timers import Timers

_EVERY = 0.1
_SHARED_FOR = 10


class MemoryWatch:
    """Looks ten times a second at the attempts given to it, and names those over their limit."""

    def __init__(self, family: Family, timers: Timers, exceeded: Callable[[Attempt], None]) -> None:
        self._family = family
        self._timers = timers
        self._exceeded = exceeded
        self._shared: dict[Attempt, int] = {}

    def add(self, attempt: Attempt) -> None:
        """Watch `attempt` until its main process has ended."""
        if not self._shared:
            self._timers.after(_EVERY, self._look)
        self._shared[attempt] = 0

    def _look(self) -> None:
        self._shared = {each: left for each, left in self._shared.items() if each.running}
        for attempt in self._shared:
            self._check(attempt)
        if self._shared:
            self._timers.after(_EVERY, self._look)

    def _check(self, attempt: Attempt) -> None:
        members = self._family.members(attempt)
        resident = sum(each.rss_bytes for each in members.values())
        if resident <= attempt.memory_bytes:
            return
        if self._shared[attempt] > 0:
            self._shared[attempt] -= 1
            return
        # Forked workers share pages, each counted as its own; the true sum is slow to read.
        if procfs.proportional_bytes(members) > attempt.memory_bytes:
            self._exceeded(attempt)
        else:
            self._shared[attempt] = _SHARED_FOR
