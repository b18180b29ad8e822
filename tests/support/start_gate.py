"""Programs that say that they started, and go on when they are let."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from listening import listening

HELD = """
import socket
from hatoba import current_job
with socket.create_connection({address!r}) as gate:
    gate.recv(1)
(current_job().outputs / "made").write_text("out")
"""


class StartGate:
    """Counts who comes, and holds them until it is opened."""

    def __init__(self) -> None:
        self.starts = 0
        self.address = ("", 0)
        self._come, self._open = asyncio.Event(), asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def running(cls, host: str) -> AsyncIterator[StartGate]:
        """One that listens where containers reach it."""
        gate = cls()
        async with listening(gate._comes, host) as gate.address:
            yield gate

    @property
    def program(self) -> str:
        """Of a job that comes here and leaves an output when it is let on."""
        return HELD.format(address=self.address)

    def open(self) -> None:
        """Let everybody on."""
        self._open.set()

    async def until_started(self) -> None:
        """Return when somebody has come."""
        await self._come.wait()

    async def _comes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.starts += 1
        self._come.set()
        await self._open.wait()
