"""A proxy between a backend and an emulator of AWS: it counts, breaks and completes what passes.

What moto leaves out of its answers (exit codes, reasons) is added here, as AWS has it; what goes
wrong on networks and at AWS is made to go wrong on demand.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

Json = dict[str, Any]
Rewrite = Callable[["AwsProxy", str, Json, Json], Awaitable[None]]
"""Changes a reply in place: proxy, operation, request, reply."""
Handler = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]
THROTTLED = {"__type": "TooManyRequestsException", "message": "Too Many Requests"}
_HOP = {"host", "connection", "transfer-encoding", "content-length", "content-encoding"}


@dataclass
class AwsProxy:
    """One proxy. Operations are the last part of a path, in small letters: `submitjob`."""

    upstream: str
    rewrite: list[Rewrite] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    cut: bool = False
    """Whether every connection ends without an answer."""
    met: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a call has met the fault that was ordered last."""
    _faults: dict[str, deque[Handler]] = field(default_factory=dict)
    _session: aiohttp.ClientSession | None = None
    _late: set[asyncio.Task[Any]] = field(default_factory=set)
    endpoint: str = ""

    @classmethod
    @asynccontextmanager
    async def running(cls, upstream: str) -> AsyncIterator[AwsProxy]:
        """One that listens on loopback until it is left."""
        proxy = cls(upstream)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", proxy._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        async with aiohttp.ClientSession(auto_decompress=True) as session:
            proxy._session = session
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            proxy.endpoint = f"http://{host}:{port}"
            try:
                yield proxy
            finally:
                for task in proxy._late:
                    task.cancel()
                await runner.cleanup()

    # -- faults ---------------------------------------------------------------------------------

    def lose_reply(self, operation: str) -> None:
        """The next one takes effect, and no answer comes."""
        self._next(operation, self._lost)

    def delay_reply(self, operation: str, seconds: float) -> None:
        """The next one takes effect, and is answered so much later."""

        async def delayed(request: web.Request, body: bytes) -> web.StreamResponse:
            reply = await self.forward(request, body)
            await asyncio.sleep(seconds)
            return reply

        self._next(operation, delayed)

    def double(self, operation: str) -> None:
        """The next one arrives twice."""

        async def twice(request: web.Request, body: bytes) -> web.StreamResponse:
            reply = await self.forward(request, body)
            await self.forward(request, body)
            return reply

        self._next(operation, twice)

    def land_late(self, operation: str, seconds: float) -> None:
        """The next one is not answered, and takes effect so much later."""

        async def late(request: web.Request, body: bytes) -> web.StreamResponse:
            loop = asyncio.get_running_loop()
            self._late.add(loop.create_task(self._later(request, body, seconds)))
            await asyncio.sleep(3600)
            raise AssertionError("nobody waits an hour")

        self._next(operation, late)

    def refuse(self, operation: str, status: int, error: Json, after: int | None = None) -> None:
        """The next one is answered with this error."""

        async def refused(request: web.Request, body: bytes) -> web.StreamResponse:
            headers = {"x-amzn-errortype": str(error["__type"])}
            if after is not None:
                headers["Retry-After"] = str(after)
            return web.json_response(error, status=status, headers=headers)

        self._next(operation, refused)

    def throttle(self, operation: str, after: int | None = None) -> None:
        """The next one comes too soon."""
        self.refuse(operation, 429, THROTTLED, after)

    def babble(self, operation: str) -> None:
        """The next one is answered with what is no JSON."""

        async def babbled(request: web.Request, body: bytes) -> web.StreamResponse:
            return web.Response(text="<html>Welcome to the portal</html>", content_type="text/html")

        self._next(operation, babbled)

    def _next(self, operation: str, handler: Handler) -> None:
        self.met.clear()
        self._faults.setdefault(operation, deque()).append(handler)

    # -- passing on -----------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        operation = operation_of(request)
        self.counts[operation] += 1
        if self.cut:
            return await self._dropped(request)
        waiting = self._faults.get(operation)
        if waiting:
            self.met.set()
            return await waiting.popleft()(request, body)
        return await self.forward(request, body)

    async def forward(self, request: web.Request, body: bytes) -> web.Response:
        """Have the emulator answer, and complete what it says."""
        status, headers, content = await self._ask(request, body)
        if status == 200 and self.rewrite and content.startswith(b"{"):
            reply, asked = json.loads(content), json.loads(body or b"{}")
            for rewrite in self.rewrite:
                await rewrite(self, operation_of(request), asked, reply)
            content = json.dumps(reply).encode()
        return web.Response(body=content, status=status, headers=headers)

    async def _ask(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        assert self._session is not None
        headers = {key: text for key, text in request.headers.items() if key.lower() not in _HOP}
        url = self.upstream + request.raw_path
        async with self._session.request(request.method, url, data=body, headers=headers) as reply:
            kept = {key: text for key, text in reply.headers.items() if key.lower() not in _HOP}
            return reply.status, kept, await reply.read()

    async def call(self, path: str, body: Json, like: str = "batch") -> Json:
        """A call of the proxy's own, as a service's client would make it."""
        assert self._session is not None
        credential = f"hatoba-test/20260101/us-east-1/{like}/aws4_request"
        signed = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0"
        headers = {"Authorization": signed}
        async with self._session.post(self.upstream + path, json=body, headers=headers) as reply:
            text = await reply.text()
            assert reply.status == 200, text
            answer: Json = json.loads(text or "{}")
            return answer

    async def _lost(self, request: web.Request, body: bytes) -> web.StreamResponse:
        await self.forward(request, body)
        return await self._dropped(request)

    async def _dropped(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response(status=500)

    async def _later(self, request: web.Request, body: bytes, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.forward(request, body)


def operation_of(request: web.Request) -> str:
    """What is called: the path's end, or the target of services that have one path only."""
    target = request.headers.get("X-Amz-Target", "")
    if target:
        return target.rpartition(".")[2].lower()
    parts = request.path.strip("/").split("/")
    return "tags" if "tags" in parts else parts[-1].lower()
