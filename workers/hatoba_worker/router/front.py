"""The listening side: connections that must say something soon, and the router's own pages."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from hatoba_worker.router import replies

OWN = "/-/"
HEADERS_WITHIN = 15.0
"""Seconds within which a new connection's first request has to have its headers."""
KEPT = 75.0
LINGER = 2.0
DRAIN = 4.0
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Front(web.Server):
    """Hands every request to `handler`; clients that hang up cancel it."""

    def __init__(self, handler: Handler) -> None:
        self._timers: dict[RequestHandler, asyncio.TimerHandle] = {}
        self._handler = handler
        super().__init__(
            self._first,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=KEPT,
            lingering_time=LINGER,
        )

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        """See web.Server."""
        super().connection_made(handler, transport)
        loop = asyncio.get_running_loop()
        self._timers[handler] = loop.call_later(HEADERS_WITHIN, _hang_up, transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """See web.Server."""
        self._heard_of(handler)
        super().connection_lost(handler, exc)

    async def _first(self, request: web.BaseRequest) -> web.StreamResponse:
        self._heard_of(request.protocol)
        return await self._handler(request)

    def _heard_of(self, handler: Any) -> None:
        if timer := self._timers.pop(handler, None):
            timer.cancel()


def _hang_up(transport: asyncio.Transport) -> None:
    body = json.dumps(
        {"error": f"no request came within {HEADERS_WITHIN:g} s", "kind": "client_too_slow"}
    ).encode()
    transport.write(_LATE % (len(body), body))
    transport.close()


def bind(host: str, port: int) -> socket.socket:
    """Have connections wait at a port from now on; raises OSError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


@asynccontextmanager
async def listening(
    front: Front, bound: socket.socket, tls: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Answer inside the `async with`; at its end what was begun has four seconds."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(front, sock=bound, ssl=tls)
    try:
        yield
    finally:
        server.close()
        front.pre_shutdown()
        await front.shutdown(DRAIN)


class OwnPages:
    """`/-/healthz`, and `/-/metrics` for this machine; `state` says how the router is."""

    def __init__(self, registry: CollectorRegistry, state: Callable[[], dict[str, Any]]) -> None:
        self._registry = registry
        self._state = state

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One of them, or 404."""
        page = request.raw_path.partition("?")[0]
        if page == "/-/healthz":
            return web.json_response(self._state())
        if page == "/-/metrics" and _is_near(request.remote):
            # The process collector reads /proc.
            body = await asyncio.to_thread(generate_latest, self._registry)
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
        return replies.no_such_path(page).reply({})


def _is_near(peer: str | None) -> bool:
    try:
        return ipaddress.ip_address(peer or "").is_loopback
    except ValueError:
        return False
