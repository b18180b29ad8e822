"""Many native calls, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Done(NamedTuple, Generic[R]):
    """What a call answered, or raised."""

    answers: tuple[R, ...] = ()
    error: Exception | None = None


class Lanes:
    """So many native calls at once, whoever makes them."""

    def __init__(self, count: int) -> None:
        self._turns = asyncio.Semaphore(count)

    async def each(
        self, items: Sequence[T], act: Callable[[T], Awaitable[R]], name: str = "lane"
    ) -> list[R]:
        """Act on all of them. What the first raises is raised, as it is, once all have ended."""

        async def one(item: T) -> _Done[R]:
            async with self._turns:
                try:
                    return _Done((await act(item),))
                except Exception as error:  # noqa: BLE001 - raised once the others have ended
                    return _Done(error=error)

        async with asyncio.TaskGroup() as calls:
            made = [calls.create_task(one(item), name=name) for item in items]
        results = [call.result() for call in made]
        for result in results:
            if result.error is not None:
                raise result.error
        return [answer for result in results for answer in result.answers]
