"""A time limit ends when it is told to, however often it is told."""

from __future__ import annotations

import asyncio

from hatoba.scopes import lapse


async def test_a_limit_may_be_told_to_end_while_it_ends() -> None:
    scope, entered, cleaning = asyncio.timeout(None), asyncio.Event(), asyncio.Event()

    async def work() -> bool:
        try:
            async with scope:
                entered.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    cleaning.set()
                    await asyncio.sleep(0)
        except TimeoutError:
            return scope.expired()
        return False

    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(work())
        await entered.wait()
        lapse(scope)
        lapse(scope)
        await cleaning.wait()
        lapse(scope)
    lapse(scope)
    assert working.result()
