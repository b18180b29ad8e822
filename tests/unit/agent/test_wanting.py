"""What is wanted, on its way to the conductor: the newest alone, whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from waiting import turns

from hatoba.v1 import device_pb2, worker_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_worker.agent.slots import Release, Slots, Wanted
from hatoba_worker.agent.wanting import AGAIN, Wanting
from hatoba_worker.agent.watchdog import Watchdog

ADDER = "projects/default/deployments/adder"


@dataclass
class Device:
    """Offers and conductor; `full`: its disk takes nothing."""

    full: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    slots: Slots = field(default_factory=Slots)
    taken: list[int] = field(default_factory=list)
    tells: int = 0

    def told(self) -> None:
        self.tells += 1

    async def offer(self, spec: worker_pb2.ReplicaSpec) -> str:
        await self.gate.wait()
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return f"sha256:{spec.model_version}"

    async def want(self, generation: int, wanted: Mapping[str, Wanted]) -> bool:
        self.slots = replace(self.slots, generation=generation, wanted=dict(wanted))
        self.taken.append(generation)
        return True


def desired(generation: int, deployment: str = ADDER, **fields: int) -> device_pb2.DeviceDesired:
    made = device_pb2.DeviceDesired(generation=generation)
    spec = worker_pb2.ReplicaSpec(model_version=f"v{generation}")
    want = made.wants.add(deployment=deployment, spec=spec, **fields)
    want.bake.FromMilliseconds(2_500)
    return made


@asynccontextmanager
async def taking(device: Device, clock: FakeClock) -> AsyncIterator[Wanting]:
    wanting = Wanting(device, device, device.told, Watchdog({}).beat("wanting"), clock.sleep)
    device.gate.set()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(wanting.run())
        yield wanting
        running.cancel()


async def test_each_want_is_one_slots_release() -> None:
    device = Device()
    async with taking(device, FakeClock()) as wanting:
        wanting.take(desired(5, revision=3, tries=1))
        await turns()
    release = Release(3, 1, "sha256:v5")
    assert device.slots.generation == 5
    assert device.slots.wanted == {"default.adder": Wanted(release, 2.5)}


async def test_nothing_wanted_is_a_want_too() -> None:
    device = Device()
    async with taking(device, FakeClock()) as wanting:
        wanting.take(device_pb2.DeviceDesired(generation=1))
        await turns()
    assert device.taken == [1]
    assert device.slots.wanted == {}


async def test_what_is_not_newer_is_ignored_and_the_far_future_is_taken() -> None:
    device = Device(slots=Slots(generation=4))
    async with taking(device, FakeClock()) as wanting:
        for generation in (3, 4, 2**62, 5):
            wanting.take(desired(generation))
            await turns()
    assert device.taken == [2**62]


async def test_of_those_that_came_meanwhile_the_newest_is_taken() -> None:
    device = Device()
    async with taking(device, FakeClock()) as wanting:
        device.gate.clear()
        wanting.take(desired(1))
        await turns()
        for generation in (3, 4, 2):
            wanting.take(desired(generation))
        device.gate.set()
        await turns()
    assert device.taken == [1, 4]


async def test_a_full_disk_is_tried_again_and_said() -> None:
    device, clock = Device(full=True), FakeClock()
    async with taking(device, clock) as wanting:
        wanting.take(desired(1))
        await clock.until_asleep()
        assert "generation 1 cannot be kept" in wanting.problem
        assert device.tells == 1
        device.full = False
        await clock.advance(AGAIN)
        await turns()
        assert device.taken == [1]
        assert wanting.problem == ""
        assert device.tells == 2


async def test_after_a_full_disk_the_newest_is_taken() -> None:
    device, clock = Device(full=True), FakeClock()
    async with taking(device, clock) as wanting:
        wanting.take(desired(1))
        await clock.until_asleep()
        wanting.take(desired(2))
        device.full = False
        await clock.advance(AGAIN)
        await turns()
    assert device.taken == [2]


async def test_one_that_cannot_be_named_leaves_the_others_alone() -> None:
    device = Device()
    made = desired(1, deployment="../../etc")
    made.wants.add(deployment=ADDER)
    async with taking(device, FakeClock()) as wanting:
        wanting.take(made)
        await turns()
    assert list(device.slots.wanted) == ["default.adder"]
