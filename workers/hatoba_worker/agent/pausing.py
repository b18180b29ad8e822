"""Waiting for news, with an end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until_heard(
    news: asyncio.Event, seconds: float, sleep: Callable[[float], Awaitable[None]]
) -> None:
    """Wait until there is news, or for so many seconds by `sleep`, whichever comes first."""
    async with asyncio.TaskGroup() as tasks:
        timer = tasks.create_task(_slept(sleep, seconds), name="pause")
        heard = tasks.create_task(_heard(news), name="news")
        await asyncio.wait((timer, heard), return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()
        heard.cancel()


async def _slept(sleep: Callable[[float], Awaitable[None]], seconds: float) -> None:
    await sleep(seconds)


async def _heard(news: asyncio.Event) -> None:
    await news.wait()
