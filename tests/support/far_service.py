"""A device backend in memory, for the kit of devices: a service in the middle that keeps documents,
as a provider's does, or only passes on what comes while a device has a link.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

from hatoba.v1 import device_pb2
from hatoba_plugins.backend import API_VERSION, Backend, BackendContext
from hatoba_plugins.backends.iot_edge.backend import EdgeBackend
from hatoba_plugins.backends.iot_edge.streams import StreamDevices
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance import Ability, DeviceFaults, FarHarness
from hatoba_plugins.errors import BackendError, Retry, Throttled
from hatoba_plugins.values import (
    Accepted,
    Away,
    BackendOptions,
    Capabilities,
    DeviceCame,
    DeviceNews,
    DeviceTold,
    DeviceWent,
    DeviceWish,
    Gap,
    Rate,
    RefusedWish,
    Released,
    ReleaseOutcome,
    Superseded,
    Synced,
    WishOutcome,
)

SHADOW = "shadow"
Effect = Callable[[], int]
Piece = device_pb2.DeviceDesired | tuple[int, device_pb2.DeviceReport]


@dataclass
class Link:
    """One connection of a device. What it does not carry now waits in `held`."""

    hello: device_pb2.DeviceHello
    held: list[Piece] | None = None


class Thing:
    """A device as the service has it, and its far end: a `FarDevice`."""

    def __init__(self, service: FarService, name: str) -> None:
        self.name = name
        self.heard: list[device_pb2.DeviceDesired] = []
        self.link: Link | None = None
        self.former: list[Link] = []
        self.desired: device_pb2.DeviceDesired | None = None
        self.reported: device_pb2.DeviceReport | None = None
        self.version = 0
        """Of the report that counts; those that come with an older one are late."""
        self.said: list[tuple[int, device_pb2.DeviceReport]] = []
        self.swap: list[tuple[int, device_pb2.DeviceReport]] | None = None
        self._service = service

    async def come(self, hello: device_pb2.DeviceHello) -> bool:
        """See FarDevice."""
        return self._service.let_in(self, hello)

    async def go(self) -> None:
        """See FarDevice."""
        self._service.left(self)

    async def tell(self, report: device_pb2.DeviceReport) -> None:
        """See FarDevice."""
        if self.link is None:
            return
        piece = (len(self.said) + 1, report)
        self.said.append(piece)
        if self.link.held is not None:
            self.link.held.append(piece)
        elif self.swap is None:
            self._service.told(self, piece)
        else:
            self.swap.append(piece)
            if len(self.swap) == 2:
                second, first = self.swap
                self.swap = None
                for one in (first, second):
                    self._service.told(self, one)

    def hear(self, desired: device_pb2.DeviceDesired) -> None:
        """Something is sent to it."""
        if self.link is None:
            return
        if self.link.held is not None:
            self.link.held.append(desired)
        else:
            self.heard.append(desired)


@dataclass
class FarService:
    """Who has devices, and readers of their news. It outlives the backends that use it."""

    clock: FakeClock
    keeps: bool
    things: dict[str, Thing] = field(default_factory=dict)
    readers: set[asyncio.Queue[DeviceNews | None]] = field(default_factory=set)
    faults: list[Callable[[Effect], Awaitable[int]]] = field(default_factory=list)
    met: asyncio.Event = field(default_factory=asyncio.Event)
    unreachable_until: float = 0.0
    _tasks: asyncio.TaskGroup | None = None
    _late: list[asyncio.Task[None]] = field(default_factory=list)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """A backend is open; with it ends what would still land, and all that is read."""
        async with asyncio.TaskGroup() as self._tasks:
            try:
                yield
            finally:
                self.tell(None)
                for task in self._late:
                    task.cancel()

    def lands_in(self, seconds: float, effect: Effect) -> None:
        """Let an update take effect so much later."""
        assert self._tasks is not None
        self._late.append(self._tasks.create_task(self._land(seconds, effect), name="late"))

    async def _land(self, seconds: float, effect: Effect) -> None:
        await self.clock.sleep(seconds)
        effect()

    # -- what backends call ---------------------------------------------------------------------

    async def update(self, name: str, desired: device_pb2.DeviceDesired) -> int:
        """Want this of a device, unless something newer is; the generation that is wanted now."""
        self.check_reachable()
        if not self.faults:
            return self.wanted(name, desired)
        self.met.set()
        fault = self.faults.pop(0)
        return await fault(lambda: self.wanted(name, desired))

    def check_reachable(self) -> None:
        """Raise Retry while nobody gets through."""
        if self.clock.monotonic() < self.unreachable_until:
            raise Retry("nobody answers", after=0.1)

    def wanted(self, name: str, desired: device_pb2.DeviceDesired) -> int:
        """The effect of an update."""
        thing = self.things.get(name)
        if thing is None:
            return desired.generation
        if thing.desired is not None and thing.desired.generation > desired.generation:
            return thing.desired.generation
        thing.desired = desired
        thing.hear(desired)
        return desired.generation

    def forget(self, name: str) -> None:
        """Have no such device."""
        thing = self.things.pop(name, None)
        if thing is not None:
            self.left(thing)

    def listen(self) -> asyncio.Queue[DeviceNews | None]:
        """A new reader, who begins with everything."""
        queue: asyncio.Queue[DeviceNews | None] = asyncio.Queue()
        self.readers.add(queue)
        for one in self.everything():
            queue.put_nowait(one)
        return queue

    def everything(self) -> list[DeviceNews]:
        """All that is known, and Synced."""
        news: list[DeviceNews] = []
        for thing in self.things.values():
            if thing.link is not None:
                news.append(DeviceCame(thing.name, thing.link.hello, SHADOW))
            if thing.reported is not None:
                news.append(DeviceTold(thing.name, thing.reported))
        return [*news, Synced()]

    def tell(self, *news: DeviceNews | None) -> None:
        """All readers hear this; None ends them."""
        for queue in self.readers:
            for one in news:
                queue.put_nowait(one)

    # -- what devices do ------------------------------------------------------------------------

    def let_in(self, thing: Thing, hello: device_pb2.DeviceHello) -> bool:
        """A device dials."""
        if self.things.get(thing.name) is not thing:
            return False
        if thing.link is not None:
            thing.former.append(thing.link)
        thing.link = Link(hello)
        self.tell(DeviceCame(thing.name, hello, SHADOW))
        if self.keeps and thing.desired is not None:
            thing.hear(thing.desired)
        return True

    def left(self, thing: Thing) -> None:
        """A device's link is no more."""
        if thing.link is not None:
            thing.link = None
            self.tell(DeviceWent(thing.name))

    def told(self, thing: Thing, piece: tuple[int, device_pb2.DeviceReport]) -> None:
        """What a device said arrives."""
        version, report = piece
        if self.things.get(thing.name) is thing and version > thing.version:
            thing.version, thing.reported = version, report
            self.tell(DeviceTold(thing.name, report))

    def restart(self) -> None:
        """The backend is closed; what only it knew is gone."""
        if not self.keeps:
            for thing in self.things.values():
                thing.desired = None


