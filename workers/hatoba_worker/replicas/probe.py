"""Asking a replica how it is: one small HTTP request on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import NamedTuple

TIMEOUT = 3.0
_MOST_BYTES = 64 * 1024


class Seen(NamedTuple):
    """An answer: HTTP status (0: none came), and in words what stands against it."""

    status: int
    kind: str = ""
    text: str = ""


Probe = Callable[[str, str], Awaitable[Seen]]
"""Asks `HOST:PORT` for a path."""


async def ask(address: str, path: str) -> Seen:
    """GET a path; never raises for what a replica does or leaves undone."""
    try:
        async with asyncio.timeout(TIMEOUT):
            return _seen(await _exchange(address, path))
    except TimeoutError:
        return Seen(0, "silent", f"{path} was not answered in {TIMEOUT:g} s")
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        return Seen(0, "silent", f"{path} was not answered: {error}")


async def _exchange(address: str, path: str) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), limit=_MOST_BYTES)
    try:
        head = f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        answer = bytearray()
        while len(answer) < _MOST_BYTES and (piece := await reader.read(_MOST_BYTES)):
            answer += piece
        return bytes(answer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _seen(answer: bytes) -> Seen:
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError("the answer is not HTTP")
    status = int(words[1])
    try:
        said = json.loads(body)
        return Seen(status, str(said.get("kind", "")), str(said.get("error", "")))
    except (ValueError, AttributeError):
        return Seen(status)
