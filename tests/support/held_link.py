"""A network to one TCP port that can hold what passes, let it go again, and be cut."""

from __future__ import annotations

import asyncio
import contextlib

PIECE = 64 * 1024


class _Line:
    """One connection: what it does not carry now waits here, either way."""

    def __init__(self) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        self._writers: list[asyncio.StreamWriter] = []

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """From there to here, until it ends."""
        self._writers.append(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                await self.flows.wait()
                writer.write(data)
                await writer.drain()
            await self.flows.wait()
        writer.close()

    def end_there(self) -> None:
        """End it for the far end alone."""
        self._writers[0].transport.abort()

    def abort(self) -> None:
        """End it, for both ends to see; what waits is lost."""
        for writer in self._writers:
            writer.transport.abort()
        self.flows.set()


class HeldLink:
    """Where one device dials. `there` is where it leads, for connections that begin from now on."""

    def __init__(self, there: int, host: str = "127.0.0.1") -> None:
        self.there = there
        self.host = host
        self.port = 0
        self._lines: list[_Line] = []
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Carry."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line()
        self._lines.append(line)
        try:
            far_reader, far_writer = await asyncio.open_connection(self.host, self.there)
        except OSError:
            writer.transport.abort()
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(line.carry(reader, far_writer), name="link:there")
            tasks.create_task(line.carry(far_reader, writer), name="link:back")
        self._lines.remove(line)

    @property
    def held(self) -> bool:
        """Whether there is a connection on which nothing passes."""
        return any(not line.flows.is_set() for line in self._lines)

    def hold(self) -> None:
        """What passes on the connections that there are arrives no more, and nobody is told."""
        for line in self._lines:
            line.flows.clear()

    def let_go(self) -> None:
        """What was held arrives."""
        for line in self._lines:
            line.flows.set()

    def cut(self) -> None:
        """End the connections that there are."""
        for line in self._lines:
            line.abort()

    def end_there(self) -> None:
        """End the connections that there are for the far end; the near one is not told."""
        for line in self._lines:
            line.end_there()

    async def close(self) -> None:
        """Carry nothing any more."""
        if self._server is not None:
            self._server.close()
        self.cut()
