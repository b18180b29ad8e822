"""The proxy itself: what is ordered of it is done to the next call of that name."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, Self

import aiohttp
from aiohttp import web
from yarl import URL

from hatoba_plugins.conformance.proxy.dialects import Call, Dialect, Refusal

Json = dict[str, Any]
Rewrite = Callable[[Any, str, Json, Json], Awaitable[None]]
"""Changes a reply in place: proxy, operation, request, reply."""
Handler = Callable[[web.Request, Call], Coroutine[Any, Any, web.StreamResponse]]
MOST_BYTES = 2**26
_UNIX = "unix://"
_HOP = {"host", "connection", "transfer-encoding", "content-length", "content-encoding"}
_PORTAL = Refusal(200, "<html>Welcome to the portal</html>", {"Content-Type": "text/html"})


class _Armed(NamedTuple):
    """What becomes of the next call of a name that it is meant for."""

    handler: Handler
    meant: Callable[[Call], bool]


class _Stream:
    """An answer without an end, as it is passed on."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.broken = False
        self.frozen = False


@dataclass
class FaultProxy:
    """One proxy. Orders are for the next call of that name, and wait for it in their order."""

    upstream: str
    dialect: Dialect
    endpoint: str = ""
    """Where it listens: an address, or `unix://` and a path."""
    rewrite: list[Rewrite] = field(default_factory=list)
    """What is done to each JSON reply of 200, in order."""
    counts: Counter[str] = field(default_factory=Counter)
    """Calls that were made, by name; those that met a fault too."""
    streaming: Counter[str] = field(default_factory=Counter)
    """Streams that are open now, by name."""
    most_streaming: Counter[str] = field(default_factory=Counter)
    cut: bool = False
    """Whether every connection ends without an answer."""
    silent: bool = False
    """Whether every call is taken and never answered, as by a link that is half open."""
    page_size: int = 0
    """Listings are asked for by pages of so many; 0: as they come."""
    met: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a call has met the fault that was ordered last."""
    _faults: defaultdict[str, list[_Armed]] = field(default_factory=lambda: defaultdict(list))
    _session: aiohttp.ClientSession | None = None
    _under_way: set[asyncio.Task[Any]] = field(default_factory=set)
    _streams: set[_Stream] = field(default_factory=set)

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        upstream: str,
        dialect: Dialect,
        *,
        trust: ssl.SSLContext | None = None,
        serve: ssl.SSLContext | None = None,
        at: str = "127.0.0.1",
    ) -> AsyncIterator[Self]:
        """One that listens until it is left, on an address or at `unix://PATH`.

        `upstream` may be `http://`, `https://` (`trust` says whom to believe) or `unix://PATH`;
        with `serve` the proxy speaks TLS itself.
        """
        proxy = cls(upstream, dialect)
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_route("*", "/{path:.*}", proxy._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        connector = _connector(upstream, trust)
        async with aiohttp.ClientSession(connector=connector, read_bufsize=2**21) as session:
            proxy._session = session
            await runner.setup()
            try:
                proxy.endpoint = await _listen(runner, at, serve)
                yield proxy
            finally:
                proxy.end_streams()
                for task in proxy._under_way:
                    task.cancel()
                await runner.cleanup()

    # -- faults of one call ---------------------------------------------------------------------

    def lose_reply(self, operation: str) -> None:
        """The next one takes effect, and no answer comes."""

        async def lost(request: web.Request, call: Call) -> web.StreamResponse:
            await self.forward(call)
            return _dropped(request)

        self.order(operation, lost)

    def delay_reply(self, operation: str, seconds: float) -> None:
        """The next one takes effect, and is answered so much later."""

        async def delayed(request: web.Request, call: Call) -> web.StreamResponse:
            reply = await self.forward(call)
            await asyncio.sleep(seconds)
            return reply

        self.order(operation, delayed)

    def double(self, operation: str) -> None:
        """The next one arrives twice; the first answer counts."""

        async def twice(request: web.Request, call: Call) -> web.StreamResponse:
            reply = await self.forward(call)
            await self.forward(call)
            return reply

        self.order(operation, twice)

    def land_late(self, operation: str, seconds: float) -> None:
        """The next one is not answered, and takes effect so much later, whoever still waits."""

        async def late(request: web.Request, call: Call) -> web.StreamResponse:
            self._begin(self._later(call, seconds))
            await _never()

        self.order(operation, late)

    def hang(self, operation: str) -> None:
        """The next one is taken and never answered, and has no effect."""

        async def hanging(request: web.Request, call: Call) -> web.StreamResponse:
            await _never()

        self.order(operation, hanging)

    def change(self, operation: str, changed: Callable[[Json], Json]) -> None:
        """The next one arrives with another JSON body than it was sent with."""

        async def other(request: web.Request, call: Call) -> web.StreamResponse:
            body = json.dumps(changed(json.loads(call.body))).encode()
            return await self.forward(Call(call.method, call.target, call.headers, body))

        self.order(operation, other)

    def refuse(
        self, operation: str, refusal: Refusal, meant: Callable[[Call], bool] = lambda _: True
    ) -> None:
        """The next one that is meant is answered with this, and has no effect."""

        async def refused(request: web.Request, call: Call) -> web.StreamResponse:
            return _answer(refusal)

        self.order(operation, refused, meant)

    def throttle(self, operation: str, after: int | None = None) -> None:
        """The next one comes too soon; `after`: seconds that Retry-After tells."""
        self.refuse(operation, self.dialect.throttled.after(after))

    def overload(self, operation: str, after: int | None = None) -> None:
        """The next one is answered with 503; `after`: seconds that Retry-After tells."""
        self.refuse(operation, self.dialect.unavailable.after(after))

    def expire_page(self, operation: str) -> None:
        """The next one that asks for a further page is told that its token is too old."""
        self.refuse(operation, self.dialect.page_expired, self.dialect.turns_page)

    def disguise_denial(self, operation: str) -> None:
        """The next one is denied by a 404 of somebody who is not the component."""
        self.refuse(operation, self.dialect.disguised)

    def babble(self, operation: str) -> None:
        """The next one is answered with 200 and what is no JSON."""
        self.refuse(operation, _PORTAL)

    def order(
        self,
        operation: str,
        handler: Handler,
        meant: Callable[[Call], bool] = lambda _: True,
    ) -> None:
        """The next one of this name that is meant is handled so."""
        self.met.clear()
        self._faults[operation].append(_Armed(handler, meant))

    # -- faults of streams ----------------------------------------------------------------------

    def end_streams(self) -> None:
        """All that are open end without a word."""
        for stream in self._streams:
            stream.over.set()

    def break_streams(self) -> None:
        """All that are open break in the middle."""
        for stream in self._streams:
            stream.broken = True
        self.end_streams()

    def freeze_streams(self) -> None:
        """All that are open stay so and tell nothing any more, as when a link is half open."""
        for stream in self._streams:
            stream.frozen = True

    # -- passing on -----------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = Call(request.method, request.raw_path, request.headers.copy(), body)
        operation = self.dialect.operation(call)
        self.counts[operation] += 1
        if self.cut:
            return _dropped(request)
        if self.silent:
            await _never()
        if self.page_size:
            call = self.dialect.in_pages_of(call, self.page_size)
        if armed := self._due(operation, call):
            self.met.set()
            # What was ordered is carried out, whoever still waits for an answer.
            return await asyncio.shield(self._begin(armed.handler(request, call)))
        if self.dialect.streams(call):
            return await self._stream(request, call)
        return await self.forward(call)

    def _due(self, operation: str, call: Call) -> _Armed | None:
        waiting = self._faults[operation]
        found = next((one for one in waiting if one.meant(call)), None)
        if found is not None:
            waiting.remove(found)
        return found

    async def forward(self, call: Call) -> web.Response:
        """Have the component answer, and rewrite what it says. It gets the call even when whoever
        made it gives up meanwhile.
        """
        return await asyncio.shield(self._begin(self._forward(call)))

    async def _forward(self, call: Call) -> web.Response:
        async with self._ask(call) as reply:
            headers, content = _kept(reply), await reply.read()
        if reply.status == 200 and self.rewrite and content.startswith(b"{"):
            content = await self._rewritten(call, content)
        return web.Response(body=content, status=reply.status, headers=headers)

    async def _rewritten(self, call: Call, content: bytes) -> bytes:
        told, asked = json.loads(content), json.loads(call.body or b"{}")
        for rewrite in self.rewrite:
            await rewrite(self, self.dialect.operation(call), asked, told)
        return json.dumps(told).encode()

    def _ask(self, call: Call) -> aiohttp.client._RequestContextManager:
        assert self._session is not None
        headers = {key: text for key, text in call.headers.items() if key.lower() not in _HOP}
        base = "http://component" if self.upstream.startswith(_UNIX) else self.upstream
        url = URL(base + call.target, encoded=True)
        timeout = aiohttp.ClientTimeout(total=None)
        return self._session.request(
            call.method, url, data=call.body, headers=headers, timeout=timeout
        )

    async def _later(self, call: Call, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.forward(call)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Work that goes on when its caller is gone; it ends with the proxy."""
        task = asyncio.get_running_loop().create_task(work, name="proxied")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def _stream(self, request: web.Request, call: Call) -> web.StreamResponse:
        stream, operation = _Stream(), self.dialect.operation(call)
        self._streams.add(stream)
        self.streaming[operation] += 1
        self.most_streaming |= self.streaming
        try:
            async with self._ask(call) as reply:
                response = web.StreamResponse(status=reply.status, headers=_kept(reply))
                try:
                    await response.prepare(request)
                    await _pass_on(reply, response, stream)
                finally:
                    _cut_off(reply)
                if stream.broken and request.transport is not None:
                    request.transport.abort()
                return response
        finally:
            self.streaming[operation] -= 1
            self._streams.discard(stream)


