"""A registry of images that asks who one is, in front of one that does not."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientSession, web

_KEPT = ("content-type", "docker-content-digest", "docker-distribution-api-version", "etag")


@asynccontextmanager
async def locked_registry(host: str, behind: str, login: str) -> AsyncIterator[str]:
    """`HOST:PORT` at which who has the `login` (`USER:PASSWORD`) may pull what `behind` has."""
    wanted = f"Basic {base64.b64encode(login.encode()).decode()}"

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != wanted:
            challenge = {"WWW-Authenticate": 'Basic realm="images"'}
            refused = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
            return web.json_response(refused, status=401, headers=challenge)
        headers = {name: request.headers[name] for name in ("Accept",) if name in request.headers}
        async with session.request(
            request.method, f"http://{behind}{request.path_qs}", headers=headers
        ) as reply:
            kept = {name: reply.headers[name] for name in _KEPT if name in reply.headers}
            body = await reply.read()
            length = {"Content-Length": reply.headers.get("Content-Length", str(len(body)))}
            return web.Response(body=body, status=reply.status, headers=kept | length)

    async with ClientSession() as session:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, 0).start()
            yield f"{host}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
