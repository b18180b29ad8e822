"""Names that something must be done about, now or later, each at most once."""

from __future__ import annotations

import asyncio
import heapq

from hatoba_plugins.backend import Clock


class Todo:
    """Bounded by what lives: a name that is there already is not there twice."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._names: dict[str, None] = {}
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._event = asyncio.Event()

    def __len__(self) -> int:
        return len(self._names) + len(self._due)

    def __contains__(self, name: str) -> bool:
        return name in self._names or name in self._due

    def add(self, name: str) -> None:
        """Do something about it now."""
        self._names[name] = None
        self._due.pop(name, None)
        self._event.set()

    def add_later(self, name: str, seconds: float) -> None:
        """Do something about it after so long, unless it is to be done before."""
        if name in self._names:
            return
        when = self._clock.monotonic() + seconds
        self._due[name] = when
        heapq.heappush(self._heap, (when, name))
        self._event.set()

    def discard(self, name: str) -> None:
        """There is nothing to do about it any more."""
        self._names.pop(name, None)
        self._due.pop(name, None)

    async def take(self, limit: int) -> list[str]:
        """At most so many names that are due, once there is one; they are taken away."""
        while not self._ripe():
            self._event.clear()
            await self._rest()
        names = []
        for name in self._names:
            names.append(name)
            if len(names) == limit:
                break
        for name in names:
            del self._names[name]
        return names

    def _ripe(self) -> bool:
        now = self._clock.monotonic()
        while self._heap and (self._heap[0][0] <= now or self._void(self._heap[0])):
            entry = heapq.heappop(self._heap)
            if not self._void(entry):
                del self._due[entry[1]]
                self._names[entry[1]] = None
        return bool(self._names)

    def _void(self, entry: tuple[float, str]) -> bool:
        return self._due.get(entry[1]) != entry[0]

    async def _rest(self) -> None:
        """Until something is added or becomes due."""
        if not self._heap:
            await self._event.wait()
            return
        async with asyncio.TaskGroup() as group:
            ring = group.create_task(self._ring(self._heap[0][0]), name="todo:ring")
            await self._event.wait()
            ring.cancel()

    async def _ring(self, when: float) -> None:
        await self._clock.sleep(max(0.0, when - self._clock.monotonic()))
        self._event.set()
