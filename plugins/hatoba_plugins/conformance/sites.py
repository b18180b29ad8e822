"""What the kit's tests of devices are written with: a core that follows one backend."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

from hatoba.v1 import common_pb2, device_pb2, worker_pb2
from hatoba_plugins.backend import DeviceBackend
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance.far import DeviceHarness, FarDevice
from hatoba_plugins.errors import BackendError
from hatoba_plugins.values import (
    DeviceCame,
    DeviceNews,
    DeviceTold,
    DeviceWent,
    DeviceWish,
    Gap,
    NotYet,
    RefusedWish,
    Released,
    Synced,
    WishOutcome,
)

PATIENCE = 60.0
"""Real seconds after which something that was waited for is taken not to come."""
_REAL_STEP = 0.005
"""Seconds between two looks at what cannot wake us."""


class Site:
    """What was told of a backend's devices, followed as the core does it: it wishes again what it
    wants of a device that comes, and of all after Synced and Gap.
    """

    def __init__(self, harness: DeviceHarness) -> None:
        self.harness = harness
        self.devices: dict[str, FarDevice] = {}
        self.wanted: dict[str, device_pb2.DeviceDesired] = {}
        self.there: dict[str, DeviceCame] = {}
        self.told: dict[str, device_pb2.DeviceReport] = {}
        self.news: list[DeviceNews] = []
        self.wishes_again = True
        self.asked = 0
        """How often reports were asked for."""
        self._unsynced: set[str] = set()
        self._wished: set[str] = set()
        self._wake = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._follower: asyncio.Task[None] | None = None

    @property
    def role(self) -> DeviceBackend:
        """The backend's device role."""
        role = self.harness.backend.devices
        assert role is not None, "the backend has no device role"
        return role

    # -- devices --------------------------------------------------------------------------------

    async def add(self, *, comes: bool = True) -> FarDevice:
        """A new device, which is heard of before this returns if it comes."""
        name = f"kit-{uuid.uuid4().hex[:12]}"
        device = self.devices[name] = await self.harness.device(name)
        if comes:
            await self.come(device)
        return device

    async def come(self, device: FarDevice, generation: int = 0) -> device_pb2.DeviceHello:
        """It dials in, with the newest generation that it has; what it says of itself."""
        said = hello(device.name, generation)
        assert await device.come(said), "it is not let in"
        await self.until(lambda: self._hears(said), "it is told that it came")
        return said

    def _hears(self, said: device_pb2.DeviceHello) -> bool:
        came = self.there.get(said.device)
        return came is not None and came.hello == said

    async def go(self, device: FarDevice) -> None:
        """It ends its link, and that is heard of."""
        await device.go()
        await self.until(lambda: device.name not in self.there, "it is told that it went")

    def unsound(self) -> list[str]:
        """What can never be so, whatever was asked for."""
        found = []
        for device in self.devices.values():
            heard = [one.generation for one in device.heard]
            if heard != sorted(heard):
                found.append(f"{device.name} heard an older generation after a newer: {heard}")
        return found

    # -- wishes ---------------------------------------------------------------------------------

    async def wish(self, device: FarDevice, generation: int, wants: int = 1) -> WishOutcome:
        """Have one device want a set of this generation."""
        (outcome,) = await self.wish_all([DeviceWish(device.name, document(generation, wants))])
        return outcome

    async def wish_all(self, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        """Wish, and go on to want the newest of it; one answer for each, in order."""
        for one in wishes:
            known = self.wanted.get(one.device)
            if known is None or known.generation <= one.desired.generation:
                self.wanted[one.device] = one.desired
        self._wished |= {one.device for one in wishes}
        outcomes = await self.role.desire(wishes)
        assert [one.device for one in outcomes] == [one.device for one in wishes]
        return outcomes

    async def try_wish(self, device: FarDevice, generation: int) -> WishOutcome | None:
        """The same where it may be refused; None: it perhaps happened."""
        try:
            return await self.wish(device, generation)
        except BackendError as error:
            return RefusedWish(device.name, error)
        except Exception:  # noqa: BLE001 - whatever it was, it perhaps happened
            return None

    async def _wish_again(self, names: Iterable[str]) -> None:
        wishes = [DeviceWish(name, self.wanted[name]) for name in names if name in self.wanted]
        if not (wishes and self.wishes_again):
            return
        # What is refused now is wished again with the next news.
        with suppress(BackendError):
            await self.role.desire(wishes)

    async def forget(self, *names: str) -> None:
        """Forget devices until nothing is left of them, as a core does that has them no more."""
        for name in names:
            self.wanted.pop(name, None)
            self.told.pop(name, None)
        left = list(names)
        while left:
            outcomes = await self.role.forget(left)
            assert [one.name for one in outcomes] == left
            assert all(isinstance(one, Released | NotYet) for one in outcomes)
            waits = {one.name: one.after for one in outcomes if isinstance(one, NotYet)}
            left = list(waits)
            await self.harness.sleep(max(waits.values(), default=0.0))
        for name in names:
            await self.harness.dropped(name)

    # -- following ------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Ask for reports, and anew when they end, until cancelled."""
        while True:
            self.asked += 1
            self._unsynced = set(self.there)
            async with reporting(self.role) as news:
                async for one in news:
                    self._take(one)
                    await self._answer(one)
            await asyncio.sleep(0)

    def _take(self, one: DeviceNews) -> None:
        self.news.append(one)
        if isinstance(one, DeviceCame):
            self._unsynced.discard(one.device)
            self.there[one.device] = one
        elif isinstance(one, DeviceWent):
            self.there.pop(one.device, None)
        elif isinstance(one, DeviceTold):
            self._believe(one)
        elif isinstance(one, Synced):
            # Who was not told of to here went while nobody listened.
            for name in self._unsynced:
                self.there.pop(name, None)
            self._unsynced = set()
        self._wake.set()

    def _believe(self, one: DeviceTold) -> None:
        known = self.told.get(one.device)
        if known is None or one.report.generation >= known.generation:
            self.told[one.device] = one.report

    async def _answer(self, one: DeviceNews) -> None:
        if isinstance(one, DeviceCame):
            await self._wish_again([one.device])
        elif isinstance(one, Synced | Gap):
            await self._wish_again(list(self.wanted))

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow the backend; what a test leaves there is forgotten after it."""
        await self._tasks.__aenter__()
        self.listen()
        try:
            await self.until(lambda: Synced() in self.news, "all is told that is known")
            yield
        finally:
            with suppress(BackendError):
                await self.forget(*(self._wished | self.devices.keys()))
            await self.deaf()
            await self._tasks.__aexit__(None, None, None)

    def listen(self) -> None:
        """Begin to follow."""
        self._follower = self._tasks.create_task(self.follow(), name="follower")

    async def deaf(self) -> None:
        """Follow no more."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait([self._follower])

    async def reopen(self) -> None:
        """A restart of the core: nobody follows, the backend is opened anew."""
        await self.deaf()
        await self.harness.reopen()
        self.listen()

    # -- waiting --------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], bool], why: str = "") -> None:
        """Let time go on until something holds. AssertionError when it does not come to that."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not holds():
                    await self._step()
        except TimeoutError:
            heard = {one.name: [d.generation for d in one.heard] for one in self.devices.values()}
            raise AssertionError(
                f"it never came to this: {why or holds}; heard {heard}, told {self.told}"
            ) from None
        assert not self.unsound()

    async def _step(self) -> None:
        clock = self.harness.clock
        if isinstance(clock, FakeClock) and await clock.advance_to_next():
            return
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_REAL_STEP):
                await self._wake.wait()

    async def reaches(self, device: FarDevice, generation: int) -> None:
        """Wait until the newest that a device heard is this generation."""

        def reached() -> bool:
            return bool(device.heard) and device.heard[-1].generation == generation

        await self.until(reached, f"{device.name} hears generation {generation}")

    async def hears(self, device: FarDevice, report: device_pb2.DeviceReport) -> None:
        """Wait until the newest that is told of a device is this."""
        await self.until(
            lambda: self.told.get(device.name) == report, f"{device.name}'s report is told"
        )


@asynccontextmanager
async def on_site(harness: DeviceHarness) -> AsyncIterator[Site]:
    """The backend open and followed; what a test leaves there is forgotten after it."""
    await harness.__aenter__()
    try:
        site = Site(harness)
        async with site.following():
            yield site
            assert not site.unsound()
    finally:
        # Not told of the test's own failure: task groups of the backend would wrap it.
        await harness.__aexit__(None, None, None)


@asynccontextmanager
async def reporting(role: DeviceBackend) -> AsyncIterator[AsyncIterator[DeviceNews]]:
    """Reports that are closed at the end."""
    news = role.reports()
    try:
        yield news
    finally:
        close = getattr(news, "aclose", None)
        if close is not None:
            await close()


async def until_synced(role: DeviceBackend) -> list[DeviceNews]:
    """What new reports tell before Synced."""
    async with reporting(role) as news:
        return await until_told(news, lambda one: isinstance(one, Synced))


async def until_told(
    news: AsyncIterator[DeviceNews], ends: Callable[[DeviceNews], bool]
) -> list[DeviceNews]:
    """What is told before news by which it `ends`. AssertionError when it does not come to that."""
    told: list[DeviceNews] = []
    try:
        async with asyncio.timeout(PATIENCE):
            async for one in news:
                if ends(one):
                    return told
                told.append(one)
    except TimeoutError:
        raise AssertionError(f"it never came after {told}") from None
    raise AssertionError(f"the reports ended after {told}")


def hello(name: str, generation: int = 0) -> device_pb2.DeviceHello:
    """What a device says of itself when it comes, with another start of its agent each time."""
    return device_pb2.DeviceHello(
        device=name,
        boot_id="7c1f6a52-53cf-4d0f-8d0e-0a2b9e6d9f31",
        incarnation=uuid.uuid4().hex,
        installation=f"installation-{name}"[:64],
        protocol=1,
        version="0.0.0",
        platform=device_pb2.DevicePlatform(architecture="arm64", variant="v8"),
        capacity=device_pb2.DeviceCapacity(cpus=4, memory_bytes=1 << 30, disk_bytes=8 << 30),
        generation=generation,
    )


def document(generation: int, wants: int = 1) -> device_pb2.DeviceDesired:
    """What is wanted of a device: so many deployments, each with a specification of some length."""
    desired = device_pb2.DeviceDesired(generation=generation)
    for number in range(wants):
        spec = worker_pb2.ReplicaSpec(
            model_version=f"projects/default/models/digits/versions/{generation}",
            env={f"SETTING_{at}": "é" * 20 for at in range(4)},
        )
        want = desired.wants.add(
            deployment=deployment(number), revision=generation, tries=number, spec=spec
        )
        want.bake.FromSeconds(60)
    return desired


def report(generation: int, note: str = "", slots: int = 1) -> device_pb2.DeviceReport:
    """How a device says that it is; `note` tells it from others of the same generation."""
    told = device_pb2.DeviceReport(generation=generation, settled=True, disk_bytes=1 << 30)
    if note:
        told.problems.append(note)
    for number in range(slots):
        slot = told.slots.add(
            deployment=deployment(number),
            revision=generation,
            phase=device_pb2.SLOT_PHASE_BAD,
            running=max(0, generation - 1),
        )
        slot.cause.code = common_pb2.CAUSE_CODE_CRASH_LOOP
        slot.cause.message = "It ended with exit code 1."
    return told


def deployment(number: int) -> str:
    """Resource name of one of the deployments that the kit wants of devices."""
    return f"projects/default/deployments/kit-{number}"
