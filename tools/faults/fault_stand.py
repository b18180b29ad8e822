"""Where containers tell that they start, are there and end: beyond the servers that die, by TCP.

The times are the containers' own, by the one clock of their machine; what one tells goes into the
ledger as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TextIO

BEAT = 0.2
"""Seconds between two signs of life."""
_TELL = 'tell() { read up rest < /proc/uptime; echo "$1 $HATOBA_ATTEMPT $up $$"; }'
_BEATS = (
    "n={beats}; while [ $n -gt 0 ]; do sleep {beat}; tell beat; n=$((n-1)); done; sleep {rest:g}"
)
_SOCKET = """
import os, socket, sys, time
told = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def tell(event):
    up = open("/proc/uptime").read().split()[0]
    told.sendall(f"{event} {os.environ['HATOBA_ATTEMPT']} {up} {os.getpid()}\\n".encode())
tell("start")
for _ in range(int(sys.argv[3])):
    time.sleep(float(sys.argv[4]))
    tell("beat")
time.sleep(float(sys.argv[5]))
tell("end")
told.shutdown(socket.SHUT_WR)
told.recv(1)
sys.exit(int(sys.argv[6]))
"""


class Stand:
    """Writes down what containers tell."""

    def __init__(self, ledger: TextIO) -> None:
        self.host, self.port = "", 0
        self._ledger = ledger
        self.open: set[asyncio.Transport] = set()

    @classmethod
    @asynccontextmanager
    async def running(cls, host: str, ledger: Path) -> AsyncIterator[Stand]:
        """One that listens on this address until it is left."""
        loop = asyncio.get_running_loop()
        with await asyncio.to_thread(ledger.open, "a", buffering=1) as file:
            stand = cls(file)
            server = await loop.create_server(lambda: _Teller(stand), host, 0, backlog=1024)
            stand.host, stand.port = server.sockets[0].getsockname()[:2]
            try:
                async with server:
                    yield stand
            finally:
                # Containers may outlive the round.
                for transport in list(stand.open):
                    transport.abort()
                await asyncio.sleep(0)

    def shell(self, milliseconds: int, code: int) -> list[str]:
        """A command for any image with busybox; its last line has arrived before it ends."""
        beats, rest = divmod(milliseconds / 1000, BEAT)
        life = _BEATS.format(beats=int(beats), beat=BEAT, rest=rest)
        told = f"{{ tell start; {life}; tell end; }} | nc {self.host} {self.port}"
        return ["/bin/sh", "-c", f"{_TELL}; {told}; exit {code}"]

    def python(self, milliseconds: int, code: int) -> list[str]:
        """The same for images with Python."""
        beats, rest = divmod(milliseconds / 1000, BEAT)
        life = [str(int(beats)), str(BEAT), f"{rest:g}"]
        return ["python3", "-c", _SOCKET, self.host, str(self.port), *life, str(code)]

    def heard(self, line: str) -> None:
        """One of them told something."""
        print(line, file=self._ledger)


class _Teller(asyncio.Protocol):
    """One container's connection; what a kill tore is no line, for it was never whole."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._text = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """One has come."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._stand.open.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """One has gone."""
        if self._transport is not None:
            self._stand.open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        """What it tells, line by line."""
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            self._stand.heard(line.decode())
