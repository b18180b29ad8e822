"""The newest events in memory, and a way to wait for more; older ones are read from the store.

Watchers pull by position, so a slow one costs nothing and delays nobody. Positions have no gaps,
which is how commits that are told out of order are put back in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.domain.records import Event
from hatoba_scheduler.store.base import Store

KEPT = 20_000
PAGE = 500


class EventLog:
    """The tail of the event log."""

    def __init__(self, store: Store, newest: int) -> None:
        self._store = store
        self._ring: deque[Event] = deque(maxlen=KEPT)
        self._early: dict[int, Event] = {}
        self._newest = newest
        self._moved = asyncio.Event()

    @property
    def newest(self) -> int:
        """Position of the newest event that watchers may see."""
        return self._newest

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed events; a listener of the ledger."""
        for event in events:
            self._early[event.seq] = event
        moved = False
        while (event_or_none := self._early.pop(self._newest + 1, None)) is not None:
            self._ring.append(event_or_none)
            self._newest += 1
            moved = True
        if moved:
            self._moved.set()
            self._moved = asyncio.Event()

    async def wait_beyond(self, seq: int) -> None:
        """Return once there is an event after this position."""
        while self._newest <= seq:
            await self._moved.wait()

    async def read(self, after: int) -> list[Event]:
        """The next events after a position, at most a page; empty when there are none yet."""
        if after >= self._newest:
            return []
        oldest = self._newest - len(self._ring) + 1
        if after + 1 < oldest:
            return await self._store.events(after, PAGE)
        start = after + 1 - oldest
        return [self._ring[i] for i in range(start, min(start + PAGE, len(self._ring)))]