def _cut_off(reply: aiohttp.ClientResponse) -> None:
    """End a stream's connection at once: a polite end of TLS would outlive the test."""
    if reply.connection is not None and reply.connection.transport is not None:
        reply.connection.transport.abort()


async def _pass_on(
    reply: aiohttp.ClientResponse, response: web.StreamResponse, stream: _Stream
) -> None:
    async with asyncio.TaskGroup() as tasks:
        ended = tasks.create_task(stream.over.wait(), name="ended")
        copied = tasks.create_task(_copy(reply, response, stream), name="copy")
        await asyncio.wait([ended, copied], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        copied.cancel()


async def _copy(
    reply: aiohttp.ClientResponse, response: web.StreamResponse, stream: _Stream
) -> None:
    with suppress(ConnectionError, aiohttp.ClientError):
        async for piece in reply.content.iter_any():
            if stream.frozen:
                await _never()
            await response.write(piece)


def _connector(upstream: str, trust: ssl.SSLContext | None) -> aiohttp.BaseConnector:
    if upstream.startswith(_UNIX):
        return aiohttp.UnixConnector(upstream.removeprefix(_UNIX), limit=0)
    # Ends of TLS that are still under way are cut short when the connector is closed.
    tidy = sys.version_info < (3, 12, 7)
    return aiohttp.TCPConnector(
        ssl=trust if trust is not None else True, limit=0, enable_cleanup_closed=tidy
    )


async def _listen(runner: web.AppRunner, at: str, serve: ssl.SSLContext | None) -> str:
    if at.startswith(_UNIX):
        await web.UnixSite(runner, at.removeprefix(_UNIX), ssl_context=serve).start()
        return at
    await web.TCPSite(runner, at, 0, ssl_context=serve).start()
    host, port = runner.addresses[0][:2]
    return f"{'https' if serve else 'http'}://{host}:{port}"


def _kept(reply: aiohttp.ClientResponse) -> dict[str, str]:
    return {key: text for key, text in reply.headers.items() if key.lower() not in _HOP}


def _answer(refusal: Refusal) -> web.Response:
    if isinstance(refusal.body, str):
        return web.Response(text=refusal.body, status=refusal.status, headers=refusal.headers)
    return web.json_response(dict(refusal.body), status=refusal.status, headers=refusal.headers)


def _dropped(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _never() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody sets it")
