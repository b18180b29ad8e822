"""One connection to an MQTT broker on the event loop: paho-mqtt speaks, and is carried here."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import MQTT_ERR_SUCCESS, Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from hatoba_worker.agent.calls import Broken

KEEP_ALIVE = 60
"""Seconds after which an idle connection is heard of, before a NAT on the way forgets it."""
ANSWER = 45.0
"""Seconds that the broker has for an answer."""
MOST_WAITING = 100
"""Messages that may wait to be read; what is oldest is dropped."""
TICK = 1.0
AT_LEAST_ONCE = 1
CONNECT = 0
"""Stands for the greeting among the numbers of what is answered."""
PORT = 1
"""The library wants one, also where a socket has none."""


@dataclass(frozen=True, slots=True)
class Message:
    """What came."""

    topic: str
    payload: bytes


class Connection:
    """See `connected`. All of it raises Broken once the connection has ended."""

    def __init__(self, client_id: str, *, kept: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=not kept,
            transport="unix",
            reconnect_on_failure=False,
        )
        self._answers: dict[int, asyncio.Future[Sequence[ReasonCode]]] = {}
        self._waiting: deque[Message] = deque(maxlen=MOST_WAITING)
        self._news = asyncio.Event()
        self._ended = ""
        """Why; empty: it lasts."""
        self._timer: asyncio.TimerHandle | None = None
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write

    # -- its life -------------------------------------------------------------------------------

    async def open(self, path: str) -> None:
        """Connect to the broker behind a socket. Raises Broken."""
        try:
            await asyncio.to_thread(self._client.connect, path, PORT, KEEP_ALIVE)
        except OSError as error:
            raise Broken(f"the broker cannot be dialled: {error}") from error
        if (sock := self._client.socket()) is not None:
            self._loop.add_reader(sock, self._readable)
        self._tick()
        (code,) = await self._answer(CONNECT)
        if code.is_failure:
            raise Broken(f"the broker refuses the connection: {code}")

    def close(self) -> None:
        """End it, in good order if it lasts. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._ended:
            self._client.disconnect()
            self._flush()
        if (sock := self._client.socket()) is not None:
            # It takes nothing any more.
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            sock.close()

    def _end(self, why: str) -> None:
        self._ended = self._ended or why
        self._news.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Broken(self._ended))

    # -- what is said and heard -----------------------------------------------------------------

    async def subscribe(self, topics: Sequence[str]) -> None:
        """Listen to these. Raises Broken, also where one is not granted."""
        _, number = self._client.subscribe([(one, AT_LEAST_ONCE) for one in topics])
        if any(code.is_failure for code in await self._answer(number)):
            raise Broken(f"this device may not listen to {', '.join(topics)}")

    async def publish(self, topic: str, payload: bytes) -> None:
        """Say something; returns once the broker has it. Raises Broken."""
        told = self._client.publish(topic, payload, AT_LEAST_ONCE)
        if told.rc == MQTT_ERR_SUCCESS:
            await self._answer(told.mid)
        else:
            raise Broken(self._ended or "the connection has ended")

    async def messages(self) -> AsyncIterator[Message]:
        """What comes, until the end, which is Broken."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._ended:
                raise Broken(self._ended)
            self._news.clear()
            await self._news.wait()

    async def _answer(self, number: int | None) -> Sequence[ReasonCode]:
        if number is None or self._ended:
            raise Broken(self._ended or "the connection has ended")
        answer: asyncio.Future[Sequence[ReasonCode]] = self._loop.create_future()
        self._answers[number] = answer
        try:
            async with asyncio.timeout(ANSWER):
                return await answer
        except TimeoutError:
            raise Broken(f"no answer came for {ANSWER:g} s") from None
        finally:
            del self._answers[number]

    # -- what the library calls -----------------------------------------------------------------

    def _on_connect(
        self, _client: Client, _data: Any, _flags: ConnectFlags, code: ReasonCode, _more: object
    ) -> None:
        self._answered(CONNECT, [code])

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: DisconnectFlags, code: ReasonCode, _more: object
    ) -> None:
        silent = "Keep" in str(code)
        self._end("the broker is silent" if silent else "the broker closed the connection")

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._waiting.append(Message(message.topic, bytes(message.payload)))
        self._news.set()

    def _on_subscribe(
        self, _client: Client, _data: Any, number: int, codes: list[ReasonCode], _more: object
    ) -> None:
        self._answered(number, codes)

    def _on_publish(
        self, _client: Client, _data: Any, number: int, code: ReasonCode, _more: object
    ) -> None:
        self._answered(number, [code])

    def _answered(self, number: int, codes: Sequence[ReasonCode]) -> None:
        answer = self._answers.get(number)
        if answer is not None and not answer.done():
            answer.set_result(codes)

    # -- its socket -----------------------------------------------------------------------------

    def _tick(self) -> None:
        """Have it look at its keep-alive."""
        if self._client.loop_misc() == MQTT_ERR_SUCCESS:
            self._timer = self._loop.call_later(TICK, self._tick)

    def _readable(self) -> None:
        try:
            self._client.loop_read()
        except OSError as error:
            self._end(str(error))

    def _flush(self) -> None:
        try:
            self._client.loop_write()
        except OSError as error:
            self._end(str(error))

    def _on_socket_close(self, _client: Client, _data: Any, sock: Any) -> None:
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)

    def _on_register_write(self, _client: Client, _data: Any, sock: Any) -> None:
        # The first time from the thread that dials.
        self._loop.call_soon_threadsafe(self._want_to_write, sock)

    def _want_to_write(self, sock: socket.socket) -> None:
        if self._client.socket() is sock:
            self._loop.add_writer(sock, self._flush)

    def _on_unregister_write(self, _client: Client, _data: Any, sock: Any) -> None:
        self._loop.remove_writer(sock)


@contextlib.asynccontextmanager
async def connected(path: str, client_id: str, *, kept: bool = True) -> AsyncIterator[Connection]:
    """A connection to the broker behind a socket, by MQTT 3.1.1; `kept`: what it listens to, and
    what comes for it, is kept there while the device is away. Raises Broken.
    """
    connection = Connection(client_id, kept=kept)
    try:
        await connection.open(path)
        yield connection
    finally:
        connection.close()
