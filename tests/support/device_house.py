"""One server's part for devices, in memory, and devices that do as a test says."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import cast

from device_reports import GOOD, Phase, report_on
from device_rows import device
from memory_deployments import MemoryDeployments, Tokens
from rollout_rows import bare, revision, version

from hatoba.v1 import common_pb2, deployment_pb2, device_pb2, job_pb2, worker_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.errors import BackendError, Throttled
from hatoba_plugins.values import (
    Accepted,
    Away,
    DeviceCame,
    DeviceNews,
    DeviceTold,
    DeviceWent,
    DeviceWish,
    Gap,
    NotYet,
    RefusedWish,
    Released,
    ReleaseOutcome,
    Synced,
    WishOutcome,
)
from hatoba_scheduler.control.deployments import DeploymentBook, Live
from hatoba_scheduler.control.devices import DeviceBook, Enrolment
from hatoba_scheduler.control.fleet_loop import FleetLoop
from hatoba_scheduler.control.routes import RouteFeed
from hatoba_scheduler.convert_deployments import settings_of, with_defaults
from hatoba_scheduler.domain.device_rollouts import Row
from hatoba_scheduler.domain.devices import Device, DeviceState
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.rollouts import created, updated
from hatoba_scheduler.store.devices import DeviceEvent, DeviceStore, NotEnrolled, Write

NAME = "projects/default/deployments/reader"
BAKING = device_pb2.SLOT_PHASE_BAKING


@dataclass
class MemoryDevices:
    """Guards every write as a real store does."""

    deployments: MemoryDeployments
    kept: dict[str, Device] = field(default_factory=dict)
    events: list[DeviceEvent] = field(default_factory=list)
    writes: int = 0

    def as_store(self) -> DeviceStore:
        """For those who ask for the whole protocol."""
        return cast(DeviceStore, self)

    async def load(self) -> list[Device]:
        """All of them."""
        return list(self.kept.values())

    async def write(
        self, writes: Sequence[Write], events: Sequence[DeviceEvent] = ()
    ) -> frozenset[str]:
        """Write what its guard lets through."""
        self.writes += len(writes)
        stale = set()
        for one, expected in writes:
            known = self.kept.get(one.name)
            if (known.version if known else 0) == expected:
                self.kept[one.name] = one
            else:
                stale.add(one.name)
        self.events += events
        return frozenset(stale)

    async def enroll(
        self, write: Write, key: str, token: str, event: DeviceEvent
    ) -> Device | NotEnrolled | None:
        """Make it a device."""
        await self.write([write])
        return None

    async def touch(self, seen: Sequence[tuple[str, Micros]]) -> None:
        """Nothing is to be seen of it."""

    async def remove(self, name: str) -> None:
        """Forget it."""
        del self.kept[name]

    async def rows(self, deployment: str, number: int) -> list[Row]:
        """Those of a roll-out."""
        found = self.deployments.rows.items()
        return [row for (own, of, _), row in found if (own, of) == (deployment, number)]

    async def put_rows(self, rows: Sequence[Row]) -> None:
        """Write them."""
        self.deployments.rows |= {(row.deployment, row.number, row.device): row for row in rows}

    async def drop_rows(self, deployment: str, below: int) -> None:
        """Forget old ones."""
        for key in [key for key in self.deployments.rows if key[0] == deployment]:
            if key[1] < below:
                del self.deployments.rows[key]


@dataclass
class Streams:
    """A DeviceBackend whose devices are where the test puts them."""

    there: set[str] = field(default_factory=set)
    got: dict[str, list[device_pb2.DeviceDesired]] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    refusals: list[BackendError] = field(default_factory=list)
    """Of the next wishes, one each."""
    clinging: set[str] = field(default_factory=set)
    """Devices that cannot be forgotten yet."""
    deaf: bool = False
    """Whoever follows it is refused."""
    tell: asyncio.Queue[DeviceNews] = field(default_factory=asyncio.Queue)

    async def desire(self, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        """Who is there hears it."""
        return [self._desire(one) for one in wishes]

    def _desire(self, wish: DeviceWish) -> WishOutcome:
        if self.refusals:
            return RefusedWish(wish.device, self.refusals.pop())
        if wish.device not in self.there:
            return Away(wish.device)
        self.got.setdefault(wish.device, []).append(wish.desired)
        return Accepted(wish.device)

    async def reports(self) -> AsyncIterator[DeviceNews]:
        """What a test tells; a Gap ends it."""
        if self.deaf:
            raise Throttled("later")
        yield Synced()
        while not isinstance(news := await self.tell.get(), Gap):
            yield news

    async def forget(self, devices: Sequence[str]) -> list[ReleaseOutcome]:
        """Remember it."""
        self.forgotten += devices
        return [NotYet(one, 1.0) if one in self.clinging else Released(one) for one in devices]


@dataclass
class FleetHouse:
    """Store, books and loop."""

    deployments: MemoryDeployments = field(default_factory=MemoryDeployments)
    streams: Streams = field(default_factory=Streams)
    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryDevices = field(init=False)

    def __post_init__(self) -> None:
        """What a server makes of the store."""
        self.store = MemoryDevices(self.deployments)
        self._open()

    def _open(self) -> None:
        kept = self.deployments.as_store()
        self.book = DeploymentBook(kept, RouteFeed(kept, Tokens(), self.clock), self.clock)
        self.devices = DeviceBook(self.store.as_store(), self.clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FleetHouse]:
        """Recovered, with its loop. Again: another server on the same store."""
        self._open()
        await self.book.recover()
        await self.devices.recover()
        self.loop = FleetLoop(
            "edge", self.streams, self.book, self.devices, self.store.as_store(), self.clock
        )
        await self.loop.recover()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.loop.run(), name="loop")
            await self.turn()
            try:
                yield self
            finally:
                task.cancel()

    async def turn(self, seconds: float = 0.3) -> None:
        """Let everybody act, and a little time pass."""
        await self.clock.advance(seconds)

    # -- devices --------------------------------------------------------------------------------

    async def add(self, *names: str, comes: bool = True, **fields: object) -> None:
        """Devices that were enrolled."""
        for name in names:
            write = Write(device(name, **fields), 0)
            event = DeviceEvent(name, 1, "enrolled", "", "ann")
            enrolment = Enrolment(write, event)
            await self.devices.enroll(name, lambda _, made=enrolment: made, name, "token")  # type: ignore[misc]
        if comes:
            await self.come(*names)
        await self.turn()

    async def make_anew(self, name: str) -> None:
        """A new disk is enrolled as the device that lost its own."""
        before = self.devices.named(name)
        after = replace(before, state=DeviceState.ENROLLED, version=before.version + 1)
        enrolment = Enrolment(
            Write(after, before.version), DeviceEvent(name, 1, "enrolled", "", "")
        )
        await self.devices.enroll(name, lambda _: enrolment, name, "token")

    async def come(
        self,
        *names: str,
        generation: int = 0,
        transport: str = "grpc",
        vouched: bool = False,
        capacity: device_pb2.DeviceCapacity | None = None,
    ) -> None:
        """They connect."""
        for name in names:
            self.streams.there.add(name)
            hello = device_pb2.DeviceHello(
                device=name,
                boot_id="b",
                installation="i-" + name,
                generation=generation,
                capacity=capacity,
            )
            self.streams.tell.put_nowait(DeviceCame(name, hello, transport, vouched))
        await self.turn()

    async def go(self, *names: str) -> None:
        """They go away."""
        for name in names:
            self.streams.there.discard(name)
            self.streams.tell.put_nowait(DeviceWent(name))
        await self.turn()

    def wanted(self, name: str) -> device_pb2.DeviceDesired:
        """What a device was told last."""
        return self.streams.got[name][-1]

    def runs(self, name: str) -> list[tuple[int, int]]:
        """Revision and tries of what a device was told last."""
        return [(one.revision, one.tries) for one in self.wanted(name).wants]

    async def say(
        self,
        names: Sequence[str],
        phase: Phase,
        *,
        running: int = 0,
        cause: common_pb2.Cause | None = None,
        disk: int = 0,
    ) -> None:
        """Devices say how the newest that they were told fares."""
        for name in names:
            report = report_on(self.wanted(name), phase, running=running, cause=cause)
            report.disk_bytes = disk
            self.streams.tell.put_nowait(DeviceTold(name, report))
        await self.turn()

    async def work(self, *names: str) -> None:
        """They take it up, and it works."""
        await self.say(names, BAKING)
        await self.say(names, GOOD)

    # -- deployments ----------------------------------------------------------------------------

    async def deploy(
        self, selector: str = "tokyo", *, name: str = "reader", **targets: object
    ) -> Live:
        """A new deployment to the devices of a site."""
        spec = deployment_pb2.DeploymentSpec(model="digits:1", backend="edge")
        spec.devices.selector.append(job_pb2.LabelRequirement(key="site", values=[selector]))
        for field_name, value in targets.items():
            if isinstance(value, list):
                getattr(spec.devices, field_name).extend(value)
            else:
                setattr(spec.devices, field_name, value)
        wanted = settings_of(with_defaults(spec, "edge"), version(1))
        new = bare(wanted, backend="edge", name=name, uid=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)))
        change = created(new, revision(1), self.book.now("ann"), devices=True)
        live, _ = await self.book.create(change, revision(1), None)
        await self.turn()
        return live

    async def update(
        self,
        live: Live,
        number: int,
        *,
        memory: int = 0,
        disk: int = 0,
        images: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Another revision of it, which needs so much and has these images."""
        template = worker_pb2.ReplicaSpec(model_version=version(number))
        template.resources.memory_bytes = memory
        template.model.total_bytes = disk
        for architecture, digest in images.items():
            template.images.add(
                architecture=architecture, digest=digest, reference="r.example/m:1", pushed=True
            )
        new = replace(revision(number), template=template.SerializeToString())
        await self.book.change(
            live,
            lambda view: updated(view, view.deployment.settings, new, "", self.book.now("ann")),
        )
        await self.turn()

    def shown(self, live: Live) -> deployment_pb2.Deployment:
        """As callers see it."""
        return self.book.shown(live)
