"""Many calls, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Lanes:
    """So many native calls at once, whoever makes them."""

    def __init__(self, count: int) -> None:
        self._turns = asyncio.Semaphore(count)

    async def each(self, items: Sequence[T], act: Callable[[T], Awaitable[R]]) -> list[R]:
        """Act on all of them. What one raises is raised, once all have ended."""

        async def one(item: T) -> R:
            async with self._turns:
                return await act(item)

        results = await asyncio.gather(*(one(item) for item in items), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]
