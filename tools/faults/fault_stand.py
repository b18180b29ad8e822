"""Where containers tell that they start and end: beyond the servers that die, and over TCP.

Each has one connection for as long as it is there; what it tells goes into the ledger as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TextIO

from fault_oracle import task_of

_TELL = 'tell() { read up rest < /proc/uptime; echo "$1 $HATOBA_ATTEMPT $up $$"; }'
_SOCKET = """
import os, socket, sys, time
told = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def tell(event):
    up = open("/proc/uptime").read().split()[0]
    told.sendall(f"{event} {os.environ['HATOBA_ATTEMPT']} {up} {os.getpid()}\\n".encode())
tell("start")
time.sleep(float(sys.argv[3]))
tell("end")
told.shutdown(socket.SHUT_WR)
told.recv(1)
sys.exit(int(sys.argv[4]))
"""


class Stand:
    """Writes down what containers tell, and who is there beside an earlier attempt of its task."""

    def __init__(self, ledger: TextIO) -> None:
        self.host, self.port = "", 0
        self._ledger = ledger
        self._there: dict[str, set[_Teller]] = {}

    @classmethod
    @asynccontextmanager
    async def running(cls, host: str, ledger: Path) -> AsyncIterator[Stand]:
        """One that listens on this address until it is left."""
        loop = asyncio.get_running_loop()
        with await asyncio.to_thread(ledger.open, "a", buffering=1) as file:
            stand = cls(file)
            server = await loop.create_server(lambda: _Teller(stand), host, 0, backlog=1024)
            stand.host, stand.port = server.sockets[0].getsockname()[:2]
            async with server:
                yield stand

    def shell(self, milliseconds: int, code: int) -> list[str]:
        """A command for any image with busybox: the line before its exit has arrived by then."""
        seconds = milliseconds / 1000
        told = f"{{ tell start; sleep {seconds:g}; tell end; }} | nc {self.host} {self.port}"
        return ["/bin/sh", "-c", f"{_TELL}; {told}; exit {code}"]

    def python(self, milliseconds: int, code: int) -> list[str]:
        """The same for images with Python."""
        words = [self.host, str(self.port), f"{milliseconds / 1000:g}", str(code)]
        return ["python3", "-c", _SOCKET, *words]

    def heard(self, teller: _Teller, line: str) -> None:
        """One of them told something."""
        event, attempt = line.split()[:2]
        print(line, file=self._ledger)
        if event != "start":
            return
        task = task_of(attempt)[0]
        beside = self._there.setdefault(task, set())
        # Of one that ended the end is known already: it closed its connection before this came.
        if any(not other.ended for other in beside):
            print(f"overlap {line.partition(' ')[2]}", file=self._ledger)
        beside.add(teller)
        teller.task = task

    def gone(self, teller: _Teller) -> None:
        """One of them is there no more."""
        self._there.get(teller.task, set()).discard(teller)


class _Teller(asyncio.Protocol):
    """One container's connection."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._text = b""
        self.task = ""
        self.ended = False

    def data_received(self, data: bytes) -> None:
        """What it tells is heard once all that had arrived by now is, ends of others too."""
        *lines, self._text = (self._text + data).split(b"\n")
        self.ended = self.ended or any(line.startswith(b"end ") for line in lines)
        loop = asyncio.get_running_loop()
        for line in lines:
            loop.call_soon(self._stand.heard, self, line.decode())

    def eof_received(self) -> None:
        """It has told all, or it was killed."""
        self.ended = True

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone."""
        del error
        self.ended = True
        asyncio.get_running_loop().call_soon(self._stand.gone, self)
