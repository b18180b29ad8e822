"""Asking a replica how it is: one small HTTP request on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable
from typing import NamedTuple

TIMEOUT = 3.0
_MOST_BYTES = 64 * 1024


class Seen(NamedTuple):
    """An answer: HTTP status (0: none came), and in words what stands against it."""

    status: int
    kind: str = ""
    text: str = ""


Probe = Callable[[str, str, bool], Awaitable[Seen]]
"""Asks `HOST:PORT` for a path, over TLS or not."""


class Secure(NamedTuple):
    """How replicas here are spoken to over TLS, and the name that they show."""

    context: ssl.SSLContext
    server_name: str


def prober(secure: Callable[[], Secure | None]) -> Probe:
    """Asks replicas of this host; `secure` is looked at each time."""

    async def probe(address: str, path: str, over_tls: bool) -> Seen:
        found = secure() if over_tls else None
        if over_tls and found is None:
            return Seen(0, "silent", "it answers TLS alone, and this worker has no key for that")
        return await ask(address, path, found)

    return probe


async def ask(address: str, path: str, secure: Secure | None = None) -> Seen:
    """GET a path; never raises for what a replica does or leaves undone."""
    try:
        async with asyncio.timeout(TIMEOUT):
            return _seen(await _exchange(address, path, secure))
    except TimeoutError:
        return Seen(0, "silent", f"{path} was not answered in {TIMEOUT:g} s")
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        return Seen(0, "silent", f"{path} was not answered: {error}")


async def body(address: str, path: str) -> bytes:
    """What a GET without TLS brings; empty where it brings nothing that is good."""
    try:
        async with asyncio.timeout(TIMEOUT):
            head, _, found = (await _exchange(address, path, None)).partition(b"\r\n\r\n")
    except (TimeoutError, OSError, ValueError):
        return b""
    return found if head.split(None, 2)[1:2] == [b"200"] else b""


async def _exchange(address: str, path: str, secure: Secure | None) -> bytes:
    host, _, port = address.rpartition(":")
    context, name = secure or (None, None)
    reader, writer = await asyncio.open_connection(
        host.strip("[]"), int(port), limit=_MOST_BYTES, ssl=context, server_hostname=name
    )
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
