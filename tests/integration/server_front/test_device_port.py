"""Two ports of one server: devices at the one that asks for certificates, and those that are none.

TLS goes by the machine's clock, so nothing here moves a clock: what is over was made to be over.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from device_desk import LIFE, Book, DeviceDesk, Machine, device, enrolled
from structlog.testing import capture_logs
from waiting import until

from hatoba.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    device_pb2,
    device_pb2_grpc,
)
from hatoba_plugins.clock import FakeClock, SystemClock
from hatoba_scheduler.auth import Role
from hatoba_scheduler.auth.authority import DEVICES_NAME, HostIdentity, read_request
from hatoba_scheduler.auth.bursts import AUDIT_BURST
from hatoba_scheduler.device_port import DevicePort
from hatoba_scheduler.domain.devices import DeviceState
from hatoba_scheduler.errors import Reason
from hatoba_scheduler.interceptors import Admission, CallLimits, Front, Phase, server_options
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.interceptors.principals import DEVICE_STREAMS
from hatoba_scheduler.telemetry.metrics import ServerMetrics
from hatoba_scheduler.telemetry.tracing import Tracer

from .conftest import MAX_BYTES, Failure, MemoryTokens, collect, failing

CONNECT = "hatoba.v1.DeviceService/Connect"
RENEW = "hatoba.v1.DeviceService/RenewDevice"
HOUR = dt.timedelta(hours=1)


@dataclass
class Seen:
    """What reached a servicer: by whom, and what came."""

    callers: list[str] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    answered: asyncio.Event = field(default_factory=asyncio.Event)


class DeviceCalls(device_pb2_grpc.DeviceServiceServicer):
    """Says who called."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    async def Connect(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Goes on for as long as the device does."""
        self._seen.callers.append(current_call().principal)
        async for request in requests:
            self._seen.items.append(request)
            yield device_pb2.DeviceServiceConnectResponse()
            self._seen.answered.set()

    async def RenewDevice(self, request: Any, context: Any) -> Any:
        self._seen.callers.append(current_call().principal)
        self._seen.items.append(request)
        return device_pb2.DeviceIdentity(device=current_call().principal)

    async def ListDevices(self, request: Any, context: Any) -> Any:
        self._seen.callers.append(current_call().principal)
        return device_pb2.ListDevicesResponse()


class Content(artifact_pb2_grpc.ArtifactServiceServicer):
    """A piece of content for whoever asks."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    async def DownloadChunks(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._seen.callers.append(current_call().principal)
        yield artifact_pb2.DownloadChunksResponse()

    async def UploadChunks(self, requests: Any, context: Any) -> Any:
        sizes = [len(request.data) async for request in requests]
        return artifact_pb2.UploadChunksResponse(chunks=len(sizes))


@dataclass
class Harness:
    """The server with its two ports, and what it goes by."""

    desk: DeviceDesk
    book: Book
    seen: Seen
    port: int
    api: int
    metrics: ServerMetrics

    @asynccontextmanager
    async def dialled(
        self, machine: Machine | None = None, trusts: DeviceDesk | None = None
    ) -> AsyncIterator[grpc.aio.Channel]:
        """A connection to the port of devices by who shows this machine's certificate."""
        root = (trusts or self.desk).authority.pem.encode()
        shown = (machine.key_pem, machine.certificate.encode()) if machine else (None, None)
        credentials = grpc.ssl_channel_credentials(root, *shown)
        options = [("grpc.ssl_target_name_override", DEVICES_NAME)]
        async with grpc.aio.secure_channel(
            f"127.0.0.1:{self.port}", credentials, options
        ) as channel:
            yield channel

    @asynccontextmanager
    async def plain(self) -> AsyncIterator[grpc.aio.Channel]:
        """A connection to the API's port."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.api}") as channel:
            yield channel

    async def told(self, channel: grpc.aio.Channel, name: str) -> list[Any]:
        """A short stream of who calls himself so."""
        stub: Any = device_pb2_grpc.DeviceServiceStub(channel)
        return await collect(stub.Connect(iter([_hello(name)]), metadata=_claims(name)))

    async def refused(self, channel: grpc.aio.Channel, name: str) -> Failure:
        """What becomes of such a stream. It says nothing: grpc's own client calls it an internal
        error when it still writes to a call that was refused."""
        stub: Any = device_pb2_grpc.DeviceServiceStub(channel)
        return await failing(stub.Connect(metadata=_claims(name)).read())

    async def shut_out(self, machine: Machine | None, name: str) -> Failure:
        """What becomes of a connection on which somebody calls as a device."""
        async with self.dialled(machine) as channel:
            return await self.refused(channel, name)


def _claims(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer dc_{name}"),)


def _hello(name: str) -> device_pb2.DeviceServiceConnectRequest:
    hello = device_pb2.DeviceHello(device=name, incarnation="i" * 8, installation="j" * 8)
    return device_pb2.DeviceServiceConnectRequest(items=[device_pb2.DeviceItem(hello=hello)])


@pytest.fixture
def book() -> Book:
    """Devices of a test's own."""
    return Book()


