"""TLS to the server by a clock of ours: who is not trusted is not reached, bytes are counted."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from authority import DAY, Authority

from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.renewing import alpn_of
from hatoba_worker.agent.settings import AwsIot, Settings
from hatoba_worker.agent.tunnel import MQTT, Peer, Tunnel, context_of

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

NAME = "control.example"
TODAY = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours", TODAY)


def clock(path: Path, date: dt.datetime, *, sure: bool = False) -> FloorClock:
    """One that knows that it is at least this late, or that it is."""
    made = FloorClock(path, date.timestamp(), lambda: 0.0, lambda: 100.0)
    if sure:
        made.learn(date.timestamp())
    return made


@asynccontextmanager
async def echo(pair: Path, clients: Path | None = None) -> AsyncIterator[int]:
    """A server that says back what it is told, in capitals."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    context.set_alpn_protocols(["h2"])
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data.upper())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def asked(tunnel: Tunnel, data: bytes = b"hello") -> bytes:
    """What comes back through the tunnel; empty when nobody is reached."""
    reader, writer = await asyncio.open_unix_connection(tunnel.path)
    try:
        writer.write(data)
        return await reader.read(len(data))
    finally:
        writer.close()


@pytest.fixture
def good(authority: Authority) -> Path:
    return authority.pair("server.pem", NAME, TODAY - DAY, TODAY + 90 * DAY)


async def test_bytes_go_both_ways_and_are_counted(
    tmp_path: Path, authority: Authority, good: Path
) -> None:
    paid: list[int] = []

    async def pay(size: int) -> None:
        paid.append(size)

    async with echo(good) as port:
        peer = Peer("127.0.0.1", port, NAME, authority.pem)
        one = Tunnel(tmp_path, lambda: peer, clock(tmp_path / "d", TODAY), pay_down=pay)
        async with one.open():
            assert await asked(one, b"hello") == b"HELLO"
        assert (one.carried.up, one.carried.down, one.carried.connections) == (5, 5, 1)
        assert paid == [5]
        assert one.problem == ""
    assert not await asyncio.to_thread(one.path.exists)


@pytest.mark.parametrize(
    ("date", "sure", "reached"),
    [
        (TODAY, False, True),
        (TODAY, True, True),
        (TODAY - 30 * DAY, False, True),
        (TODAY - 30 * DAY, True, False),
        (TODAY + 91 * DAY, False, False),
        (TODAY + 91 * DAY, True, False),
    ],
)
async def test_dates_are_checked_by_what_is_known(
    tmp_path: Path, authority: Authority, good: Path, date: dt.datetime, sure: bool, reached: bool
) -> None:
    async with echo(good) as port:
        peer = Peer("127.0.0.1", port, NAME, authority.pem)
        one = Tunnel(tmp_path, lambda: peer, clock(tmp_path / "d", date, sure=sure))
        async with one.open():
            assert await asked(one) == (b"HELLO" if reached else b"")
            assert ("certificate" in one.problem) is not reached


async def test_another_authority_or_name_is_not_reached(
    tmp_path: Path, authority: Authority, good: Path
) -> None:
    other = await asyncio.to_thread(Authority, tmp_path / "other", TODAY)
    async with echo(good) as port:
        for peer in (
            Peer("127.0.0.1", port, NAME, other.pem),
            Peer("127.0.0.1", port, "else.example", authority.pem),
        ):
            one = Tunnel(tmp_path, lambda peer=peer: peer, clock(tmp_path / "d", TODAY))  # type: ignore[misc]
            async with one.open():
                assert await asked(one) == b""
                assert "certificate verify failed" in one.problem


async def test_a_server_that_is_away_is_an_end_and_then_it_is_there(
    tmp_path: Path, authority: Authority, good: Path
) -> None:
    peers = [Peer("127.0.0.1", 1, NAME, authority.pem)]
    one = Tunnel(tmp_path, lambda: peers[-1], clock(tmp_path / "d", TODAY))
    async with one.open():
        assert await asked(one) == b""
        assert one.problem
        async with echo(good) as port:
            peers.append(Peer("127.0.0.1", port, NAME, authority.pem))
            assert await asked(one) == b"HELLO"


