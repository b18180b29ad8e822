"""The clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio

import pytest

from hatoba_plugins.clock import FakeClock, SystemClock


async def test_it_wakes_sleepers_in_the_order_of_what_is_due() -> None:
    clock = FakeClock(now=100.0)
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.time()))

    async with asyncio.TaskGroup() as tasks:
        for name, seconds in (("third", 5.0), ("first", 1.0), ("second", 1.0)):
            tasks.create_task(sleeper(name, seconds))
        await clock.until_asleep(3)
        await clock.advance(3.0)
        assert (woken, clock.time()) == ([("first", 101.0), ("second", 101.0)], 103.0)
        await clock.advance(2.0)
    assert woken[-1] == ("third", 105.0)


async def test_who_sleeps_again_is_woken_within_the_same_move() -> None:
    clock = FakeClock()
    ticks: list[float] = []

    async def ticker() -> None:
        for _ in range(5):
            await clock.sleep(10.0)
            ticks.append(clock.monotonic())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ticker())
        await clock.until_asleep()
        await clock.advance(50.0)
    assert ticks == [10.0, 20.0, 30.0, 40.0, 50.0]


async def test_a_cancelled_sleeper_is_none_any_more() -> None:
    clock = FakeClock()
    async with asyncio.TaskGroup() as tasks:
        sleeper = tasks.create_task(clock.sleep(10.0))
        await clock.until_asleep()
        sleeper.cancel()
    assert clock.sleepers == 0
    assert not await clock.advance_to_next()


async def test_it_moves_to_the_next_that_is_due() -> None:
    clock = FakeClock(now=0.0)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(clock.sleep(7.0))
        assert await clock.advance_to_next()
    assert clock.time() == 7.0


async def test_the_system_clock_tells_the_loops_time() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.002)
    assert clock.monotonic() - before >= 0.001
    assert clock.time() == pytest.approx(clock.time(), abs=5.0)