@pytest.fixture
def desk(tmp_path: Path, book: Book) -> DeviceDesk:
    """One installation."""
    return DeviceDesk(tmp_path, SystemClock(), MemoryTokens(), book)


@pytest.fixture
def other(tmp_path: Path) -> DeviceDesk:
    """Another installation."""
    return DeviceDesk(tmp_path / "other", SystemClock(), MemoryTokens(), Book())


@pytest.fixture
def before(tmp_path: Path, desk: DeviceDesk) -> DeviceDesk:
    """The same installation a minute ago."""
    return DeviceDesk(tmp_path, FakeClock(desk.clock.time() - 60), MemoryTokens(), Book())


@pytest.fixture
async def site(desk: DeviceDesk, book: Book) -> AsyncIterator[Harness]:
    """A server on two free ports."""
    async with serving(desk, book, DevicePort(desk.authority)) as harness:
        yield harness


@asynccontextmanager
async def serving(desk: DeviceDesk, book: Book, shown: DevicePort) -> AsyncIterator[Harness]:
    """A server that shows this at the port of devices."""
    metrics, seen = ServerMetrics(), Seen()
    front = Front(
        desk.authenticator,
        Tracer(),
        metrics,
        Admission(Phase.SERVING),
        limits=CallLimits(MAX_BYTES),
    )
    server = grpc.aio.server(interceptors=[front], options=server_options(MAX_BYTES))
    device_pb2_grpc.add_DeviceServiceServicer_to_server(DeviceCalls(seen), server)  # type: ignore[abstract]
    artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(Content(seen), server)  # type: ignore[abstract]
    api = server.add_insecure_port("127.0.0.1:0")
    port = server.add_secure_port("127.0.0.1:0", shown.credentials())
    await server.start()
    try:
        yield Harness(desk, book, seen, port, api, metrics)
    finally:
        await server.stop(None)


@pytest.fixture
def lamp(desk: DeviceDesk, book: Book) -> Machine:
    """A device."""
    return enrolled(desk, book, "lamp")


@pytest.fixture
def denials() -> Iterator[list[Any]]:
    """Lines of the log."""
    with capture_logs() as logged:
        yield logged


# -- devices ---------------------------------------------------------------------------------------


async def test_a_device_is_heard_whatever_kind_of_call_it_makes(
    site: Harness, lamp: Machine
) -> None:
    async with site.dialled(lamp) as channel:
        assert len(await site.told(channel, "lamp")) == 1
        stub: Any = device_pb2_grpc.DeviceServiceStub(channel)
        request = device_pb2.RenewDeviceRequest(csr="x")
        reply = await stub.RenewDevice(request, metadata=_claims("lamp"))
        content: Any = artifact_pb2_grpc.ArtifactServiceStub(channel)
        wanted = artifact_pb2.DownloadChunksRequest(sha256=[bytes(32)])
        assert len(await collect(content.DownloadChunks(wanted, metadata=_claims("lamp")))) == 1
    assert reply.device == "devices/lamp"
    assert site.seen.callers == ["devices/lamp"] * 3
    assert not site.desk.denied


async def test_rules_hold_for_what_devices_send(site: Harness, lamp: Machine) -> None:
    async with site.dialled(lamp) as channel:
        stub: Any = device_pb2_grpc.DeviceServiceStub(channel)
        call = stub.RenewDevice(device_pb2.RenewDeviceRequest(), metadata=_claims("lamp"))
        failure = await failing(call)
        assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["csr"])
        big = device_pb2.RenewDeviceRequest(csr="x" * (MAX_BYTES + 1))
        failure = await failing(stub.RenewDevice(big, metadata=_claims("lamp")))
        assert failure.reason == Reason.MESSAGE_TOO_LARGE
        raw: Any = channel.unary_unary(f"/{RENEW}")
        failure = await failing(raw(b"\xff", metadata=_claims("lamp")))
        assert failure.reason == Reason.INVALID_MESSAGE


