"""AWS IoT's credential provider: credentials for whoever shows a certificate of its authority."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from authority import DAY, Authority

HOST = "localhost"
HOUR = dt.timedelta(hours=1)


@dataclass
class CredentialProvider:
    """What was asked for is kept as `ALIAS THING`. `clients` (PEM) signed devices' certificates."""

    authority: Authority
    clients: str
    lasts: dt.timedelta = HOUR
    asked: list[str] = field(default_factory=list)
    port: int = 0

    async def give(self, request: web.Request) -> web.Response:
        """Credentials."""
        thing = request.headers["x-amzn-iot-thingname"]
        self.asked.append(f"{request.match_info['alias']} {thing}")
        until = dt.datetime.now(dt.UTC) + self.lasts
        given = {
            "accessKeyId": "hatoba-test",
            "secretAccessKey": "hatoba-test-secret",
            "sessionToken": f"token-{len(self.asked)}",
            "expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return web.json_response({"credentials": given})

    def tls(self) -> ssl.SSLContext:
        """It asks for a certificate; blocks."""
        today = dt.datetime.now(dt.UTC).replace(microsecond=0)
        pair = self.authority.pair("credentials.pem", HOST, today - DAY, today + DAY)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair)
        context.load_verify_locations(cadata=self.clients)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


@asynccontextmanager
async def provider(made: CredentialProvider, tls: ssl.SSLContext) -> AsyncIterator[None]:
    """It answers until it is left."""
    app = web.Application()
    app.router.add_get("/role-aliases/{alias}/credentials", made.give)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        made.port = runner.addresses[0][1]
        yield
    finally:
        await runner.cleanup()
