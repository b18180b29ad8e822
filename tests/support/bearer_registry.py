"""A registry of images that opens to tokens of a service of its own, as public ones do."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from pushed_images import CONFIG, LAYER, MANIFEST, digest_of

from hatoba_worker.agent.registry import Reference

NAME = "edge"
SCOPE = f"repository:{NAME}:pull"
SERVICE = "images"
PIECE = 16 << 10


@dataclass
class BearerRegistry:
    """One name's content by digest. A token opens it until so many bytes of blobs were sent since
    it was given; `login` is `USER:PASSWORD`, empty: whoever asks gets one.
    """

    login: str = ""
    called: str = "token"
    """The field in which a token is given."""
    lasts: int = 1 << 40
    tokens: int = 0
    port: int = 0
    _left: int = 0
    _content: dict[str, bytes] = field(default_factory=dict)

    def image(self, layer: bytes, architecture: str) -> Reference:
        """Have an image of one layer."""
        config = json.dumps({"architecture": architecture, "os": "linux"}).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._part(config, CONFIG),
            "layers": [self._part(layer, LAYER)],
        }
        told = self._part(json.dumps(manifest).encode(), MANIFEST)
        return Reference(f"127.0.0.1:{self.port}", NAME, str(told["digest"]))

    def _part(self, data: bytes, media_type: str) -> dict[str, object]:
        digest = digest_of(data)
        self._content[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    async def give(self, request: web.Request) -> web.Response:
        """A token."""
        told = (request.query.get("service"), request.query.get("scope"))
        wanted = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        shown = request.headers.get("Authorization", "")
        if told != (SERVICE, SCOPE) or (self.login and shown != wanted):
            return web.json_response({"errors": [{"code": "UNAUTHORIZED"}]}, status=401)
        self.tokens += 1
        self._left = self.lasts
        return web.json_response({self.called: f"token-{self.tokens}"})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """A manifest or a blob from an offset on."""
        shown = request.headers.get("Authorization")
        if self._left <= 0 or shown != f"Bearer token-{self.tokens}":
            realm = f"http://{request.host}/token"
            challenge = f'Bearer realm="{realm}",service="{SERVICE}",scope="{SCOPE}"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        data = self._content[request.match_info["digest"]]
        start = request.http_range.start or 0
        reply = web.StreamResponse(status=206 if start else 200)
        reply.content_length = len(data) - start
        await reply.prepare(request)
        for at in range(start, len(data), PIECE):
            await reply.write(data[at : at + PIECE])
            self._left -= min(PIECE, len(data) - at)
        return reply


@asynccontextmanager
async def bearer_registry(made: BearerRegistry) -> AsyncIterator[BearerRegistry]:
    """It answers, in plain text, until it is left."""
    app = web.Application()
    app.router.add_get("/token", made.give)
    app.router.add_get(f"/v2/{NAME}/{{kind}}/{{digest}}", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.port = runner.addresses[0][1]
        yield made
    finally:
        await runner.cleanup()
