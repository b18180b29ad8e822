"""What is forgotten in its time, whatever the disk does."""

from __future__ import annotations

import asyncio
from typing import cast

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.sweep import EVERY, REQUESTS_KEPT, sweep
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.errors import StorageFull


class Forgetful:
    """A store whose disk is full at first."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def forget_requests(self, before: int) -> int:
        self.asked.append(before)
        if len(self.asked) == 1:
            raise StorageFull("the disk is full")
        return 0


async def test_a_full_disk_does_not_end_the_sweep() -> None:
    store, clock = Forgetful(), FakeClock()
    began = clock.time()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sweep(cast(Store, store), clock), name="sweep")
        await clock.advance(EVERY)
        assert store.asked == [round((began + late - REQUESTS_KEPT) * 1e6) for late in (0, EVERY)]
        task.cancel()
