"""Whether the store takes writes: set by whoever writes, waited for by whoever must tell."""

from __future__ import annotations

import asyncio

from hatoba_scheduler.errors import HatobaError


class Trouble:
    """The last write's failure to reach the disk; on one event loop."""

    def __init__(self) -> None:
        self._error: HatobaError | None = None
        self._there = asyncio.Event()

    @property
    def error(self) -> HatobaError | None:
        """What the last write failed with; None: it was taken."""
        return self._error

    def fails(self, error: HatobaError) -> None:
        """A write did not reach the disk."""
        self._error = error
        self._there.set()

    def works(self) -> None:
        """A write did."""
        self._error = None
        self._there.clear()

    async def wait(self) -> HatobaError:
        """Return once writes fail."""
        while self._error is None:
            await self._there.wait()
        return self._error
