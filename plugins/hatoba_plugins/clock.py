"""Clocks: the system's, and one that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time

_TURNS = 20
"""Turns of the event loop given to whoever was woken, so that a chain of tasks can follow."""


class SystemClock:
    """The machine's own time."""

    def time(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        await asyncio.sleep(seconds)


class FakeClock:
    """Time that moves only when told to; whoever sleeps wakes in the order of what is due.

    A plug-in under test that is given this clock can be taken through hours in no time.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._start = now
        self._now = now
        self._set_by = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._asleep = asyncio.Event()

    def time(self) -> float:
        """Seconds since 1970, as a test set them."""
        return self._now + self._set_by

    def set_by(self, seconds: float) -> None:
        """Set the wall clock forward or, below 0, back; sleeps and monotonic time go on."""
        self._set_by += seconds

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        return self._now - self._start

    async def sleep(self, seconds: float) -> None:
        """Return when the clock was moved so far; with nothing to wait for, after one turn."""
        if seconds <= 0:
            return await asyncio.sleep(0)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        self._asleep.set()
        await future

    @property
    def sleepers(self) -> int:
        """How many wait for this clock."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def until_asleep(self, count: int = 1) -> None:
        """Return once at least so many wait for this clock."""
        while self.sleepers < count:
            self._asleep.clear()
            await self._asleep.wait()

    async def advance(self, seconds: float) -> None:
        """Move on, stopping at each moment when somebody is due and letting them act there.

        Tasks that have not run yet run first, still at the old time.
        """
        await _settle()
        target = self._now + seconds
        while (due := self._next()) is not None and due <= target:
            await self._wake_at(due)
        self._now = target
        await _settle()

    async def advance_to_next(self) -> bool:
        """Move to the next moment when somebody is due. False: nobody sleeps."""
        await _settle()
        due = self._next()
        if due is None:
            return False
        await self._wake_at(due)
        return True

    def _next(self) -> float | None:
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def _wake_at(self, due: float) -> None:
        self._now = max(self._now, due)
        while self._sleepers and self._sleepers[0][0] <= due:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)
        await _settle()


async def _settle() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
