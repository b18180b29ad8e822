"""A small client of MQTT 3.1.1 over WebSockets, as far as devices of tests need one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Self

import aiohttp

CONNECT, CONNACK, PUBLISH, PUBACK = 1, 2, 3, 4
SUBSCRIBE, SUBACK, DISCONNECT = 8, 9, 14
KEEP_ALIVE = 1200
"""Seconds; no test lasts so long that a ping is due."""
HOST = "data-ats.iot.us-east-1.amazonaws.com"
"""By which an emulator of all of AWS knows what is asked for."""
BROKEN = (aiohttp.ClientError, ConnectionError)


class Packet(NamedTuple):
    """A packet of the protocol."""

    kind: int
    flags: int
    body: bytes


class Publication(NamedTuple):
    """A message that came."""

    topic: str
    payload: bytes


class MqttClient:
    """One connection. It acknowledges what comes, and waits for no acknowledgement of its own."""

    def __init__(self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse):
        self._session = session
        self._socket = socket
        self._buffer = b""
        self._ids = itertools.count(1)

    @classmethod
    async def connect(cls, port: int, client_id: str, host: str = "127.0.0.1") -> Self:
        """Connect to a broker at this port, with a clean session."""
        session = aiohttp.ClientSession()
        try:
            socket = await session.ws_connect(
                f"http://{host}:{port}/mqtt", protocols=("mqtt",), headers={"Host": HOST}
            )
            client = cls(session, socket)
            head = _text("MQTT") + bytes((4, 0b10)) + struct.pack("!H", KEEP_ALIVE)
            await client._send(CONNECT, 0, head + _text(client_id))
            await client._expect(CONNACK)
        except BaseException:
            await session.close()
            raise
        return client

    async def subscribe(self, topics: Sequence[str]) -> None:
        """Listen to these, before anything else comes."""
        body = struct.pack("!H", next(self._ids))
        body += b"".join(_text(topic) + b"\x01" for topic in topics)
        await self._send(SUBSCRIBE, 0b10, body)
        await self._expect(SUBACK)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Send a message, to be delivered at least once. On a link that is broken it is lost."""
        with contextlib.suppress(*BROKEN):
            await self._send(
                PUBLISH, 0b10, _text(topic) + struct.pack("!H", next(self._ids)) + payload
            )

    async def messages(self) -> AsyncGenerator[Publication, None]:
        """What comes, until the connection ends."""
        with contextlib.suppress(*BROKEN, EOFError):
            while True:
                packet = await self._next()
                if packet.kind == PUBLISH:
                    yield await self._took(packet)

    async def disconnect(self) -> None:
        """Say that this is the end."""
        with contextlib.suppress(*BROKEN):
            await self._send(DISCONNECT, 0, b"")

    async def leave(self) -> None:
        """End the connection without a word."""
        await self._session.close()

    async def _took(self, packet: Packet) -> Publication:
        (length,) = struct.unpack_from("!H", packet.body)
        topic, at = packet.body[2 : 2 + length].decode(), 2 + length
        if packet.flags & 0b110:
            await self._send(PUBACK, 0, packet.body[at : at + 2])
            at += 2
        return Publication(topic, packet.body[at:])

    async def _expect(self, kind: int) -> None:
        async with asyncio.timeout(30):
            packet = await self._next()
        assert packet.kind == kind, packet
        assert packet.body[-1] in (0, 1), f"it is refused: {packet}"

    async def _send(self, kind: int, flags: int, body: bytes) -> None:
        await self._socket.send_bytes(bytes((kind << 4 | flags,)) + _length(len(body)) + body)

    async def _next(self) -> Packet:
        """The next packet. Raises EOFError at the end."""
        while (found := _cut(self._buffer)) is None:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                raise EOFError
            self._buffer += message.data
        packet, self._buffer = found
        return packet


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("!H", len(raw)) + raw


def _length(count: int) -> bytes:
    """A length in the protocol's own digits."""
    digits = bytearray()
    while True:
        count, digit = divmod(count, 128)
        digits.append(digit | (0x80 if count else 0))
        if not count:
            return bytes(digits)


def _cut(data: bytes) -> tuple[Packet, bytes] | None:
    """The first packet and what follows; None while it is not whole."""
    length = 0
    for number, digit in enumerate(data[1:5]):
        length |= (digit & 0x7F) << 7 * number
        if not digit & 0x80:
            begin = number + 2
            end = begin + length
            if len(data) < end:
                return None
            return Packet(data[0] >> 4, data[0] & 0x0F, data[begin:end]), data[end:]
    return None
