"""A sleep that somebody can end."""

from __future__ import annotations

import asyncio

from hatoba_plugins.backend import Clock

LONGEST = 60.0
"""Seconds after which whoever waits for a moment looks at the clock again: it may have been set."""


class Alarm:
    """Wakes one sleeper at a moment, or as soon as it rings."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the sleeper, or the next one at once."""
        self._rung.set()

    async def sleep_until(self, moment: float | None) -> None:
        """Return when it rang, at this moment (seconds since 1970), or a while before it.

        None: only when it rang.
        """
        if moment is None:
            await self._rung.wait()
        elif not self._rung.is_set():
            await self._sleep(min(LONGEST, moment - self._clock.time()))
        self._rung.clear()

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0:
            # A sleeper with something overdue still lets others have their turn.
            await asyncio.sleep(0)
            return
        async with asyncio.TaskGroup() as group:
            ways = {
                group.create_task(self._clock.sleep(seconds), name="alarm-clock"),
                group.create_task(self._wait(), name="alarm-bell"),
            }
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()

    async def _wait(self) -> None:
        await self._rung.wait()
