"""Cancels a call at a given await, as a time-out or an ending server would."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _CancelledAt(Generic[T]):
    """Awaits a coroutine and has the running task cancelled at its k-th suspension."""

    def __init__(self, call: Coroutine[Any, Any, T], at: int) -> None:
        self._call = call
        self._at = at

    def __await__(self) -> Generator[Any, Any, T]:
        """Pass everything through, and count."""
        suspensions = 0
        step = self._call.send
        value: Any = None
        while True:
            try:
                awaited = step(value)
            except StopIteration as ended:
                result: T = ended.value
                return result
            suspensions += 1
            if suspensions == self._at:
                _current().cancel()
            try:
                value, step = (yield awaited), self._call.send
            except BaseException as error:  # noqa: BLE001 - it is the call's to deal with
                value, step = error, self._call.throw


async def interrupted(call: Coroutine[Any, Any, T], at: int) -> tuple[bool, T | None]:
    """Run a call, cancelled at its `at`-th await (from 1): (True, None); it may end before that:
    (False, its result).
    """
    task: asyncio.Task[T]
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_await(_CancelledAt(call, at)), name="interrupted")
    return (True, None) if task.cancelled() else (False, task.result())


async def _await(call: _CancelledAt[T]) -> T:
    return await call


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("no task is running")
    return task