async def test_a_call_without_a_message_is_told_so(site: Harness, lamp: Machine) -> None:
    async with site.dialled(lamp) as channel:
        empty: Any = channel.stream_unary(f"/{RENEW}")
        failure = await failing(empty(iter(()), metadata=_claims("lamp")))
    assert failure.reason == Reason.INVALID_MESSAGE


async def test_one_device_has_a_few_streams_and_no_more(site: Harness, lamp: Machine) -> None:
    async with site.dialled(lamp) as channel:
        stub: Any = device_pb2_grpc.DeviceServiceStub(channel)
        opened = [stub.Connect(metadata=_claims("lamp")) for _ in range(DEVICE_STREAMS)]
        await until(lambda: len(site.seen.callers) == DEVICE_STREAMS)
        failure = await site.refused(channel, "lamp")
        for stream in opened:
            stream.cancel()
    assert failure.reason == Reason.TOO_MANY_CALLS


async def test_revoking_ends_the_stream_and_keeps_it_out(site: Harness, lamp: Machine) -> None:
    async with site.dialled(lamp) as channel:
        stub: Any = device_pb2_grpc.DeviceServiceStub(channel)
        stream = stub.Connect(metadata=_claims("lamp"))
        await stream.write(_hello("lamp"))
        await stream.read()
        await site.seen.answered.wait()
        site.book.devices["lamp"] = device("lamp", "one", DeviceState.REVOKED)
        site.desk.authenticator.cut("one")
        failure = await failing(stream.read())
        assert failure.reason == Reason.DEVICE_UNKNOWN
        failure = await site.refused(channel, "lamp")
        assert "revoked" in failure.message


@pytest.mark.parametrize("lives", [-1.1, 0.5], ids=["long ago", "while the clock was ahead"])
async def test_what_the_port_shows_is_renewed_while_it_is_served(
    tmp_path: Path, desk: DeviceDesk, book: Book, lamp: Machine, lives: float
) -> None:
    off = LIFE.total_seconds() * lives
    clock = FakeClock(desk.clock.time() + off)
    then = await asyncio.to_thread(DeviceDesk, tmp_path, clock, MemoryTokens(), Book())
    shown = DevicePort(then.authority)
    assert await asyncio.to_thread(shown.newer) is None
    clock.set_by(-off)
    async with serving(desk, book, shown) as site, site.dialled(lamp) as channel:
        await site.told(channel, "lamp")
    # gRPC's thread may still be at it.
    assert await asyncio.to_thread(shown.newer) is None


# -- who is none -----------------------------------------------------------------------------------


async def test_without_a_certificate_nobody_gets_in(site: Harness, lamp: Machine) -> None:
    failure = await site.shut_out(None, "lamp")
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert not site.seen.callers


async def test_a_certificate_of_another_authority_does_not_get_in(
    site: Harness, lamp: Machine, other: DeviceDesk
) -> None:
    stranger = Machine("lamp")
    stranger.certificate = other.sign(stranger, "one")
    failure = await site.shut_out(stranger, "lamp")
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert not site.seen.callers


async def test_a_certificate_that_is_over_does_not_get_in(site: Harness, lamp: Machine) -> None:
    lamp.certificate = site.desk.sign(lamp, "one", -HOUR / 2)
    failure = await site.shut_out(lamp, "lamp")
    assert failure.code is grpc.StatusCode.UNAVAILABLE


async def test_plain_text_does_not_get_in(site: Harness) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{site.port}") as channel:
        failure = await site.refused(channel, "lamp")
    assert failure.code is grpc.StatusCode.UNAVAILABLE


async def test_devices_do_not_believe_another_server(
    site: Harness, lamp: Machine, other: DeviceDesk
) -> None:
    async with site.dialled(lamp, trusts=other) as channel:
        failure = await site.refused(channel, "lamp")
    assert failure.code is grpc.StatusCode.UNAVAILABLE


async def test_no_device_speaks_for_another(
    site: Harness, lamp: Machine, denials: list[Any]
) -> None:
    enrolled(site.desk, site.book, "door")
    failure = await site.shut_out(lamp, "door")
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAUTHENTICATED,
        Reason.DEVICE_UNKNOWN,
    )
    assert not site.seen.callers
    assert [who for who, _ in site.desk.denied] == ["door", "lamp"]
    (line,) = [one for one in denials if one["event"] == "device.denied"]
    assert (line["device"], line["by"], line["method"]) == ("door", "lamp", CONNECT)
    assert line["peer"].startswith("ipv4:127.0.0.1:")


