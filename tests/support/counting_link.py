"""A link to one address that counts what it brings, and breaks where a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from socket import SO_SNDBUF, SOL_SOCKET

PIECE = 16 * 1024


class CountingLink:
    """Carries bytes both ways; `cut_at` are counts of what was brought at which all breaks, once
    each.
    """

    def __init__(self, host: str, port: int) -> None:
        self._there = host, port
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None] | None] = set()
        self.cut_at: list[int] = []
        self.carried = 0
        """Bytes that came back from there."""
        self.port = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        task = asyncio.current_task()
        self._connections.add(task)
        try:
            await self._carry(reader, writer)
        finally:
            self._connections.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            # What waits here is not on its way yet: it would be lost unseen when all breaks.
            writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_SNDBUF, PIECE)
            far_reader, far_writer = await asyncio.open_connection(*self._there)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(reader, far_writer))
                tasks.create_task(self._bring(far_reader, writer))

    async def close(self) -> None:
        """Break what there is."""
        self._break()
        await asyncio.gather(*(one for one in self._connections if one is not None))

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._held(writer), contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                writer.write(data)
                await writer.drain()

    async def _bring(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._held(writer), contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                self.carried += len(data)
                writer.write(data)
                await writer.drain()
                if self.cut_at and self.carried >= self.cut_at[0]:
                    self.cut_at.pop(0)
                    self._break()

    def _break(self) -> None:
        for writer in list(self._writers):
            # What was brought so far arrives; then the connection is gone.
            writer.close()

    @contextlib.contextmanager
    def _held(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.close()


@contextlib.asynccontextmanager
async def counting_link(
    host: str, port: int, listen: str = "127.0.0.1"
) -> AsyncIterator[CountingLink]:
    """A link to an address."""
    link = CountingLink(host, port)
    server = await asyncio.start_server(link.carry, listen, 0)
    link.port = server.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        server.close()
        await link.close()
