"""The device backend for the conformance kit: the server's own port for devices, with its front,
hub and store, and devices that dial it as agents do, each through a network of its own.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import grpc
import grpc.aio
from device_desk import DeviceDesk, Machine, device
from held_link import HeldLink

from hatoba.v1 import device_pb2, device_pb2_grpc
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.iot_edge import EdgeType
from hatoba_plugins.clock import FakeClock, SystemClock
from hatoba_plugins.conformance import DeviceFaults, FarHarness
from hatoba_scheduler.auth.authority import DEVICES_NAME
from hatoba_scheduler.control.device_hub import MISSED, DeviceHub
from hatoba_scheduler.control.device_records import DeviceRecordDesk
from hatoba_scheduler.control.devices import DeviceBook
from hatoba_scheduler.device_port import DevicePort
from hatoba_scheduler.interceptors import Admission, Front, Phase, server_options
from hatoba_scheduler.services.devices import DeviceParts, DeviceServicer
from hatoba_scheduler.services.paging import Pager
from hatoba_scheduler.services.signing import Signing
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.devices import Write
from hatoba_scheduler.store.sqlite import open_store
from hatoba_scheduler.telemetry.metrics import ServerMetrics
from hatoba_scheduler.telemetry.tracing import Tracer

PATIENCE = 30.0
ALIVE_EVERY = 10.0
SHUT_OUT = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
Item = device_pb2.DeviceItem
Request = device_pb2.DeviceServiceConnectRequest
Response = device_pb2.DeviceServiceConnectResponse
Call = grpc.aio.StreamStreamCall[Request, Response]


@dataclass
class Office:
    """What outlives a server: its store, its devices, and who says so."""

    store: Store
    book: DeviceBook
    desk: DeviceDesk

    @classmethod
    async def open(cls, directory: Path) -> Office:
        """In a directory of its own."""
        clock = SystemClock()
        store = await open_store(directory, lambda: round(clock.time() * 1e6))
        book = DeviceBook(store.devices, clock)
        desk = await asyncio.to_thread(DeviceDesk, directory, clock, store, book)
        return cls(store, book, desk)

    async def enroll(self, name: str) -> Machine:
        """A new device."""
        machine, identity = Machine(name), uuid.uuid4().hex
        machine.certificate = self.desk.sign(machine, identity)
        made = device(name, identity)
        await self.store.devices.write([Write(made, 0)])
        await self.book.recover()
        return machine


class Server:
    """One life of the server's port for devices. Signs of life are counted on a clock that stands
    still until somebody is to be missed.
    """

    def __init__(self, office: Office) -> None:
        self.office = office
        self.clock = FakeClock()
        self.hub = DeviceHub(self.clock, ALIVE_EVERY)
        self.port = 0
        front = Front(
            office.desk.authenticator, Tracer(), ServerMetrics(), Admission(Phase.SERVING)
        )
        self._server = grpc.aio.server(interceptors=[front], options=server_options())

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve; then stop as a server does, which ends the streams."""
        credentials = DevicePort(self.office.desk.authority).credentials()
        async with asyncio.TaskGroup() as tasks:
            servicer = DeviceServicer(self._parts(tasks))
            device_pb2_grpc.add_DeviceServiceServicer_to_server(servicer, self._server)
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
            await self._server.start()
            watch = tasks.create_task(self.hub.run(), name="device-hub")
            try:
                yield
            finally:
                self.hub.close()
                await self._server.stop(0)
                watch.cancel()

    def _parts(self, tasks: asyncio.TaskGroup) -> DeviceParts:
        nobody = cast(Any, None)
        devices, book = self.office.store.devices, self.office.book
        return DeviceParts(
            store=devices,
            book=book,
            hub=self.hub,
            deployments=nobody,
            records=DeviceRecordDesk(devices, book, nobody, nobody),
            loops=lambda: (),
            enrolling=nobody,
            cluster_id=self.office.store.identity.cluster_id,
            pager=Pager(),
            clock=SystemClock(),
            tasks=tasks,
            cut=self.office.desk.authenticator.cut,
            signing=Signing(lambda: None),
        )


