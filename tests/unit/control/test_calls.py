"""The bulkhead of one backend: lanes, deadlines, what counts as a failure, what is shown."""

from __future__ import annotations

import asyncio

import pytest

from hatoba_plugins.clock import FakeClock
from hatoba_plugins.errors import Denied, NoCapacity, Retry, Throttled
from hatoba_scheduler.control.breaker import BreakerRules, BreakerState
from hatoba_scheduler.control.calls import LANES, Calls, CallSettings

RULES = BreakerRules(in_a_row=2, first_pause=5.0)


def calls(clock: FakeClock, deadline: float = 30.0) -> Calls:
    return Calls(clock, CallSettings(deadline, RULES))


async def answer() -> int:
    return 7


async def fail(error: Exception) -> int:
    raise error


async def never() -> int:
    forever: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    return await forever


async def test_a_lane_takes_so_many_calls_and_another_lane_is_not_held_up() -> None:
    all_calls = calls(FakeClock())
    async with asyncio.TaskGroup() as group:
        hung = [
            group.create_task(all_calls["launch"].call(never), name=f"hung-{number}")
            for number in range(LANES["launch"] + 3)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all_calls["launch"].under_way == LANES["launch"]
        assert await all_calls["stop"].call(answer) == 7
        for task in hung:
            task.cancel()
    assert all_calls.under_way == 0


async def test_a_call_is_given_up_at_its_deadline() -> None:
    with pytest.raises(TimeoutError):
        await calls(FakeClock(), deadline=0.01)["find"].call(never)


@pytest.mark.parametrize("error", [OSError("reset"), Retry("not now"), RuntimeError("bug")])
async def test_what_says_nothing_opens_the_breaker(error: Exception) -> None:
    one = calls(FakeClock())["find"]
    for _ in range(2):
        with pytest.raises(type(error)):
            await one.call(lambda: fail(error))
    assert one.state is BreakerState.OPEN


@pytest.mark.parametrize("error", [NoCapacity("full"), Throttled("slower"), Denied("no")])
async def test_a_refusal_is_an_answer(error: Exception) -> None:
    one = calls(FakeClock())["launch"]
    for _ in range(5):
        with pytest.raises(type(error)):
            await one.call(lambda: fail(error))
    assert one.state is BreakerState.CLOSED


async def test_an_answer_may_be_none() -> None:
    one = calls(FakeClock())["launch"]
    for _ in range(2):
        assert await one.call(answer, good=lambda _: False) == 7
    assert one.state is BreakerState.OPEN


async def test_calls_wait_while_it_is_open_and_go_on_after_a_good_try() -> None:
    clock = FakeClock()
    one = calls(clock)["find"]
    for _ in range(2):
        with pytest.raises(OSError, match="reset"):
            await one.call(lambda: fail(OSError("reset")))
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(one.call(answer), name=f"call-{n}") for n in range(2)]
        await clock.advance(4.9)
        assert not any(task.done() for task in waiting)
        await clock.advance(0.2)
    assert [task.result() for task in waiting] == [7, 7]
    assert one.state is BreakerState.CLOSED


async def test_what_is_shown_of_the_last_calls() -> None:
    clock = FakeClock()
    all_calls = calls(clock)

    async def slow() -> int:
        await clock.sleep(0.5)
        return 7

    async with asyncio.TaskGroup() as group:
        group.create_task(all_calls["launch"].call(slow), name="slow")
        await clock.advance(1.0)
    with pytest.raises(OSError, match="reset"):
        await all_calls["launch"].call(lambda: fail(OSError("reset")))
    assert all_calls.texts() == {"launch": "250 ms, 500 ms; 1 of 2 failed"}
    assert all_calls.limit == sum(LANES.values())