async def test_a_server_that_wants_to_know_who_one_is_is_shown_it(
    tmp_path: Path, authority: Authority, good: Path
) -> None:
    own = await asyncio.to_thread(authority.pair, "own.pem", "d1", TODAY - DAY, TODAY + 3650 * DAY)
    async with echo(good, authority.pem) as port:
        peer = Peer("127.0.0.1", port, NAME, authority.pem)
        one = Tunnel(tmp_path, lambda: peer, clock(tmp_path / "d", TODAY))
        async with one.open():
            assert await asked(one) == b""
        known = Peer("127.0.0.1", port, NAME, authority.pem, own)
        one = Tunnel(tmp_path, lambda: known, clock(tmp_path / "d", TODAY))
        async with one.open():
            assert await asked(one) == b"HELLO"


async def test_a_channel_goes_through_it_and_is_known_by_its_certificate(
    tmp_path: Path, authority: Authority, good: Path
) -> None:
    own = await asyncio.to_thread(authority.pair, "own.pem", "d1", TODAY - DAY, TODAY + 3650 * DAY)
    seen: list[object] = []

    async def who(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        seen.append(context.auth_context().get("x509_common_name"))
        return request.upper()

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(who)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Who", {"Ask": handler}),)
    )
    pem = await asyncio.to_thread(good.read_bytes)
    root = await asyncio.to_thread(authority.pem.read_bytes)
    credentials = grpc.ssl_server_credentials([(pem, pem)], root, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        peer = Peer("127.0.0.1", port, NAME, authority.pem, own)
        one = Tunnel(tmp_path, lambda: peer, clock(tmp_path / "d", TODAY))
        async with one.open(), grpc.aio.insecure_channel(one.target) as channel:
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
            ask = channel.unary_unary("/test.Who/Ask")
            assert await ask(b"hello", timeout=10) == b"HELLO"
        assert seen == [[b"d1"]]
    finally:
        await server.stop(None)


async def test_what_is_cut_ends_and_what_follows_is_carried(
    tmp_path: Path, authority: Authority, good: Path
) -> None:
    async with echo(good) as port:
        peer = Peer("127.0.0.1", port, NAME, authority.pem)
        one = Tunnel(tmp_path, lambda: peer, clock(tmp_path / "d", TODAY))
        async with one.open():
            reader, writer = await asyncio.open_unix_connection(one.path)
            writer.write(b"hello")
            assert await reader.read(5) == b"HELLO"
            await one.cut()
            assert await reader.read(1) == b""
            writer.close()
            assert await asked(one) == b"HELLO"


async def test_the_protocol_is_said_that_a_peer_has(
    tmp_path: Path, authority: Authority, good: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(good)
    context.set_alpn_protocols(list(MQTT))
    said: list[str | None] = []

    async def note(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for alpn in (MQTT, ()):
            peer = Peer("127.0.0.1", port, NAME, authority.pem, alpn=alpn)
            one = Tunnel(tmp_path, lambda peer=peer: peer, clock(tmp_path / "d", TODAY))  # type: ignore[misc]
            async with one.open():
                assert await asked(one) == b""
    assert said == ["x-amzn-mqtt-ca", None]


@pytest.mark.parametrize(
    ("address", "thing", "alpn"),
    [
        ("server.example:7443", None, ("h2",)),
        ("a.iot.example:8883", AwsIot("hatoba-a"), ()),
        ("a.iot.example:443", AwsIot("hatoba-a"), ("x-amzn-mqtt-ca",)),
    ],
)
def test_which_protocol_is_said_where(
    address: str, thing: AwsIot | None, alpn: tuple[str, ...]
) -> None:
    assert alpn_of(Settings("a", address, "n", aws_iot=thing)) == alpn


def test_older_versions_of_tls_are_not_spoken(authority: Authority) -> None:
    made = context_of(Peer("127.0.0.1", 1, NAME, authority.pem))
    assert made.minimum_version is ssl.TLSVersion.TLSv1_3
    assert made.check_hostname
    assert made.verify_mode is ssl.CERT_REQUIRED
