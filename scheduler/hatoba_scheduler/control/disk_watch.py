"""Makes the server read-only while its disk takes no writes, and serve again when it does."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.errors import HatobaError
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.errors import StorageFull

log = structlog.get_logger(__name__)

AGAIN = 0.5
"""Seconds between two looks at whether the disk takes writes."""
ROOM_BYTES = 2 << 20
"""What must be free before a disk that was full counts as having room again."""


class Gate(Protocol):
    """What refuses changes meanwhile."""

    def disk_fails(self, trouble: HatobaError) -> None:
        """Writes fail with this."""
        ...

    def disk_works(self) -> None:
        """Writes are taken again."""
        ...


class DiskWatch:
    """Follows the store's trouble. `tell_health` is told whether changes are taken."""

    def __init__(
        self,
        store: Store,
        data: Path,
        clock: Clock,
        gate: Gate,
        tell_health: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._store = store
        self._data = data
        self._clock = clock
        self._gate = gate
        self._tell_health = tell_health

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            trouble = await self._store.trouble.wait()
            began = self._clock.monotonic()
            self._gate.disk_fails(trouble)
            log.error("store.read_only", error=trouble.message, data=str(self._data))
            await self._tell_health(False)
            while not await self._writable(trouble):
                await self._clock.sleep(AGAIN)
            self._gate.disk_works()
            await self._tell_health(True)
            log.info("store.writable_again", seconds=round(self._clock.monotonic() - began, 1))

    async def _writable(self, trouble: HatobaError) -> bool:
        if isinstance(trouble, StorageFull) and await asyncio.to_thread(self._free) < ROOM_BYTES:
            return False
        try:
            await self._store.backups.probe()
        except HatobaError:
            return False
        return self._store.trouble.error is None

    def _free(self) -> int:
        try:
            return shutil.disk_usage(self._data).free
        except OSError:
            return 0