async def test_a_host_is_no_device(site: Harness, lamp: Machine) -> None:
    host = Machine("lamp")
    csr = read_request(host.csr, "csr")
    host.certificate = site.desk.authority.sign_host(csr, HostIdentity("lamp", "one"))
    assert (await site.shut_out(host, "lamp")).reason == Reason.DEVICE_UNKNOWN
    assert [who for who, _ in site.desk.denied] == ["lamp"]


async def test_a_machine_whose_place_was_taken_is_out(site: Harness, lamp: Machine) -> None:
    second = enrolled(site.desk, site.book, "lamp", "two")
    assert "took its place" in (await site.shut_out(lamp, "lamp")).message
    async with site.dialled(second) as channel:
        await site.told(channel, "lamp")


async def test_a_certificate_goes_out_of_use_when_the_next_one_was_shown(
    site: Harness, lamp: Machine, before: DeviceDesk
) -> None:
    older = Machine("lamp", lamp.key, before.sign(lamp, "one"))
    async with site.dialled(older) as channel:
        await site.told(channel, "lamp")
        async with site.dialled(lamp) as newer:
            await site.told(newer, "lamp")
        assert "a newer certificate" in (await site.refused(channel, "lamp")).message


async def test_what_is_for_people_is_refused_and_noted(
    site: Harness, lamp: Machine, denials: list[Any]
) -> None:
    async with site.dialled(lamp) as channel:
        stub: Any = device_pb2_grpc.DeviceServiceStub(channel)
        failure = await failing(
            stub.ListDevices(device_pb2.ListDevicesRequest(), metadata=_claims("lamp"))
        )
        content: Any = artifact_pb2_grpc.ArtifactServiceStub(channel)
        second = await failing(content.UploadChunks(iter(()), metadata=_claims("lamp")))
    assert failure.code is second.code is grpc.StatusCode.PERMISSION_DENIED
    assert not site.seen.callers
    assert [one["event"] for one in denials].count("device.denied") == 2


# -- at the API's port -----------------------------------------------------------------------------


async def test_a_name_at_the_apis_port_is_nobodys(site: Harness, lamp: Machine) -> None:
    async with site.plain() as channel:
        failure = await site.refused(channel, "lamp")
        nobody = await site.refused(channel, "nobody")
    assert failure.reason == nobody.reason == Reason.DEVICE_UNKNOWN
    assert failure.message == nobody.message
    assert not site.seen.callers


async def test_of_who_proves_nothing_nothing_is_read(site: Harness, lamp: Machine) -> None:
    async with site.plain() as channel:
        raw: Any = channel.unary_unary(f"/{RENEW}")
        failure = await failing(raw(b"x" * (MAX_BYTES * 8), metadata=_claims("lamp")))
    assert failure.reason == Reason.DEVICE_UNKNOWN


async def test_guessing_names_fills_neither_log_nor_events(
    site: Harness, lamp: Machine, denials: list[Any]
) -> None:
    async with site.plain() as channel:
        for _ in range(AUDIT_BURST + 20):
            await site.refused(channel, "lamp")
    assert [one["event"] for one in denials].count("device.denied") == AUDIT_BURST
    assert len(site.desk.denied) == AUDIT_BURST
    assert site.desk.audit.unheard == 20


async def test_one_whose_certificate_is_over_may_ask_for_the_next_and_nothing_else(
    site: Harness, lamp: Machine
) -> None:
    lamp.certificate = site.desk.sign(lamp, "one", -HOUR / 4)
    csr = Machine("lamp").csr
    metadata = (("authorization", f"Bearer {lamp.renewal(csr)}"),)
    async with site.plain() as channel:
        stub: Any = device_pb2_grpc.DeviceServiceStub(channel)
        request = device_pb2.RenewDeviceRequest(csr=csr)
        assert (await stub.RenewDevice(request, metadata=metadata)).device == "devices/lamp"
        failure = await failing(stub.Connect(metadata=metadata).read())
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        Reason.OUT_OF_SCOPE,
    )
    assert site.seen.callers == ["devices/lamp"]


async def test_people_are_who_they_are_at_either_port(site: Harness, lamp: Machine) -> None:
    _, text = await site.desk.authenticator.create("ann", Role.VIEWER)
    metadata = (("authorization", f"Bearer {text}"),)
    async with site.plain() as api, site.dialled(lamp) as channel:
        for one in (api, channel):
            stub: Any = device_pb2_grpc.DeviceServiceStub(one)
            await stub.ListDevices(device_pb2.ListDevicesRequest(), metadata=metadata)
    assert site.seen.callers == ["ann", "ann"]
