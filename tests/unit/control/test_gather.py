"""What arrives together is handed over together, and nothing waits on an idle loop."""

from __future__ import annotations

import asyncio

from hatoba_scheduler.control import gather
from hatoba_scheduler.control.gather import Gatherer


class Taken:
    """The groups that were handed over."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.moved = asyncio.Event()

    def __call__(self, group: list[int]) -> None:
        self.groups.append(group)
        self.moved.set()


async def turn() -> None:
    """One turn of the loop."""
    await asyncio.sleep(0)


async def test_one_alone_is_handed_over_after_a_few_turns() -> None:
    taken = Taken()
    Gatherer(taken).add(1)
    for _ in range(gather.QUIET_TURNS + 1):
        await turn()
    assert taken.groups == [[1]]


async def test_what_keeps_coming_is_one_group_in_order() -> None:
    taken = Taken()
    gatherer: Gatherer[int] = Gatherer(taken)
    for number in range(20):
        gatherer.add(number)
        await turn()
        assert not taken.groups
    async with asyncio.timeout(5):
        await taken.moved.wait()
    assert taken.groups == [list(range(20))]


async def test_weight_closes_a_group() -> None:
    taken = Taken()
    gatherer: Gatherer[int] = Gatherer(taken)
    gatherer.add(1, gather.MOST)
    await turn()
    gatherer.add(2)
    await taken.moved.wait()
    assert taken.groups[0] == [1]


async def test_time_closes_a_group_that_never_rests() -> None:
    taken = Taken()
    gatherer: Gatherer[int] = Gatherer(taken)
    number = 0
    async with asyncio.timeout(5):
        while not taken.groups:
            gatherer.add(number, 0)
            number += 1
            await turn()
    assert taken.groups[0] == list(range(len(taken.groups[0])))


async def test_what_is_taken_back_is_not_handed_over() -> None:
    taken = Taken()
    gatherer: Gatherer[int] = Gatherer(taken)
    gatherer.add(1)
    assert gatherer.take() == [1]
    for _ in range(gather.QUIET_TURNS + 2):
        await turn()
    assert not taken.groups