class ServiceFaults(DeviceFaults):
    """All that the kit knows."""

    def __init__(self, service: FarService) -> None:
        self._service = service

    async def reply_lost_after_effect(self) -> None:
        async def fault(effect: Effect) -> int:
            effect()
            raise OSError("the connection broke")

        self._service.faults.append(fault)

    async def double_reply(self) -> None:
        async def fault(effect: Effect) -> int:
            effect()
            return effect()

        self._service.faults.append(fault)

    async def land_late(self, seconds: float) -> None:
        async def fault(effect: Effect) -> int:
            self._service.lands_in(seconds, effect)
            never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            return await never

        self._service.faults.append(fault)

    async def throttle(self) -> None:
        async def fault(effect: Effect) -> int:
            raise Throttled("too often", after=1.0)

        self._service.faults.append(fault)

    async def until_called(self) -> None:
        await self._service.met.wait()

    async def unreachable_for(self, seconds: float) -> None:
        self._service.unreachable_until = self._service.clock.monotonic() + seconds
        self._service.tell(None)

    async def gap(self) -> None:
        self._service.tell(Gap(), *self._service.everything())

    async def end_watches(self) -> None:
        self._service.tell(None)

    async def cut(self, device: str) -> None:
        self._service.left(self._service.things[device])

    async def hold(self, device: str) -> None:
        link = self._service.things[device].link
        assert link is not None
        link.held = []

    async def let_go(self, device: str) -> None:
        thing = self._service.things[device]
        for link in thing.former:
            # What was sent to the device there, it does not read any more.
            for piece in link.held or ():
                if isinstance(piece, tuple):
                    self._service.told(thing, piece)
        thing.former.clear()

    async def silence(self, device: str) -> None:
        await self.hold(device)
        self._service.left(self._service.things[device])

    async def swap_reports(self, device: str) -> None:
        self._service.things[device].swap = []

    async def repeat_report(self, device: str) -> None:
        thing = self._service.things[device]
        self._service.told(thing, thing.said[0])


