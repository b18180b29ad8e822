"""Metric points on their way to the store: gathered, written together, acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from hatoba_scheduler.domain.records import MetricPoint
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)

LIMIT = 1_000
Done = Callable[[bool], None]


class MetricWriter:
    """A bounded queue of reports and the loop that writes them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: asyncio.Queue[tuple[Sequence[MetricPoint], Done]] = asyncio.Queue(LIMIT)

    async def add(self, points: Sequence[MetricPoint], done: Done) -> None:
        """Have points written; `done` is called with whether they are stored."""
        await self._queue.put((points, done))

    async def run(self) -> None:
        """Write what is queued; ends by cancellation."""
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._write(batch)

    async def _write(self, batch: Sequence[tuple[Sequence[MetricPoint], Done]]) -> None:
        try:
            await self._store.add_metrics([point for points, _ in batch for point in points])
            stored = True
        except Exception as error:  # noqa: BLE001 - reporters send again what is not acknowledged
            log.warning("metrics.not_stored", error=repr(error))
            stored = False
        for _, done in batch:
            done(stored)
