"""A connection to a TCP port on which an attempt listens, and to no other of its host."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import struct
import sys
from collections.abc import AsyncGenerator, Iterable

from hatoba.v1 import job_pb2
from hatoba_worker.attaching.doors import CHUNK, AttachFailed

CONNECTS_WITHIN = 10.0
_LISTENS = "0A"
Output = job_pb2.AttachOutput


class PortDoor:
    """An open connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def give(self, said: job_pb2.AttachInput) -> None:
        """Send on, as fast as the other side reads; an end is half of a close."""
        with contextlib.suppress(OSError):
            if said.end:
                self._writer.write_eof()
            elif said.data:
                self._writer.write(said.data)
                await self._writer.drain()

    async def tell(self) -> AsyncGenerator[Output, None]:
        """What comes back, and that no more will come."""
        with contextlib.suppress(OSError):
            while data := await self._reader.read(CHUNK):
                yield Output(data=data)
        yield Output(end=True)

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def connect(host: str, port: int) -> PortDoor:
    """Connect. Raises AttachFailed."""
    try:
        async with asyncio.timeout(CONNECTS_WITHIN):
            return PortDoor(*await asyncio.open_connection(host, port))
    except (OSError, TimeoutError) as error:
        why = str(error) or f"no answer within {CONNECTS_WITHIN:g} s"
        raise AttachFailed(f"nothing answers on port {port}: {why}") from error


async def connect_to(pids: Iterable[int], port: int) -> PortDoor:
    """Connect to where one of these processes listens. Raises AttachFailed."""
    address = await asyncio.to_thread(listening_address, list(pids), port)
    if address is None:
        raise AttachFailed(f"nothing of it listens on port {port}")
    return await connect(address, port)


def listening_address(pids: Iterable[int], port: int) -> str | None:
    """Where these processes are reached on a port; None: none of them listens there."""
    wanted = dict(_listening(port))
    for pid in pids if wanted else ():
        for inode in _sockets(pid):
            if inode in wanted:
                return wanted[inode]
    return None


def _listening(port: int) -> list[tuple[str, str]]:
    """Inode and address of every socket that listens on a port of this host."""
    found = []
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(name, encoding="ascii") as table:
            for line in table:
                fields = line.split()
                if len(fields) > 9 and fields[3] == _LISTENS and fields[1].endswith(f":{port:04X}"):
                    found.append((fields[9], reached_at(fields[1].partition(":")[0])))
    return found


def reached_at(words: str) -> str:
    """The address of a row in /proc/net, whose words are in the order of this machine's bytes."""
    order = "<" if sys.byteorder == "little" else ">"
    values = [int(words[at : at + 8], 16) for at in range(0, len(words), 8)]
    packed = b"".join(struct.pack(f"{order}I", value) for value in values)
    address = ipaddress.ip_address(packed)
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return str(address)


def _sockets(pid: int) -> list[str]:
    """Inodes of the sockets that a process has open."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:["):
                    found.append(target[8:-1])
    return found
