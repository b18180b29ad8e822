"""A replica of a few lines, as a process: `tiny_replica.py READY_FILE NAME`.

What it does is said by the JSON that it is asked: `sleep` seconds first, `die` in the middle,
answer with `status`, `stream` so many pieces, `break` after so many; `path` of a file to append to,
so that requests can be counted. Anything else is only measured.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

PIECE = 65_536


class Replica:
    def __init__(self, name: str) -> None:
        self._name = name
        self._held = 0
        self._ending = False

    def end(self) -> None:
        """What it has it answers; then it ends, and idle connections with it."""
        self._ending = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._ending and not self._held:
            os._exit(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await _head(reader):
                self._held += 1
                await self._answer(head, reader, writer)
                self._held -= 1
                self._end_if_idle()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(
        self,
        head: tuple[str, str, dict[str, str]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        method, path, headers = head
        body, size, digest = await _body(reader, headers)
        told = _told(body)
        if "path" in told:
            _count(told["path"], self._name)
        if told.get("die"):
            os._exit(9)
        await asyncio.sleep(told.get("sleep", 0))
        if "stream" in told:
            await self._stream(told, writer)
            return
        found = {
            "replica": self._name,
            "method": method,
            "path": path,
            "headers": headers,
            "size": size,
            "sha256": digest,
        }
        _reply(writer, int(told.get("status", 200)), json.dumps(found).encode(), self._name)
        await writer.drain()

    async def _stream(self, told: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"x" * PIECE
        for number in range(told["stream"]):
            if number == told.get("break"):
                os._exit(9)
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(told.get("pause", 0))
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _count(path: str, name: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{name}\n")


def _told(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _reply(writer: asyncio.StreamWriter, status: int, body: bytes, name: str) -> None:
    head = (
        f"HTTP/1.1 {status} Word\r\nContent-Type: application/json\r\nKeep-Alive: timeout=9\r\n"
        f"X-Own: {status}\r\nHatoba-Replica: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]] | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = raw.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    pairs = (line.split(":", 1) for line in lines if line)
    return method, path, {key.lower(): value.strip() for key, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> tuple[bytes, int, str]:
    """The first piece, the size, and the digest: a large body is never held whole."""
    first, size, sha = b"", 0, hashlib.sha256()
    async for piece in _pieces(reader, headers):
        first = first or piece
        size += len(piece)
        sha.update(piece)
    return first, size, sha.hexdigest()


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> Any:
    if "chunked" in headers.get("transfer-encoding", ""):
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return
    left = int(headers.get("content-length", 0))
    while left:
        piece = await reader.readexactly(min(left, PIECE))
        left -= len(piece)
        yield piece


async def main(ready: Path, name: str, port: int) -> None:
    replica = Replica(name)
    server = await asyncio.start_server(replica.serve, "127.0.0.1", port)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, replica.end)
    fresh = ready.with_suffix(".new")
    fresh.write_text(json.dumps({"port": server.sockets[0].getsockname()[1], "pid": os.getpid()}))
    fresh.replace(ready)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else 0))
