"""AWS IoT's port for MQTT before ministack's broker, which has none here: TLS that asks for a
certificate, and lets in whose is active and attached to a thing, as AWS does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from authority import DAY, Authority
from mqtt_client import HOST as AWS_HOST

PIECE = 64 * 1024
HOST = "localhost"
LetIn = Callable[[str], bool]


class IotFront:
    """One port. `let_in` is asked about a certificate by its id, in a thread."""

    def __init__(self, root: Path, emulator_at: str, let_in: LetIn) -> None:
        self.authority = Authority(root, dt.datetime.now(dt.UTC).replace(microsecond=0))
        self.port = 0
        self.refused = 0
        self._root = root
        self._there = emulator_at
        self._let_in = let_in
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Serve."""
        context = await asyncio.to_thread(self._context)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    def _context(self) -> ssl.SSLContext:
        today = dt.datetime.now(dt.UTC).replace(microsecond=0)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(
            self.authority.pair("front.pem", HOST, today - DAY, today + 90 * DAY)
        )
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=device_authority(self._there))
        return context

    async def close(self) -> None:
        """Serve no more."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            if await asyncio.to_thread(self._let_in, hashlib.sha256(shown).hexdigest()):
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    await self._carry(reader, writer)
            else:
                self.refused += 1
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = urlsplit(self._there)
        url = f"http://{there.hostname}:{there.port}/mqtt"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, protocols=("mqtt",), headers={"Host": AWS_HOST}) as socket,
            asyncio.TaskGroup() as tasks,
        ):
            down = tasks.create_task(_down(socket, writer), name="front:down")
            with contextlib.suppress(OSError):
                while data := await reader.read(PIECE):
                    await socket.send_bytes(data)
            down.cancel()


def device_authority(emulator_at: str) -> str:
    """Who signs devices' certificates (PEM); blocks."""
    with urllib.request.urlopen(f"{emulator_at}/_ministack/iot/ca.pem") as told:
        found: str = told.read().decode()
    return found


async def _down(socket: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                break
            writer.write(message.data)
            await writer.drain()
    writer.close()
