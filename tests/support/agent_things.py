"""Devices of AWS IoT that are the agent's own link: keys made on the device, TLS with its
certificate, and ministack behind.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from held_link import HeldLink
from iot_front import HOST, IotFront
from iot_yard import IotHarness, IotYard, aws
from linked_thing import LinkedThing
from waiting import until

from hatoba.v1 import device_pb2
from hatoba_plugins.backends.iot_edge.things import ThingIdentity
from hatoba_worker.agent.provisioning import request


def is_let_in(emulator_at: str, certificate: str) -> bool:
    """Whether a certificate is active, and a thing's; blocks."""
    iot = aws(emulator_at, "iot")
    try:
        told = iot.describe_certificate(certificateId=certificate)["certificateDescription"]
        things = iot.list_principal_things(principal=told["certificateArn"])["things"]
    except iot.exceptions.ResourceNotFoundException:
        return False
    return bool(told["status"] == "ACTIVE" and things)


class AgentDevice:
    """A `FarDevice`: the agent's link, over a network that can be held and cut."""

    def __init__(self, name: str, thing: LinkedThing, net: HeldLink, tasks: asyncio.TaskGroup):
        self.name = name
        self.net = net
        self.far = thing
        self.thing = ""
        self.certificate = ""
        self._tasks = tasks
        self._running: asyncio.Task[None] | None = None

    @property
    def heard(self) -> list[device_pb2.DeviceDesired]:
        """See FarDevice."""
        return self.far.heard

    @property
    def link(self) -> HeldLink:
        """Its network."""
        return self.net

    @property
    def links(self) -> int:
        """How often it said hello."""
        return self.far.hellos

    def enroll(self, identity: ThingIdentity, authority: str) -> None:
        """It has a certificate for its key; blocks."""
        self.thing, self.certificate = identity.thing, identity.certificate_arn
        address = f"{HOST}:{self.net.port}"
        self.far.enroll(self.name, address, identity.thing, identity.certificate, authority)

    async def come(self, hello: device_pb2.DeviceHello) -> bool:
        """See FarDevice."""
        await self.leave()
        self.far.hello_said = hello
        before, link = len(self.far.waits), self.far.link
        self._running = self._tasks.create_task(self._run(), name=f"device:{self.name}")
        await until(lambda: link.connected or len(self.far.waits) > before)
        return link.connected

    async def _run(self) -> None:
        async with self.far.running():
            await asyncio.Event().wait()

    async def go(self) -> None:
        """See FarDevice."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.wait([running])

    async def leave(self) -> None:
        """Give up a link that it has, without a word."""
        await self.far.tunnel.cut()
        await self.go()

    async def tell(self, report: device_pb2.DeviceReport) -> None:
        """See FarDevice."""
        if self._running is None or not self.far.link.connected:
            return
        if not self.net.held:
            await self.far.tells(report)
            return
        carried = self.far.tunnel.carried
        before = carried.up
        self.far.link.tell(report)
        await until(lambda: carried.up > before)

    async def close(self) -> None:
        """It is no more."""
        await self.leave()
        await self.net.close()


class AgentIotHarness(IotHarness):
    """The same instance of the backend, with agents' links for devices."""

    def __init__(self, yard: IotYard, **options: object) -> None:
        super().__init__(yard, **options)
        self._stack = AsyncExitStack()
        self._root = Path()
        self._front: IotFront | None = None
        self.far: dict[str, AgentDevice] = {}  # type: ignore[assignment]  # these in place of those

    async def __aenter__(self) -> Self:
        place = await asyncio.to_thread(tempfile.TemporaryDirectory)
        self._stack.push_async_callback(asyncio.to_thread, place.cleanup)
        self._root = Path(place.name)
        endpoint = self.yard.emulator.endpoint
        self._front = await asyncio.to_thread(
            IotFront, self._root / "front", endpoint, partial(is_let_in, endpoint)
        )
        await self._front.open()
        self._stack.push_async_callback(self._front.close)
        return await super().__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        await self._stack.aclose()

    async def device(self, name: str) -> AgentDevice:  # type: ignore[override]  # in place of those
        """See DeviceHarness."""
        if former := self.far.get(name):
            await former.close()
        assert self._front is not None
        net = HeldLink(self._front.port)
        await net.open()
        data = self._root / f"{name}-{len(list(self.far))}"
        await asyncio.to_thread(data.mkdir, exist_ok=True)
        made = AgentDevice(name, LinkedThing(data), net, self._tasks)
        csr = await asyncio.to_thread(request, data)
        identity = await self.devices.things.enroll(name, csr)
        authority = await asyncio.to_thread(self._front.authority.pem.read_text)
        await asyncio.to_thread(made.enroll, identity, authority)
        self.far[name] = made
        return made
