"""What the server is told: whole, when it changed, and what became of each slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from waiting import News

from hatoba.v1 import common_pb2, device_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_worker.agent.conductor import Phase, Status
from hatoba_worker.agent.slots import Release, Slot, Slots, Wanted
from hatoba_worker.agent.telling import GATHER, Sources, Telling, cause_message
from hatoba_worker.agent.watchdog import Watchdog

ADDER, SLOT = "projects/default/deployments/adder", "default.adder"
ONE, TWO = Release(1, 0, "sha256:1"), Release(2, 4, "sha256:2")
GONE = {"code": "IMAGE_MISSING", "message": "it is not there", "passing": False}


@dataclass
class Device:
    """How everything is; tests change it."""

    slots: Slots = field(default_factory=Slots)
    statuses: dict[str, Status] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    disk: int = 500_000_000
    problems: list[str] = field(default_factory=list)
    reports: list[device_pb2.DeviceReport] = field(default_factory=list)
    happened: list[tuple[str, str]] = field(default_factory=list)
    news: News = field(default_factory=News)
    clock: FakeClock = field(default_factory=FakeClock)

    def status(self, name: str) -> Status:
        return self.statuses.get(name, Status(name, Phase.REMOVED, None, None))

    def tell(self, report: device_pb2.DeviceReport) -> None:
        self.reports.append(report)
        self.news.tell()

    def be(self, phase: Phase, release: Release | None, running: Release | None = None) -> None:
        """Have the one slot like this."""
        self.statuses[SLOT] = Status(SLOT, phase, release, running)
        wanted = {SLOT: Wanted(release)} if release is not None else {}
        self.slots = Slots(7, wanted, {SLOT: Slot(SLOT)})

    @asynccontextmanager
    async def telling(self) -> AsyncIterator[Telling]:
        sources = Sources(
            self,
            lambda name: self.addresses.get(name, ""),
            lambda: self.disk,
            lambda: self.problems,
        )

        def happened(kind: str, message: str) -> None:
            self.happened.append((kind, message))

        made = Telling(sources, self.tell, happened, Watchdog({}).beat("telling"), self.clock.sleep)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(made.run())
            await self.news.until(lambda: self.reports)
            yield made
            running.cancel()

    async def next(self, telling: Telling) -> device_pb2.DeviceReport:
        """The report after a change."""
        count = len(self.reports)
        telling.changed()
        await self.clock.until_asleep()
        await self.clock.advance(GATHER)
        await self.news.until(lambda: len(self.reports) > count)
        return self.reports[-1]


async def test_a_report_says_how_each_slot_is() -> None:
    device = Device()
    device.be(Phase.BAKING, TWO, TWO)
    device.addresses[SLOT] = "127.0.0.1:9"
    device.problems = ["its disk is full"]
    async with device.telling():
        (report,) = device.reports
    assert (report.generation, report.settled, list(report.problems)) == (7, False, device.problems)
    (slot,) = report.slots
    assert (slot.deployment, slot.revision, slot.tries) == (ADDER, 2, 4)
    assert (slot.phase, slot.running) == (device_pb2.SLOT_PHASE_BAKING, 2)
    assert (slot.address, slot.inconsistent) == ("127.0.0.1:9", False)
    assert not slot.HasField("cause")


async def test_a_cause_is_told_in_the_contracts_words() -> None:
    device = Device()
    device.be(Phase.BAD, TWO, ONE)
    device.statuses[SLOT] = replace(device.statuses[SLOT], cause=GONE, inconsistent=True)
    async with device.telling():
        (slot,) = device.reports[0].slots
    assert (slot.revision, slot.running, slot.inconsistent) == (2, 1, True)
    assert slot.cause.code == common_pb2.CAUSE_CODE_IMAGE_MISSING
    assert slot.cause.message == "it is not there"


@pytest.mark.parametrize("phase", list(Phase))
async def test_every_phase_has_its_word(phase: Phase) -> None:
    device = Device()
    device.be(phase, TWO)
    async with device.telling():
        (slot,) = device.reports[0].slots
    assert device_pb2.SlotPhase.Name(slot.phase) == f"SLOT_PHASE_{phase.name}"


async def test_settled_is_what_the_slots_say() -> None:
    device = Device()
    device.slots = Slots(3, {SLOT: Wanted(ONE)}, {SLOT: Slot(SLOT, good=ONE)})
    device.statuses[SLOT] = Status(SLOT, Phase.GOOD, ONE, ONE)
    async with device.telling():
        assert device.reports[0].settled


async def test_changes_come_together_and_nothing_is_told_twice() -> None:
    device = Device()
    device.be(Phase.FETCHING, TWO)
    async with device.telling() as telling:
        device.be(Phase.STARTING, TWO)
        telling.changed(SLOT)
        device.be(Phase.BAKING, TWO, TWO)
        report = await device.next(telling)
        assert report.slots[0].phase == device_pb2.SLOT_PHASE_BAKING
        telling.changed()
        await device.clock.until_asleep()
        await device.clock.advance(GATHER)
        device.be(Phase.GOOD, TWO, TWO)
        await device.next(telling)
    assert len(device.reports) == 3


async def test_a_slot_that_is_as_it_was_wakes_nobody() -> None:
    device = Device()
    device.be(Phase.GOOD, TWO, TWO)
    async with device.telling() as telling:
        for _ in range(10):
            telling.changed(SLOT)
            await asyncio.sleep(0)
        assert device.clock.sleepers == 0
        device.addresses[SLOT] = "127.0.0.1:9"
        telling.changed(SLOT)
        await device.clock.until_asleep()


async def test_a_slot_that_is_gone_is_told_at_once() -> None:
    device = Device()
    device.be(Phase.REMOVED, None)
    async with device.telling() as telling:
        device.slots = Slots(8)
        telling.changed(SLOT)
        await device.clock.until_asleep()
        await device.clock.advance(GATHER)
        await device.news.until(lambda: len(device.reports) == 2)
    assert list(device.reports[-1].slots) == []


async def test_the_free_disk_alone_is_told_when_it_moved_far() -> None:
    device = Device()
    async with device.telling() as telling:
        first = device.reports[0].disk_bytes
        assert first % (1 << 20) == 0
        assert first == pytest.approx(device.disk, abs=1 << 20)
        device.disk -= 10_000_000
        device.be(Phase.WAITING, ONE)
        assert (await device.next(telling)).disk_bytes == first
        device.disk -= 100_000_000
        assert (await device.next(telling)).disk_bytes < first


async def test_what_becomes_of_a_slot_happens_once() -> None:
    device = Device()
    device.be(Phase.FETCHING, ONE)
    async with device.telling() as telling:
        for phase in (Phase.STARTING, Phase.BAKING, Phase.STARTING, Phase.BAKING, Phase.GOOD):
            device.be(phase, ONE, ONE)
            await device.next(telling)
        device.be(Phase.BAD, TWO, ONE)
        device.statuses[SLOT] = replace(device.statuses[SLOT], cause=GONE)
        await device.next(telling)
        device.slots = Slots(8)
        await device.next(telling)
    assert device.happened == [
        ("switched", f"{ADDER} revision 1 is tried."),
        ("good", f"{ADDER} revision 1 stayed healthy."),
        ("bad", f"{ADDER} revision 2 was given up: it is not there"),
        ("removed", f"{ADDER} is not on this device any more."),
    ]


async def test_how_it_was_when_the_agent_began_is_no_news() -> None:
    device = Device()
    device.be(Phase.GOOD, ONE, ONE)
    async with device.telling() as telling:
        device.addresses[SLOT] = "127.0.0.1:9"
        await device.next(telling)
    assert device.happened == []


@pytest.mark.parametrize(
    ("code", "passing", "origin"),
    [
        ("CRASH_LOOP", False, common_pb2.ORIGIN_USER),
        ("NO_CAPACITY", True, common_pb2.ORIGIN_CAPACITY),
        ("IMAGE_UNREACHABLE", True, common_pb2.ORIGIN_INFRASTRUCTURE),
    ],
)
def test_causes_keep_what_the_journal_has(code: str, passing: bool, origin: int) -> None:
    told = {"code": code, "message": "why", "passing": passing, "lines": ["a", "b"]}
    found = cause_message(told)
    assert common_pb2.CauseCode.Name(found.code) == f"CAUSE_CODE_{code}"
    assert (found.message, found.retryable, found.origin) == ("why", passing, origin)
    assert list(found.last_log_lines) == ["a", "b"]


def test_a_cause_of_another_version_is_told_by_its_words() -> None:
    found = cause_message({"code": "STRUCK_BY_LIGHTNING", "message": "why"})
    assert found.code == common_pb2.CAUSE_CODE_UNSPECIFIED
    assert found.message == "why"
