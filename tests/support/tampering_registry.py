"""A registry whose large blobs arrive with one byte changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientSession, web


@asynccontextmanager
async def tampering_registry(behind: str, least: int) -> AsyncIterator[str]:
    """`HOST:PORT` that gives what `behind` has; of blobs with so many bytes the last one is
    another.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in ("Accept",) if name in request.headers}
        async with session.get(f"http://{behind}{request.path_qs}", headers=headers) as reply:
            body = bytearray(await reply.read())
            if "/blobs/" in request.path and len(body) >= least:
                body[-1] ^= 1
            kept = {"Content-Type": reply.headers.get("Content-Type", "")}
            return web.Response(body=bytes(body), status=reply.status, headers=kept)

    async with ClientSession() as session:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
