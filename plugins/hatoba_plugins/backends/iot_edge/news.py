"""What devices tell, for any number of watchers, none of which can hold the others up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from hatoba_plugins.values import DeviceCame, DeviceNews, DeviceTold, DeviceWent, Gap, Synced


class _Watcher:
    """Of each device the newest waits here, so that who reads slowly misses what is old alone."""

    def __init__(self) -> None:
        self.links: dict[str, DeviceCame | DeviceWent] = {}
        self.reports: dict[str, DeviceTold] = {}
        self.gap = False
        self.ended = False
        self.ready = asyncio.Event()

    def give(self, news: Iterable[DeviceNews]) -> None:
        """Add these, in place of what is older."""
        for one in news:
            if isinstance(one, DeviceTold):
                self.reports[one.device] = one
            elif isinstance(one, DeviceCame | DeviceWent):
                self.links[one.device] = one
        self.ready.set()

    def take(self) -> DeviceNews | None:
        """The next: who came is told of before what it said."""
        for waiting in (self.links, self.reports):
            if waiting:
                return waiting.pop(next(iter(waiting)))
        return None

    def forget(self) -> None:
        """What waits is not to be told."""
        self.links.clear()
        self.reports.clear()

    def forget_one(self, device: str) -> None:
        """What waits of this one is not to be told."""
        self.links.pop(device, None)
        self.reports.pop(device, None)


class NewsFeed:
    """The `reports` of a device role. `known` says all that is so now."""

    def __init__(self, known: Callable[[], Iterable[DeviceNews]]) -> None:
        self._known = known
        self._watchers: set[_Watcher] = set()

    def publish(self, news: Iterable[DeviceNews]) -> None:
        """Tell every watcher."""
        told = list(news)
        for watcher in self._watchers:
            watcher.give(told)

    def forget(self, device: str) -> None:
        """What a device said, and nobody has read, is not to be told."""
        for watcher in self._watchers:
            watcher.forget_one(device)

    def gap(self) -> None:
        """Something was missed: every watcher is told so, and then everything again."""
        for watcher in self._watchers:
            watcher.gap = True
            watcher.ready.set()

    def end(self) -> None:
        """End every watch that is open now."""
        for watcher in self._watchers:
            watcher.ended = True
            watcher.ready.set()

    async def watch(self) -> AsyncIterator[DeviceNews]:
        """First all that is known, then Synced, then what is published."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            for one in self._all(watcher):
                yield one
            while not watcher.ended:
                if watcher.gap:
                    watcher.gap = False
                    yield Gap()
                    for one in self._all(watcher):
                        yield one
                elif (next_one := watcher.take()) is not None:
                    yield next_one
                else:
                    watcher.ready.clear()
                    await watcher.ready.wait()
        finally:
            self._watchers.discard(watcher)

    def _all(self, watcher: _Watcher) -> list[DeviceNews]:
        watcher.forget()
        return [*self._known(), Synced()]
