"""What queues used outlives a restart, and a bad disk delays it by a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.shares import ShareKeeper
from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.model import Place, QueueKey, Running
from hatoba_scheduler.domain.planning.planner import Planner
from hatoba_scheduler.domain.records import Resources
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.errors import StorageFull

NIGHT = ("default", "night")
Usage = dict[QueueKey, tuple[float, int]]


class Kept:
    """A store of usage alone."""

    def __init__(self) -> None:
        self.usage: Usage = {}
        self.writes = 0
        self.fail = False

    async def queue_usage(self) -> Usage:
        return dict(self.usage)

    async def put_queue_usage(self, usage: Mapping[QueueKey, tuple[float, int]]) -> None:
        if self.fail:
            raise StorageFull("the disk is full")
        self.writes += 1
        self.usage |= usage


def busy(clock: FakeClock) -> Planner:
    """A planner one of whose queues uses half of all there is."""
    planner = Planner()
    planner.describe("null", [PoolRoom("pool", Resources(cpus=8.0))])
    place = Place("null", "pool")
    planner.started(Running("a-0-1", "a", 0, NIGHT, place, Resources(cpus=4.0), 0))
    planner.plan(micros(clock))
    return planner


def micros(clock: FakeClock) -> int:
    return round(clock.time() * 1e6)


async def test_shares_are_stored_each_minute_and_given_back() -> None:
    clock, kept = FakeClock(), Kept()
    planner = busy(clock)
    keeper = ShareKeeper(planner, cast(Store, kept), clock)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(keeper.run())
        await clock.advance(1.0)
        planner.plan(micros(clock) + 3_600_000_000)
        kept.fail = True
        await clock.advance(60.0)
        assert kept.usage == {}
        kept.fail = False
        await clock.advance(60.0)
        assert kept.usage[NIGHT][0] > 0.01
        writes = kept.writes
        await clock.advance(600.0)
        assert kept.writes == writes
        running.cancel()
    again = Planner()
    again.describe("null", [PoolRoom("pool", Resources(cpus=8.0))])
    await ShareKeeper(again, cast(Store, kept), clock).recover()
    again.plan(kept.usage[NIGHT][1])
    assert abs(again.share(NIGHT).decayed - kept.usage[NIGHT][0]) < 1e-6
