"""Steps that are carried out whole, although whoever asked for them has gone away.

A caller's cancellation must not come between a commit and what memory makes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def whole(step: Coroutine[Any, Any, T]) -> T:
    """Carry a step out to its end. A cancellation meanwhile is delivered after it."""
    # Awaited here to its end, whatever happens: this is its owner.
    running = asyncio.create_task(step, name="whole")  # noqa: TID251
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        running.exception()
        raise asyncio.CancelledError
    return running.result()
