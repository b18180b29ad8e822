"""When a worker that was started by somebody else ends by itself."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

LOOK = 0.5
IDLE = "--until-idle"
UNDER = "--under-parent"
IDLED = 10
"""Exit code of a worker that ended because it had no job."""


async def idle(
    holds: Callable[[], bool],
    seconds: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Return once nothing was held for so long."""
    since = monotonic()
    while monotonic() - since < seconds:
        await sleep(LOOK)
        if holds():
            since = monotonic()


async def parent_gone() -> None:
    """Return once whoever has the other end of our standard input is gone."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        await reader.read()
    finally:
        transport.close()
