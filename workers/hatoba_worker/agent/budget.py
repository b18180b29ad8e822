"""How many bytes a metered link may carry: so many in a period, counted also over restarts.

A period begins with its first byte and lasts by the monotonic clock, as far as that goes: a restart
goes on with what was counted, so that switching a device off and on opens nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from hatoba_worker.agent import disk
from hatoba_worker.agent.pausing import until_heard

DAY = 86_400.0
Pay = Callable[[int], Awaitable[None]]
"""Waits until so many bytes may be carried."""
SAVE_EVERY = 1 << 20
"""Bytes after which the count is put on the disk: a power cut forgives no more than these."""
WAKE = 3_600.0


async def unlimited(_: int) -> None:
    """A link that nobody counts."""


class Budget:
    """Bytes of one direction. `limit` 0: as many as there are. While it is held nothing is
    carried."""

    def __init__(
        self,
        path: Path,
        limit: int,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        period: float = DAY,
    ) -> None:
        self._path = path
        self._limit = limit
        self._held = False
        self._allowed = asyncio.Event()
        self._monotonic = monotonic
        self._sleep = sleep
        self._period = period
        self._began = monotonic()
        self._used = 0
        self._saved = 0
        self.waiting = False
        """Whether somebody waits for the next period."""

    def load(self) -> None:
        """Go on with what was counted before; blocks."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(self._path.read_text(encoding="ascii"))
            used, gone = int(told["used"]), float(told["seconds"])
            if 0 <= gone < self._period and used >= 0:
                self._used = self._saved = used
                self._began = self._monotonic() - gone

    def allow(self, limit: int, *, held: bool = False) -> None:
        """So much from now on; what was counted in this period is a part of it."""
        self._limit, self._held = limit, held
        self._allowed.set()

    @property
    def left(self) -> int | None:
        """Bytes that may be carried in this period; None: as many as there are."""
        if not self._limit:
            return None
        self._turn()
        return max(0, self._limit - self._used)

    def _turn(self) -> None:
        """Begin another period, once this one is over."""
        if self._monotonic() - self._began >= self._period:
            self._began, self._used, self._saved = self._monotonic(), 0, 0

    def affords(self, size: int) -> bool:
        """Whether so many bytes may be carried at once."""
        self._turn()
        if self._held:
            return False
        return not self._limit or not self._used or self._used + size <= self._limit

    async def pay(self, size: int) -> None:
        """Wait until so many bytes may be carried. What is larger than a whole period's budget is
        carried at its beginning: nothing would ever come otherwise.
        """
        while not self.affords(size):
            self.waiting = True
            self._allowed.clear()
            left = self._began + self._period - self._monotonic()
            await until_heard(self._allowed, min(max(left, 0.0), WAKE), self._sleep)
        self.waiting = False
        if not self._limit:
            return
        self._used += size
        if self._used - self._saved >= SAVE_EVERY:
            await asyncio.to_thread(self.save)

    def save(self) -> None:
        """Put the count on the disk; blocks. A full disk costs the count of the last moments."""
        used, gone = self._used, self._monotonic() - self._began
        with contextlib.suppress(OSError):
            disk.replace(self._path, json.dumps({"used": used, "seconds": gone}).encode())
            self._saved = used