class ServiceDevices:
    """A DeviceBackend."""

    def __init__(self, service: FarService, ctx: BackendContext) -> None:
        self.service = service
        self.ctx = ctx

    async def desire(self, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        """See DeviceBackend."""
        return [await self.desire_one(wish) for wish in wishes]

    async def desire_one(self, wish: DeviceWish) -> WishOutcome:
        """One after the other, each with its own answer."""
        await self.ctx.budget("update")
        try:
            newest = await self.service.update(wish.device, wish.desired)
        except BackendError as error:
            return RefusedWish(wish.device, error)
        if newest > wish.desired.generation:
            return Superseded(wish.device, newest)
        thing = self.service.things.get(wish.device)
        there = thing is not None and thing.link is not None
        return Accepted(wish.device) if there or self.service.keeps else Away(wish.device)

    async def reports(self) -> AsyncIterator[DeviceNews]:
        """See DeviceBackend."""
        queue = self.service.listen()
        try:
            while (one := await queue.get()) is not None:
                yield one
        finally:
            self.service.readers.discard(queue)

    async def forget(self, devices: Sequence[str]) -> list[ReleaseOutcome]:
        """See DeviceBackend."""
        for device in devices:
            await self.ctx.budget("delete")
            self.service.forget(device)
        return [Released(device) for device in devices]


class ServiceBackend(EdgeBackend):
    """An opened instance."""

    def capabilities(self) -> Capabilities:
        """Two calls, which have limits."""
        rate = Rate(1_000, 1_000)
        return Capabilities(limits=(("update", rate), ("delete", rate)))


class ServiceType:
    """The type as a plug-in would register it."""

    name = "far-service"
    api = API_VERSION
    options: type[BackendOptions] = BackendOptions

    def __init__(self, service: FarService) -> None:
        self._service = service

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[Backend]:
        """Open one instance."""
        devices = cast(StreamDevices, ServiceDevices(self._service, ctx))
        async with self._service.serving():
            yield ServiceBackend(devices)


class ServiceHarness(FarHarness):
    """The service, and a backend on it."""

    def __init__(self, *, keeps: bool = True) -> None:
        clock = FakeClock()
        self.service = FarService(clock, keeps)
        faults = ServiceFaults(self.service)
        super().__init__(ServiceType(self.service), clock=clock, faults=faults)
        if keeps:
            self.abilities = frozenset(Ability)

    async def device(self, name: str) -> Thing:
        """See DeviceHarness."""
        thing = self.service.things[name] = Thing(self.service, name)
        return thing

    async def reopen(self) -> None:
        """See DeviceHarness."""
        await self.__aexit__(None, None, None)
        self.service.restart()
        await self.__aenter__()
