"""POSTs over HTTP/1.1 with as little of its own as Python allows; in a process of its own.

`http_load.py HOST:PORT PATH TOKEN BODY COUNT AT_ONCE` prints the rate and two latencies as JSON.
Any reply but 200 ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from array import array

from bench_statistics import percentile


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it was answered."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._began = 0.0
        self._left = -1
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Count what is missing of the reply, without looking at it."""
        if self._left < 0:
            data = self._head = self._head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            self._left = self._length(data[:end]) - (len(data) - end - 4)
        else:
            self._left -= len(data)
        if self._left == 0:
            self._load.times.append(time.perf_counter() - self._began)
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody may hang up before the end."""
        self._load.fail("the connection was closed")

    def _length(self, head: bytes) -> int:
        if head[9:12] != b"200":
            self._load.fail(repr(self._head[:500]))
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        return int(lower[at:].split(b"\r", 1)[0])

    def _ask(self) -> None:
        self._left, self._head = -1, b""
        if not self._load.take():
            return
        assert self._transport is not None
        self._began = time.perf_counter()
        self._transport.write(self._load.request)


class Load:
    """So many requests, so many at once."""

    def __init__(self, request: bytes, count: int) -> None:
        self.request = request
        self.times = array("d")
        self._count = count
        self._left = count
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self) -> bool:
        """Whether there is another one to ask."""
        if len(self.times) == self._count and not self._over.done():
            self._over.set_result(None)
        self._left -= 1
        return self._left >= 0

    def fail(self, why: str) -> None:
        """Give up."""
        if not self._over.done():
            self._over.set_exception(RuntimeError(why))

    async def run(self, host: str, port: int, at_once: int) -> dict[str, float]:
        """Requests a second; median and 99th percentile in ms."""
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        opened = [
            await loop.create_connection(lambda: Caller(self), host, port) for _ in range(at_once)
        ]
        await self._over
        seconds = time.perf_counter() - began
        for transport, _ in opened:
            transport.abort()
        return {
            "rate": self._count / seconds,
            "p50": percentile(self.times, 0.5) * 1e3,
            "p99": percentile(self.times, 0.99) * 1e3,
        }


async def main(arguments: list[str]) -> None:
    """See the module."""
    address, path, token, text, count, at_once = arguments
    host, port = address.split(":")
    body = text.encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    load = Load(head.encode() + body, int(count))
    print(json.dumps(await load.run(host, int(port), int(at_once))))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
