"""One backend's news for many watchers, none of which can hold it up or fill its memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Generic, TypeVar

from hatoba_plugins.values import Gap, Synced

T = TypeVar("T")


class _Watcher(Generic[T]):
    """What one watcher has still to read."""

    def __init__(self, limit: int) -> None:
        self.pending: deque[T | Gap] = deque()
        self.limit = limit
        self.ready = asyncio.Event()
        self.ended = False

    def give(self, items: Iterable[T | Gap]) -> None:
        """Add items; one who reads too slowly loses them all and is told of the gap."""
        self.pending.extend(items)
        if len(self.pending) > self.limit:
            self.pending.clear()
            self.pending.append(Gap())
        self.ready.set()

    def end(self) -> None:
        """Let it read what is pending and then end."""
        self.ended = True
        self.ready.set()


class Feed(Generic[T]):
    """The `watch` of a role for backends that hear of changes in their own process."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._watchers: set[_Watcher[T]] = set()

    def publish(self, items: Iterable[T | Gap]) -> None:
        """Tell every watcher, in this order."""
        told = list(items)
        for watcher in self._watchers:
            watcher.give(told)

    def drop(self) -> None:
        """Throw away what watchers have not read; they are not told."""
        for watcher in self._watchers:
            watcher.pending.clear()

    def end(self) -> None:
        """End every watch that is open now."""
        for watcher in self._watchers:
            watcher.end()

    async def watch(self, now: Callable[[], Iterable[T | Gap]]) -> AsyncIterator[T | Synced | Gap]:
        """First what `now` tells, then Synced, then everything published since `now` was asked."""
        watcher: _Watcher[T] = _Watcher(self._limit)
        self._watchers.add(watcher)
        try:
            for item in list(now()):
                yield item
            yield Synced()
            while True:
                while watcher.pending:
                    yield watcher.pending.popleft()
                if watcher.ended:
                    return
                watcher.ready.clear()
                await watcher.ready.wait()
        finally:
            self._watchers.discard(watcher)