class GrpcDevice:
    """A `FarDevice`: a client of DeviceService.Connect with its own certificate."""

    def __init__(
        self, machine: Machine, root: str, link: HeldLink, tasks: asyncio.TaskGroup
    ) -> None:
        self.name = machine.name
        self.heard: list[device_pb2.DeviceDesired] = []
        self.link = link
        self._credentials = grpc.ssl_channel_credentials(
            root.encode(), machine.key_pem, machine.certificate.encode()
        )
        self._tasks = tasks
        self._call: Call | None = None
        self._reading: asyncio.Task[None] | None = None
        self._hello = device_pb2.DeviceHello()
        self._report: device_pb2.DeviceReport | None = None

    @property
    def linked(self) -> bool:
        """Whether it takes itself for connected."""
        return self._reading is not None and not self._reading.done()

    async def come(self, hello: device_pb2.DeviceHello) -> bool:
        """See FarDevice."""
        await self.leave()
        self._hello = hello
        options = [("grpc.ssl_target_name_override", DEVICES_NAME)]
        channel = grpc.aio.secure_channel(f"127.0.0.1:{self.link.port}", self._credentials, options)
        welcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._reading = self._tasks.create_task(
            self._read(channel, welcome), name=f"device:{self.name}"
        )
        async with asyncio.timeout(PATIENCE):
            return await welcome

    async def _read(self, channel: grpc.aio.Channel, welcome: asyncio.Future[bool]) -> None:
        async with channel:
            stub = device_pb2_grpc.DeviceServiceStub(channel)
            self._call = call = stub.Connect(metadata=[("authorization", f"Bearer dc_{self.name}")])
            try:
                # It may be refused before it has said a word; then reading says so.
                with suppress(asyncio.InvalidStateError):
                    await call.write(Request(items=[Item(hello=self._hello)]))
                async for response in call:
                    self._hear(response, welcome)
            except grpc.aio.AioRpcError as error:
                _not_welcome(welcome, error)
            finally:
                call.cancel()

    def _hear(self, response: Response, welcome: asyncio.Future[bool]) -> None:
        for order in response.items:
            if order.HasField("welcome"):
                welcome.set_result(True)
            elif order.HasField("desired"):
                self.heard.append(order.desired)

    async def go(self) -> None:
        """See FarDevice."""
        if self._call is not None and self._reading is not None:
            await self._call.done_writing()
            await asyncio.wait([self._reading])

    async def leave(self) -> None:
        """Give up a link that it has, whatever the other end knows of it."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def close(self) -> None:
        """It is no more."""
        await self.leave()
        await self.link.close()

    async def tell(self, report: device_pb2.DeviceReport) -> None:
        """See FarDevice."""
        if self._call is None or not self.linked:
            return
        self._report = report
        # The server may have ended it just now.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(Request(items=[Item(report=report)]))

    async def come_again(self) -> None:
        """As an agent does that lost its link: it says hello, and how it is."""
        assert await self.come(self._hello)
        if self._report is not None:
            await self.tell(self._report)


def _not_welcome(welcome: asyncio.Future[bool], error: grpc.aio.AioRpcError) -> None:
    """A stream ended; before it was welcome, because it was shut out or by a fault."""
    if welcome.done():
        return
    if error.code() in SHUT_OUT:
        welcome.set_result(False)
    else:
        welcome.set_exception(error)


class LinkFaults(DeviceFaults):
    """What goes wrong on the way. A stream keeps its order and repeats nothing, and no call of
    ours is answered over it.
    """

    def __init__(self, harness: EdgeHarness) -> None:
        self._harness = harness

    async def cut(self, device: str) -> None:
        self._harness.far[device].link.cut()

    async def hold(self, device: str) -> None:
        self._harness.far[device].link.hold()

    async def let_go(self, device: str) -> None:
        self._harness.far[device].link.let_go()

    async def silence(self, device: str) -> None:
        await self.hold(device)
        await self._harness.server.clock.advance((MISSED + 2) * ALIVE_EVERY)


class EdgeHarness(FarHarness):
    """A server's side in this process, with its port for devices."""

    def __init__(self, directory: Path) -> None:
        super().__init__(EdgeType(), faults=LinkFaults(self))
        self.far: dict[str, GrpcDevice] = {}
        self.servers: list[Server] = []
        self._directory = directory
        self._office: Office | None = None
        self._tasks = asyncio.TaskGroup()
        self._world = AsyncExitStack()
        self._life = AsyncExitStack()

    def free(self) -> None:
        """Let go of the servers: that takes a lock, which no coroutine of ours may wait for."""
        self.servers.clear()

    @property
    def server(self) -> Server:
        """The one that serves now."""
        return self.servers[-1]

    @property
    def office(self) -> Office:
        """What they all stand on."""
        assert self._office is not None
        return self._office

    def context(self) -> BackendContext:
        return replace(super().context(), devices=self.server.hub)

    async def __aenter__(self) -> Self:
        self._office = await Office.open(self._directory)
        self._world.push_async_callback(self.office.store.close)
        await self._world.enter_async_context(self._tasks)
        await self._begin()
        return self

    async def _begin(self) -> None:
        self.servers.append(Server(self.office))
        await self._life.enter_async_context(self.server.serving())
        await super().__aenter__()

    async def _end(self) -> None:
        await super().__aexit__(None, None, None)
        await self._life.aclose()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in self.far.values():
            await one.close()
        await self._end()
        await self._world.aclose()

    async def reopen(self) -> None:
        """Another server, at another port; devices find it."""
        linked = [one for one in self.far.values() if one.linked]
        await self._end()
        await self._begin()
        for one in self.far.values():
            one.link.there = self.server.port
        for one in linked:
            await one.come_again()

    async def device(self, name: str) -> GrpcDevice:
        """See DeviceHarness."""
        if former := self.far.get(name):
            await former.close()
        link = HeldLink(self.server.port)
        await link.open()
        machine = await self.office.enroll(name)
        root = self.office.desk.authority.pem
        made = self.far[name] = GrpcDevice(machine, root, link, self._tasks)
        return made

    async def dropped(self, name: str) -> None:
        """See DeviceHarness."""
        await self.office.book.remove(name)
