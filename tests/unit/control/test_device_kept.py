"""What devices keep, on its way from a backend to the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from hatoba.v1 import device_pb2
from hatoba_plugins.backend import BringsRecords
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.errors import Throttled
from hatoba_plugins.values import DeviceKept
from hatoba_scheduler.control.device_kept import KeptLoop
from hatoba_scheduler.errors import Unavailable


@dataclass
class Carrier:
    """A device role; `fails` has the failures of the next answers."""

    sent: asyncio.Queue[DeviceKept] = field(default_factory=asyncio.Queue)
    answers: list[tuple[str, int]] = field(default_factory=list)
    fails: list[Exception] = field(default_factory=list)

    async def records(self) -> AsyncIterator[DeviceKept]:
        while True:
            yield await self.sent.get()

    async def stored(self, device: str, position: int) -> None:
        if self.fails:
            raise self.fails.pop()
        self.answers.append((device, position))

    def send(self, device: str, first: int, count: int) -> None:
        records = [device_pb2.DeviceRecord() for _ in range(count)]
        told = device_pb2.DeviceRecords(first=first, records=records)
        self.sent.put_nowait(DeviceKept(device, told))


@dataclass
class Desk:
    """Stores; `fails` as often as it says."""

    fails: int = 0

    async def keep(self, name: str, told: device_pb2.DeviceRecords) -> int:
        del name
        if self.fails:
            self.fails -= 1
            raise Unavailable("the store is away")
        return told.first + len(told.records) - 1


async def test_what_is_stored_is_answered_whatever_went_wrong_before() -> None:
    carrier, desk, clock = Carrier(), Desk(fails=1), FakeClock()
    assert isinstance(carrier, BringsRecords)
    loop = KeptLoop("edge", carrier, desk, clock)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(loop.run())
        # This one is lost, as the store is; the device sends it again.
        carrier.send("a", 1, 2)
        await clock.advance(5.0)
        assert carrier.answers == []
        carrier.fails.append(Throttled("slower"))
        for _ in range(2):
            carrier.send("a", 1, 2)
            await clock.advance(5.0)
        carrier.send("b", 7, 1)
        await clock.advance(5.0)
        assert carrier.answers == [("a", 2), ("b", 7)]
        running.cancel()
