"""Steps that are carried out whole: a caller that goes away leaves nothing half done."""

from __future__ import annotations

import asyncio

import pytest

from hatoba_scheduler.errors import Aborted
from hatoba_scheduler.whole import whole


async def test_a_step_ends_although_its_caller_was_cancelled() -> None:
    begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def step() -> str:
        begun.set()
        await go.wait()
        done.set()
        return "done"

    async with asyncio.TaskGroup() as group:
        caller = group.create_task(whole(step()), name="caller")
        await begun.wait()
        caller.cancel()
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
        go.set()
    assert done.is_set()
    assert caller.cancelled()


async def test_without_a_cancellation_it_is_as_if_it_was_awaited() -> None:
    async def good() -> int:
        return 7

    async def bad() -> int:
        raise Aborted("meanwhile")

    assert await whole(good()) == 7
    with pytest.raises(Aborted, match="meanwhile"):
        await whole(bad())
