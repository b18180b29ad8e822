"""Many calls at once: all of them are made, and errors come out as they were raised."""

from __future__ import annotations

import asyncio

import pytest

from hatoba_plugins.errors import Denied
from hatoba_plugins.lanes import Lanes


async def test_so_many_at_once_in_the_order_of_the_question() -> None:
    now = most = 0

    async def double(number: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return 2 * number

    assert await Lanes(3).each(range(10), double) == [2 * number for number in range(10)]
    assert most == 3


async def test_what_one_raises_is_raised_when_the_others_are_done() -> None:
    done: list[str] = []

    async def ask(name: str) -> None:
        if name == "b":
            raise Denied("nobody may")
        await asyncio.sleep(0)
        done.append(name)

    with pytest.raises(Denied, match="nobody may"):
        await Lanes(2).each(["a", "b", "c"], ask)
    assert done == ["a", "c"]
