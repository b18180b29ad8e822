"""Token buckets: rates, order, sharing."""

from __future__ import annotations

import asyncio

import pytest

from hatoba_plugins.budgets import BucketKey, Budgets, TokenBucket
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import Rate


async def served(clock: FakeClock, bucket: TokenBucket, takers: int, seconds: float) -> list[float]:
    """When each of the takers was served within so many seconds, in the order they came."""
    times: list[float] = []

    async def taker() -> None:
        await bucket.take()
        times.append(clock.monotonic())

    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(taker()) for _ in range(takers)]
        await clock.advance(seconds)
        for task in waiting:
            task.cancel()
    return times


async def test_a_burst_goes_at_once_and_then_the_rate_holds() -> None:
    clock = FakeClock()
    bucket = TokenBucket(Rate(per_second=2.0, burst=3), clock)
    assert await served(clock, bucket, 6, 10.0) == [0.0, 0.0, 0.0, 0.5, 1.0, 1.5]


async def test_no_more_than_a_burst_is_saved_up() -> None:
    clock = FakeClock()
    bucket = TokenBucket(Rate(per_second=2.0, burst=3), clock)
    await clock.advance(1_000.0)
    assert await served(clock, bucket, 5, 0.5) == [1_000.0, 1_000.0, 1_000.0, 1_000.5]


async def test_who_gives_up_waiting_gives_the_token_back() -> None:
    clock = FakeClock()
    bucket = TokenBucket(Rate(per_second=1.0, burst=1), clock)
    await bucket.take()
    async with asyncio.TaskGroup() as tasks:
        waiter = tasks.create_task(bucket.take())
        await clock.until_asleep()
        waiter.cancel()
    assert await served(clock, bucket, 1, 1.0) == [1.0]


async def test_instances_of_one_account_share_and_the_stricter_rate_counts() -> None:
    clock = FakeClock()
    budgets = Budgets(clock)
    first, second = budgets.share("account", "eu"), budgets.share("account", "eu")
    first.declare([("create", Rate(per_second=100.0, burst=100))])
    second.declare([("create", Rate(per_second=1.0, burst=2))])
    await first("create")
    await second("create")
    async with asyncio.TaskGroup() as tasks:
        third = tasks.create_task(first("create"))
        await clock.until_asleep()
        assert not third.done()
        await clock.advance(1.0)


@pytest.mark.parametrize(
    ("account", "region", "operation"),
    [
        ("other", "eu", "create"),
        ("account", "us", "create"),
        ("account", "eu", "list"),
    ],
)
async def test_what_nobody_limited_is_free(account: str, region: str, operation: str) -> None:
    budgets = Budgets(FakeClock())
    budgets.declare(BucketKey("account", "eu", "create"), Rate(per_second=0.001, burst=1))
    budget = budgets.share(account, region)
    for _ in range(100):
        await budget(operation)


@pytest.mark.parametrize(
    "rate",
    [Rate(0.0, 1), Rate(-1.0, 1), Rate(float("nan"), 1), Rate(float("inf"), 1), Rate(1.0, 0)],
)
def test_a_rate_that_lets_nothing_through_is_refused(rate: Rate) -> None:
    with pytest.raises(ValueError, match="per_second > 0"):
        Budgets(FakeClock()).declare(BucketKey("account", "", "create"), rate)
