"""A device that is played by hand: its key, its certificate, its stream, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec
from device_reports import GOOD, Phase, report_on

from hatoba.v1 import common_pb2, device_pb2, device_pb2_grpc
from hatoba_worker import keys

PATIENCE = 60.0
NAME_SHOWN = "grpc.ssl_target_name_override"
Call: TypeAlias = grpc.aio.StreamStreamCall[
    device_pb2.DeviceServiceConnectRequest, device_pb2.DeviceServiceConnectResponse
]


@dataclass
class HandDevice:
    """One machine. `installation` is what tells it from a copy of itself."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=keys.new_key)
    identity: device_pb2.DeviceIdentity = field(default_factory=device_pb2.DeviceIdentity)
    installation: str = "installation-1"
    boot: str = "boot-1"
    memory: int = 1 << 30
    generation: int = 0

    @property
    def name(self) -> str:
        """The device that it is."""
        return self.identity.device

    def csr(self) -> str:
        """Asks for a certificate."""
        return keys.request_for(self.key)

    async def enroll(
        self, address: str, token: str, name: str = "", **labels: str
    ) -> device_pb2.DeviceIdentity:
        """Become a device, at the server's ordinary port."""
        request = device_pb2.EnrollDeviceRequest(device=name, csr=self.csr(), labels=labels)
        request.platform.architecture = "arm64"
        request.capacity.memory_bytes = self.memory
        request.capacity.limits_memory = True
        async with grpc.aio.insecure_channel(address) as channel:
            stub = device_pb2_grpc.DeviceServiceStub(channel)
            metadata = [("authorization", f"Bearer {token.partition('.')[0]}")]
            self.identity = await stub.EnrollDevice(request, metadata=metadata, timeout=PATIENCE)
        return self.identity

    def credentials(self) -> grpc.ChannelCredentials:
        """What it shows at the port of devices."""
        return grpc.ssl_channel_credentials(
            self.identity.authority.encode(),
            keys.key_text(self.key).encode(),
            self.identity.certificate.encode(),
        )

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[device_pb2_grpc.DeviceServiceAsyncStub]:
        """To the port of devices."""
        options = [(NAME_SHOWN, self.identity.server_name)]
        address, shown = self.identity.address, self.credentials()
        async with grpc.aio.secure_channel(address, shown, options) as channel:
            yield device_pb2_grpc.DeviceServiceStub(channel)

    def metadata(self, name: str = "") -> list[tuple[str, str]]:
        """Who it says that it is."""
        return [("authorization", f"Bearer dc_{name or self.name}")]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[HandStream]:
        """With its stream open, and welcome."""
        async with self.channel() as stub:
            call = stub.Connect(metadata=self.metadata())
            stream = HandStream(self, call)
            try:
                await stream.hello()
                yield stream
            finally:
                call.cancel()


class HandStream:
    """A device's stream."""

    def __init__(self, device: HandDevice, call: Call) -> None:
        self._device = device
        self._call = call
        self._waiting: list[device_pb2.DeviceOrder] = []
        self.welcome = device_pb2.DeviceWelcome()

    async def say(self, *items: device_pb2.DeviceItem) -> None:
        """Send these."""
        await self._call.write(device_pb2.DeviceServiceConnectRequest(items=items))

    async def hello(self, **fields: object) -> None:
        """Say who it is, and be welcome."""
        hello = device_pb2.DeviceHello(
            device=self._device.name,
            boot_id=self._device.boot,
            incarnation="incarnation",
            installation=self._device.installation,
            protocol=1,
            version="1",
            generation=self._device.generation,
        )
        for name, value in fields.items():
            setattr(hello, name, value)
        await self.say(device_pb2.DeviceItem(hello=hello))
        self.welcome = (await self.next(lambda one: one.HasField("welcome"))).welcome

    async def next(
        self, fits: Callable[[device_pb2.DeviceOrder], bool] = lambda _: True
    ) -> device_pb2.DeviceOrder:
        """The next order that fits; what does not is passed over. Raises AioRpcError at the end."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while self._waiting:
                    order = self._waiting.pop(0)
                    if fits(order):
                        return order
                response = await self._call.read()
                if not isinstance(response, device_pb2.DeviceServiceConnectResponse):
                    raise EOFError((await self._call.code(), await self._call.details()))
                self._waiting.extend(response.items)

    async def desired(
        self, fits: Callable[[device_pb2.DeviceDesired], bool] = lambda _: True
    ) -> device_pb2.DeviceDesired:
        """The next set that is wanted and fits."""
        order = await self.next(lambda one: one.HasField("desired") and fits(one.desired))
        self._device.generation = order.desired.generation
        return order.desired

    async def wanted(self, revision: int) -> device_pb2.DeviceDesired:
        """The next set with one deployment at this revision; 0: with none."""

        def fits(desired: device_pb2.DeviceDesired) -> bool:
            found = [one.revision for one in desired.wants]
            return found == ([revision] if revision else [])

        return await self.desired(fits)

    async def report(
        self,
        desired: device_pb2.DeviceDesired,
        phase: Phase = GOOD,
        *,
        running: int = 0,
        cause: common_pb2.Cause | None = None,
    ) -> None:
        """Say how all of it fares."""
        report = report_on(desired, phase, running=running, cause=cause)
        await self.say(device_pb2.DeviceItem(report=report))

    async def ended(self) -> tuple[grpc.StatusCode, str]:
        """How the server ended it; what comes before is passed over."""
        async with asyncio.timeout(PATIENCE):
            try:
                while await self._call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError:
                pass
            return await self._call.code(), str(await self._call.details())
