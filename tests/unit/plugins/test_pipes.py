"""A pipe holds little, and either side may leave."""

from __future__ import annotations

import asyncio

import pytest
from waiting import turns

from hatoba_plugins.pipes import PIECES, Pipe


async def test_who_tells_more_waits_for_who_listens() -> None:
    pipe: Pipe[int] = Pipe()
    for number in range(PIECES):
        await pipe.put(number)
    async with asyncio.TaskGroup() as tasks:
        more = tasks.create_task(pipe.put(PIECES))
        await turns()
        assert not more.done()
        assert await pipe.next() == 0
        await more
    pipe.end()
    rest = [await pipe.next() for _ in range(PIECES)]
    assert rest == list(range(1, PIECES + 1))
    assert await pipe.next() is None


async def test_what_was_told_comes_before_the_error_and_the_first_end_counts() -> None:
    pipe: Pipe[int] = Pipe()
    await pipe.put(1)
    pipe.end(OSError("broken"))
    pipe.end()
    assert await pipe.next() == 1
    with pytest.raises(OSError, match="broken"):
        await pipe.next()


async def test_who_leaves_is_noticed() -> None:
    pipe: Pipe[int] = Pipe()
    async with asyncio.TaskGroup() as tasks:
        left = tasks.create_task(pipe.left())
        await turns()
        assert not left.done()
        pipe.leave()
