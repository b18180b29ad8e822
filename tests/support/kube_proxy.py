"""A proxy before a real API server: it counts calls and breaks them on demand, watches included."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

Handler = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]
_HOP = {"host", "connection", "transfer-encoding", "content-length", "content-encoding"}
EXPIRED = {
    "kind": "Status",
    "apiVersion": "v1",
    "status": "Failure",
    "message": "too old resource version: 1 (2)",
    "reason": "Expired",
    "code": 410,
}
THROTTLED = {
    "kind": "Status",
    "apiVersion": "v1",
    "status": "Failure",
    "message": "too many requests, please try again later",
    "reason": "TooManyRequests",
    "code": 429,
}


@dataclass
class KubeProxy:
    """One proxy. Calls are named `VERB RESOURCE`: `create jobs`, `watch pods`, `get jobs`."""

    upstream: str
    authority: ssl.SSLContext
    counts: Counter[str] = field(default_factory=Counter)
    cut: bool = False
    """Whether every connection ends without an answer."""
    hidden: set[str] = field(default_factory=set)
    endpoint: str = ""
    watching: Counter[str] = field(default_factory=Counter)
    """Watches that are open now, by resource."""
    most_watching: Counter[str] = field(default_factory=Counter)
    _faults: dict[str, deque[Handler]] = field(default_factory=dict)
    _session: aiohttp.ClientSession | None = None
    _late: set[asyncio.Task[Any]] = field(default_factory=set)
    _streams: set[asyncio.Event] = field(default_factory=set)
    _broken: set[asyncio.Event] = field(default_factory=set)

    @classmethod
    @asynccontextmanager
    async def running(cls, upstream: str, authority: str) -> AsyncIterator[KubeProxy]:
        """One that listens on loopback until it is left; `authority` is the PEM of the server's."""
        context = await asyncio.to_thread(ssl.create_default_context, cadata=authority)
        proxy = cls(upstream, context)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", proxy._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        async with aiohttp.ClientSession(connector=connector, read_bufsize=2**21) as session:
            proxy._session = session
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            proxy.endpoint = f"http://{host}:{port}"
            try:
                yield proxy
            finally:
                proxy.end_watches()
                for task in proxy._late:
                    task.cancel()
                await runner.cleanup()

    # -- faults ---------------------------------------------------------------------------------

    def lose_reply(self, call: str) -> None:
        """The next one takes effect, and no answer comes."""

        async def lost(request: web.Request, body: bytes) -> web.StreamResponse:
            await self.forward(request, body)
            return _dropped(request)

        self._next(call, lost)

    def delay_reply(self, call: str, seconds: float) -> None:
        """The next one takes effect, and is answered so much later."""

        async def delayed(request: web.Request, body: bytes) -> web.StreamResponse:
            reply = await self.forward(request, body)
            await asyncio.sleep(seconds)
            return reply

        self._next(call, delayed)

    def double(self, call: str) -> None:
        """The next one arrives twice; the first answer counts."""

        async def twice(request: web.Request, body: bytes) -> web.StreamResponse:
            reply = await self.forward(request, body)
            await self.forward(request, body)
            return reply

        self._next(call, twice)

    def land_late(self, call: str, seconds: float) -> None:
        """The next one is not answered, and takes effect so much later."""

        async def late(request: web.Request, body: bytes) -> web.StreamResponse:
            loop = asyncio.get_running_loop()
            self._late.add(loop.create_task(self._later(request, body, seconds)))
            await asyncio.sleep(3600)
            raise AssertionError("nobody waits an hour")

        self._next(call, late)

    def refuse(self, call: str, told: dict[str, Any], after: int | None = None) -> None:
        """The next one is answered with this Status."""

        async def refused(request: web.Request, body: bytes) -> web.StreamResponse:
            headers = {"Retry-After": str(after)} if after is not None else {}
            return web.json_response(told, status=told["code"], headers=headers)

        self._next(call, refused)

    def babble(self, call: str) -> None:
        """The next one is answered with what is no JSON."""

        async def babbled(request: web.Request, body: bytes) -> web.StreamResponse:
            return web.Response(text="<html>Welcome to the portal</html>", content_type="text/html")

        self._next(call, babbled)

    def end_watches(self) -> None:
        """All watches that are open end without a word."""
        for stream in self._streams:
            stream.set()

    def break_watches(self) -> None:
        """All watches that are open break in the middle."""
        self._broken |= self._streams
        self.end_watches()

    def _next(self, call: str, handler: Handler) -> None:
        self._faults.setdefault(call, deque()).append(handler)

    # -- passing on -----------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = call_of(request)
        self.counts[call] += 1
        if self.cut:
            return _dropped(request)
        waiting = self._faults.get(call)
        if waiting:
            return await waiting.popleft()(request, body)
        if call.startswith(("watch ", "follow ")):
            return await self._stream(request, call.partition(" ")[2])
        return await self.forward(request, body)

    async def forward(self, request: web.Request, body: bytes) -> web.Response:
        """Have the API server answer."""
        async with self._ask(request, body) as reply:
            headers = {key: text for key, text in reply.headers.items() if key.lower() not in _HOP}
            content = await reply.read()
            return web.Response(body=content, status=reply.status, headers=headers)

    def _ask(self, request: web.Request, body: bytes) -> aiohttp.client._RequestContextManager:
        assert self._session is not None
        headers = {key: text for key, text in request.headers.items() if key.lower() not in _HOP}
        timeout = aiohttp.ClientTimeout(total=None)
        url = self.upstream + request.raw_path
        return self._session.request(
            request.method, url, data=body, headers=headers, timeout=timeout
        )

    async def _stream(self, request: web.Request, resource: str) -> web.StreamResponse:
        over = asyncio.Event()
        self._streams.add(over)
        self.watching[resource] += 1
        self.most_watching |= self.watching
        try:
            async with self._ask(request, b"") as reply:
                kept = {k: text for k, text in reply.headers.items() if k.lower() not in _HOP}
                response = web.StreamResponse(status=reply.status, headers=kept)
                await response.prepare(request)
                await self._pass_on(reply, response, over)
                if over in self._broken and request.transport is not None:
                    request.transport.abort()
                if reply.connection is not None and reply.connection.transport is not None:
                    # A polite end of TLS would outlive the test.
                    reply.connection.transport.abort()
                return response
        finally:
            self.watching[resource] -= 1
            self._streams.discard(over)
            self._broken.discard(over)

    async def _pass_on(
        self, reply: aiohttp.ClientResponse, response: web.StreamResponse, over: asyncio.Event
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            ended = tasks.create_task(over.wait(), name="ended")
            copied = tasks.create_task(_copy(reply, response), name="copy")
            await asyncio.wait([ended, copied], return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            copied.cancel()

    async def _later(self, request: web.Request, body: bytes, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.forward(request, body)


async def _copy(reply: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    with suppress(ConnectionError, aiohttp.ClientError):
        async for piece in reply.content.iter_any():
            await response.write(piece)


def _dropped(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def call_of(request: web.Request) -> str:
    """What is called, as rights are named: a verb and a resource."""
    parts = request.path.strip("/").split("/")
    at = parts.index("namespaces") + 2 if "namespaces" in parts[:-2] else len(parts) - 1
    resource, named = parts[at], len(parts) > at + 1
    if parts[-1] == "log":
        return "follow log" if request.query.get("follow") == "true" else "get log"
    if request.query.get("watch") == "true":
        return f"watch {resource}"
    verbs = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
    verb = verbs.get(request.method) or ("get" if named else "list")
    return f"{verb} {resource}"
