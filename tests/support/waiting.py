"""Waiting until something holds: for news, or, of what tells nobody, by asking again.

Nothing waits for a time; what never holds fails when patience ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 60.0
POLL = 0.005
SHARE = 4.0
"""A pause between two looks is so many times as long as the look was: some start a program."""
PAUSE_MOST = 0.5
TURNS = 20
"""Of the loop: more than any chain of tasks in these tests needs that wake one another."""


async def until(what: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until `what()`, which is asked in a thread, holds. Raises TimeoutError."""

    async def ask() -> bool:
        return bool(await asyncio.to_thread(what))

    await eventually(ask, patience)


async def eventually(
    ask: Callable[[], Awaitable[T | None]],
    patience: float = PATIENCE,
    *,
    despite: tuple[type[Exception], ...] = (),
) -> T:
    """The first answer of `ask()` that holds; `despite` these it is asked again. Raises
    TimeoutError.
    """
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(patience):
        while True:
            began = clock()
            try:
                if answer := await ask():
                    return answer
            except despite:
                pass
            await asyncio.sleep(min(max(POLL, SHARE * (clock() - began)), PAUSE_MOST))


class News:
    """Wakes those who wait for something whenever it may hold."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Something happened."""
        self._next.set()
        self._next = asyncio.Event()

    async def until(self, what: Callable[[], object], patience: float = PATIENCE) -> None:
        """Wait until `what()` holds. Raises TimeoutError."""
        async with asyncio.timeout(patience):
            while not what():
                await self._next.wait()


async def turns(count: int = TURNS) -> None:
    """Let every task of this loop do what it can do now."""
    for _ in range(count):
        await asyncio.sleep(0)
