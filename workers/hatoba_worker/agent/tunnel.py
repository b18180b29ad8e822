"""The one way out of a device: TLS to the server, for a channel that speaks in plain text to us.

gRPC checks certificates by the machine's clock, which on a device may say 1970. Here names and
signatures are checked by TLS as ever, and dates by the clock that `clock` keeps. Every byte is
counted, and waits for its budget. Nobody else reaches the socket: its directory is the agent's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from hatoba_worker.agent.budget import Pay, unlimited
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.validity import Validity, date

log = structlog.get_logger(__name__)

PIECE = 64 << 10
GRPC = ("h2",)
MQTT, HTTPS_PORT = ("x-amzn-mqtt-ca",), 443
"""By which AWS IoT tells MQTT from HTTPS on that port; on others nothing is said."""
CONNECT_SECONDS = 30.0
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, for which Python has no name."""


class Distrusted(Exception):
    """The server's certificate is not good at the date that is known; says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom to reach, and what to show. `own` holds key and certificate in one file, none: nothing
    is shown; `authority` is believed alone, none: those whom the machine believes. `alpn` are the
    protocols that are offered.
    """

    host: str
    port: int
    server_name: str
    authority: Path | None
    own: Path | None = None
    alpn: tuple[str, ...] = GRPC


@dataclass(slots=True)
class Carried:
    """Bytes since the start, as they go over the link."""

    up: int = 0
    down: int = 0
    connections: int = 0


@dataclass(slots=True)
class _Ends:
    """How far one connection came: we closed it, the server said something."""

    ours: bool = False
    said: bool = False


class Tunnel:
    """Listens on a socket below `directory` and carries every connection to the peer."""

    def __init__(
        self,
        directory: Path,
        peer: Callable[[], Peer],
        clock: FloorClock,
        *,
        pay_up: Pay = unlimited,
        pay_down: Pay = unlimited,
    ) -> None:
        self.path = directory / "tunnel.sock"
        self.carried = Carried()
        self.problem = ""
        """Why the last connection did not come about; empty: it did."""
        self.silent = False
        """The server closed the last connection before it said anything: with TLS 1.3 that is what
        it looks like when the certificate that was shown is not taken."""
        self._peer = peer
        self._clock = clock
        self._pay_up, self._pay_down = pay_up, pay_down
        self._connections: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def target(self) -> str:
        """What a channel is to dial."""
        return f"unix:{self.path}"

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Carry, until it is left."""
        await asyncio.to_thread(self.path.unlink, True)
        server = await asyncio.start_unix_server(self._accepted, self.path)
        try:
            yield
        finally:
            server.close()
            self._closing = True
            await self._end_all()
            await asyncio.to_thread(self.path.unlink, True)

    async def cut(self) -> None:
        """End all that is carried now, and wait for its end."""
        self._closing = True
        try:
            await self._end_all()
        finally:
            self._closing = False

    async def _end_all(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._carry(reader, writer)
        except asyncio.CancelledError:
            # asyncio's own callback fails on a connection's task that was cancelled.
            if not self._closing:
                raise
        finally:
            self._connections.discard(task)
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await self._connected()
        except (OSError, ssl.SSLError, TimeoutError, Distrusted) as error:
            # Told to whoever asks: the channel only sees an end.
            if (problem := str(error) or repr(error)) != self.problem:
                log.warning("tunnel.not_connected", error=problem)
            self.problem, self.silent = problem, False
            return
        self.problem, self.silent = "", False
        self.carried.connections += 1
        ends = _Ends()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._up(reader, far_writer, ends), name="tunnel-up")
                tasks.create_task(self._down(far_reader, writer, ends), name="tunnel-down")
        finally:
            far_writer.close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        peer = self._peer()
        context = await asyncio.to_thread(context_of, peer)
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(
                peer.host, peer.port, ssl=context, server_hostname=peer.server_name
            )
        try:
            require_current(Validity.told(writer.get_extra_info("peercert")), self._clock)
        except Distrusted:
            writer.close()
            raise
        return reader, writer

    async def _up(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: _Ends
    ) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(PIECE):
                await self._pay_up(len(data))
                self.carried.up += len(data)
                writer.write(data)
                await writer.drain()
        ends.ours = True
        writer.close()

    async def _down(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: _Ends
    ) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(PIECE):
                ends.said = True
                self.carried.down += len(data)
                # Paid for after it came: how much comes is the server's to say.
                await self._pay_down(len(data))
                writer.write(data)
                await writer.drain()
        if not ends.said and not ends.ours:
            self.silent = True
            self.problem = (
                "the server closed the connection without a word: it may not take this device's "
                "certificate"
            )
        writer.close()


def context_of(peer: Peer) -> ssl.SSLContext:
    """TLS 1.3 with the authority's names and signatures checked, and no dates; blocks."""
    context = ssl.create_default_context(cafile=str(peer.authority) if peer.authority else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    if peer.alpn:
        context.set_alpn_protocols(list(peer.alpn))
    if peer.own is not None:
        context.load_cert_chain(peer.own)
    return context


def require_current(certificate: Validity, clock: FloorClock) -> None:
    """Raise Distrusted for a certificate that is over for sure or, where the date is known, that is
    for later. Who only knows that it is not earlier than some day cannot say "not yet", and what
    the machine's own clock says proves nothing.
    """
    now = clock.least
    if now > certificate.ends:
        raise Distrusted(f"the server's certificate was good until {date(certificate.ends)}")
    if clock.certain and now < certificate.begins:
        raise Distrusted(f"the server's certificate is good from {date(certificate.begins)} on")
