"""A TCP port that a test serves, with nothing of it left open at the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

Heard = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(heard: Heard, host: str) -> AsyncIterator[tuple[str, int]]:
    """Serve who connects for as long as the block lasts; where it listens.

    Those who are still there at the end are cut off: containers outlive a test's event loop.
    """
    visits: set[asyncio.Task[None]] = set()

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        visits.add(task)
        try:
            await heard(reader, writer)
        finally:
            visits.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(visit, host, 0)
    try:
        address, port = server.sockets[0].getsockname()[:2]
        yield str(address), int(port)
    finally:
        server.close()
        ending = list(visits)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        await server.wait_closed()
