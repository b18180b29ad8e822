"""A bucket in front of another one, at which credentials end while objects are read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import ClientSession, web

TOKEN = "x-amz-security-token"
PIECE = 16 << 10
_ENDED = "<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"


@dataclass
class ExpiringBucket:
    """`expires_at` are counts of bytes sent after which the credentials that are shown next are
    over, once each.
    """

    behind: str
    session: ClientSession
    expires_at: list[int] = field(default_factory=list)
    sent: int = 0
    refusals: int = 0
    port: int = 0
    _over: set[str] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """An object, or that the credentials are over."""
        token = request.headers[TOKEN]
        if self.expires_at and self.sent >= self.expires_at[0]:
            self.expires_at.pop(0)
            self._over.add(token)
        if token in self._over:
            self.refusals += 1
            return web.Response(status=403, text=_ENDED, content_type="application/xml")
        return await self._object(request)

    async def _object(self, request: web.Request) -> web.StreamResponse:
        asked = {name: request.headers[name] for name in ("Range",) if name in request.headers}
        url = f"{self.behind}{request.path_qs}"
        async with self.session.get(url, headers=asked) as found:
            reply = web.StreamResponse(status=found.status)
            reply.content_length = found.content_length
            await reply.prepare(request)
            async for piece in found.content.iter_chunked(PIECE):
                await reply.write(piece)
                self.sent += len(piece)
            return reply


@asynccontextmanager
async def expiring_bucket(behind: str) -> AsyncIterator[ExpiringBucket]:
    """One in front of the S3 at this endpoint."""
    async with ClientSession() as session:
        made = ExpiringBucket(behind, session)
        app = web.Application()
        app.router.add_get("/{key:.*}", made.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            made.port = runner.addresses[0][1]
            yield made
        finally:
            await runner.cleanup()
