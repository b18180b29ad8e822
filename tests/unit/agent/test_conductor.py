"""The agent's loop: what is wanted comes to run, whatever link, disk and power do meanwhile."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from waiting import turns

from hatoba_plugins.clock import FakeClock
from hatoba_worker.agent.blobs import Cut, Full, Gone, NoEngine, NotTaken, Unusable, Wrong
from hatoba_worker.agent.conductor import Conductor, Phase, StillRuns
from hatoba_worker.agent.journal import Journal
from hatoba_worker.agent.slots import NOTHING_RUNS, Health, Json, Release, Wanted
from hatoba_worker.agent.watchdog import EXIT_CODE, SILENT_MOST, Watchdog

NAME = "reader"
ONE, TWO, THREE = (Release(number, 0, f"sha256:{number}") for number in (1, 2, 3))
BAKE = 5.0
CRASHED = {"code": "CRASH_LOOP", "message": "It ended with exit code 1."}


@dataclass
class Disk:
    """Content that can be had, or not; what was fetched outlives a reboot."""

    trouble: dict[Release, Exception] = field(default_factory=dict)
    gate: asyncio.Event | None = None
    here: set[Release] = field(default_factory=set)
    rotten: set[Release] = field(default_factory=set)
    fetched: list[Release] = field(default_factory=list)
    checked: list[Release] = field(default_factory=list)
    cancelled: int = 0
    stuck: asyncio.Event | None = None
    """What is not needed any more is not removed before this."""

    async def fetch(self, name: str, release: Release) -> None:
        self.fetched.append(release)
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if release in self.trouble:
            raise self.trouble[release]
        self.here.add(release)
        self.rotten.discard(release)

    async def check(self, name: str, release: Release) -> bool:
        self.checked.append(release)
        if release in self.rotten:
            self.here.discard(release)
        return release in self.here

    async def collect(self, keep: Mapping[str, frozenset[Release]]) -> None:
        if self.stuck is not None:
            await self.stuck.wait()
        self.here &= {one for releases in keep.values() for one in releases}


@dataclass
class Servers:
    """What runs. A release in `bad` ends at once; `deaf`: none ends when it is told to."""

    clock: FakeClock
    deaf: bool = False
    refused: int = 0
    bad: set[Release] = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    runs: dict[str, tuple[Release, float]] = field(default_factory=dict)
    history: list[Release] = field(default_factory=list)

    async def run(self, name: str, release: Release) -> None:
        self.history.append(release)
        self.runs[name] = release, self.clock.monotonic()
        self.news.set()

    async def stop(self, name: str) -> None:
        if self.deaf:
            self.refused += 1
            raise StillRuns("it does not end")
        self.runs.pop(name, None)
        self.news.set()

    def health(self, name: str) -> Health:
        if name not in self.runs:
            return NOTHING_RUNS
        release, since = self.runs[name]
        if release in self.bad:
            return Health(release, 0.0, CRASHED)
        return Health(release, self.clock.monotonic() - since)


class Device:
    """A disk that stays, and boots that come and go."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.disk = Disk()
        self.bad: set[Release] = set()
        self.boots = 0

    @asynccontextmanager
    async def boot(self) -> AsyncIterator[Boot]:
        self.boots += 1
        boot = Boot(self)
        await boot.conductor.load()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(boot.conductor.run())
            yield boot
            running.cancel()
        await asyncio.to_thread(boot.journal.close)


class Boot:
    """From power to power cut."""

    def __init__(self, device: Device) -> None:
        self.clock = FakeClock()
        self.device = device
        self.servers = Servers(self.clock, bad=device.bad)
        self.ended: list[int] = []
        self.watchdog = Watchdog({}, self.clock.monotonic, self.ended.append)
        self.journal = Journal(device.root / "journal")
        self.told: list[str] = []
        self.conductor = Conductor(
            self.journal,
            device.disk,
            self.servers,
            f"boot-{device.boots}",
            told=self.told.append,
            beat=self.watchdog.inner_beat,
            sleep=self.clock.sleep,
        )

    async def want(self, release: Release | None) -> None:
        wanted = {NAME: Wanted(release, BAKE)} if release is not None else {}
        assert await self.conductor.want(self.conductor.slots.generation + 1, wanted)

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not what():
                await self.clock.advance(0.5)
                await asyncio.sleep(0.001)

    def phase(self) -> Phase:
        return self.conductor.status(NAME).phase

    def runs(self) -> Release | None:
        return self.servers.health(NAME).release

    async def until_good(self, release: Release) -> None:
        await self.want(release)
        await self.until(lambda: self.phase() is Phase.GOOD)
        assert self.runs() == release


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


async def test_what_is_wanted_is_fetched_tried_and_good(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        assert boot.told
        await boot.until_good(TWO)
        assert device.disk.here == {TWO}
        assert boot.servers.history == [ONE, TWO]


async def test_a_link_that_is_away_is_waited_for_and_what_runs_runs_on(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        device.disk.trouble[TWO] = Cut("the link broke")
        await boot.want(TWO)
        await boot.until(lambda: device.disk.fetched.count(TWO) > 5)
        assert (boot.phase(), boot.runs()) == (Phase.FETCHING, ONE)
        cause = boot.conductor.status(NAME).cause
        assert cause is not None
        assert cause["passing"]
        del device.disk.trouble[TWO]
        await boot.until(lambda: boot.phase() is Phase.GOOD)
        assert boot.runs() == TWO


@pytest.mark.parametrize(
    ("error", "code", "passing"),
    [
        (Gone("no such manifest"), "IMAGE_MISSING", False),
        (Wrong("other bytes"), "STAGING_FAILED", False),
        (Unusable("the image is for amd64"), "IMAGE_ARCHITECTURE", False),
        (NoEngine("this device has no container engine"), "NO_CAPACITY", False),
        (NotTaken("the container engine does not take the image"), "STAGING_FAILED", False),
        (Full(410_000_000, 220_000_000), "NO_CAPACITY", True),
    ],
)
async def test_what_cannot_be_had_is_said_once_and_nothing_is_touched(
    device: Device, error: Exception, code: str, passing: bool
) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        device.disk.trouble[TWO] = error
        await boot.want(TWO)
        await boot.until(lambda: boot.phase() is Phase.BAD)
        status = boot.conductor.status(NAME)
        assert status.cause == {"code": code, "message": str(error), "passing": passing}
        assert status.running == ONE
        await boot.clock.advance(10_000.0)
        assert device.disk.fetched.count(TWO) == 1


async def test_what_does_not_stay_healthy_is_taken_back_without_asking_anybody(
    device: Device,
) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        device.bad.add(TWO)
        await boot.want(TWO)
        await boot.until(lambda: boot.phase() is Phase.BAD and boot.runs() == ONE)
        assert boot.conductor.status(NAME).cause == CRASHED
        assert boot.servers.history == [ONE, TWO, ONE]


async def test_that_nothing_works_any_more_is_not_hidden(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        device.bad |= {ONE, TWO}
        await boot.want(TWO)
        await boot.until(lambda: boot.conductor.status(NAME).inconsistent)
        device.bad.remove(ONE)
        await boot.until(lambda: not boot.conductor.status(NAME).inconsistent)


async def test_something_newer_ends_a_fetch_at_once(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        device.disk.gate = asyncio.Event()
        await boot.want(TWO)
        await boot.until(lambda: device.disk.fetched[-1] == TWO)
        await boot.want(THREE)
        await boot.until(lambda: device.disk.fetched[-1] == THREE)
        assert device.disk.cancelled == 1
        device.disk.gate.set()
        await boot.until(lambda: boot.phase() is Phase.GOOD)
        assert boot.servers.history == [ONE, THREE]


async def test_a_link_that_is_there_again_is_used_at_once(device: Device) -> None:
    async with device.boot() as boot:
        device.disk.trouble[ONE] = Cut("away")
        await boot.want(ONE)
        await boot.clock.advance(10_000.0)
        tries = device.disk.fetched.count(ONE)
        del device.disk.trouble[ONE]
        boot.conductor.reachable()
        await turns()
        assert device.disk.fetched.count(ONE) == tries + 1


async def test_an_older_or_the_same_set_changes_nothing(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        assert not await boot.conductor.want(1, {})
        assert not await boot.conductor.want(0, {})
        assert boot.phase() is Phase.GOOD


async def test_a_reboot_without_a_link_runs_what_was_good(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        device.disk.trouble = {TWO: Cut("away"), ONE: Cut("away")}
        await boot.want(TWO)
    async with device.boot() as boot:
        await boot.until(lambda: boot.runs() == ONE)
        assert device.disk.fetched.count(ONE) == 1


async def test_a_power_cut_in_a_trial_tries_it_again_if_it_is_whole(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        await boot.want(TWO)
        await boot.until(lambda: boot.runs() == TWO)
    async with device.boot() as boot:
        await boot.until(lambda: boot.runs() == TWO)
    device.disk.rotten.add(TWO)
    device.disk.trouble[TWO] = Cut("away")
    async with device.boot() as boot:
        await boot.until(lambda: boot.runs() == ONE)
        assert boot.phase() in (Phase.FETCHING, Phase.WAITING)
        del device.disk.trouble[TWO]
        await boot.until(lambda: boot.phase() is Phase.GOOD)
        assert boot.runs() == TWO


async def test_a_good_one_that_does_not_come_up_is_looked_at_and_brought_anew(
    device: Device,
) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        device.disk.rotten.add(ONE)
        device.disk.trouble[ONE] = Gone("no such manifest")
        device.bad.add(ONE)
        await boot.until(lambda: boot.runs() is None)
        await boot.until(lambda: device.disk.fetched.count(ONE) == 2)
        asked = boot.clock.monotonic()
        # Nothing takes its place: it is asked for again, not in haste.
        await boot.until(lambda: device.disk.fetched.count(ONE) == 3)
        assert boot.clock.monotonic() - asked >= 290.0
        assert boot.conductor.slots.slot(NAME).good == ONE
        del device.disk.trouble[ONE]
        device.bad.remove(ONE)
        await boot.until(lambda: boot.runs() == ONE)


async def test_a_good_one_that_is_whole_is_looked_at_once_each_time(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        for times in (1, 2):
            device.bad.add(ONE)
            await boot.until(lambda times=times: device.disk.checked.count(ONE) == times)  # type: ignore[misc]
            await boot.clock.advance(60.0)
            assert device.disk.checked.count(ONE) == times
            device.bad.remove(ONE)
            await boot.until(lambda: boot.servers.health(NAME).well > 0)
            await boot.clock.advance(5.0)
        assert boot.servers.history == [ONE]


async def test_a_damaged_trial_does_not_run_on(device: Device) -> None:
    async with device.boot() as boot:
        await boot.want(ONE)
        await boot.until(lambda: boot.runs() == ONE)
    device.disk.rotten.add(ONE)
    device.disk.trouble[ONE] = Cut("away")
    async with device.boot() as boot:
        boot.servers.runs[NAME] = ONE, 0.0
        await boot.until(lambda: boot.runs() is None)
        del device.disk.trouble[ONE]
        await boot.until(lambda: boot.phase() is Phase.GOOD)


async def test_a_trial_that_takes_the_power_down_is_given_up(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        await boot.want(TWO)
        await boot.until(lambda: boot.runs() == TWO)
    for _ in range(2):
        async with device.boot() as boot:
            await boot.until(lambda boot=boot: boot.runs() == TWO)  # type: ignore[misc]
    async with device.boot() as boot:
        await boot.until(lambda: boot.runs() == ONE)
        cause = boot.conductor.status(NAME).cause
        assert cause is not None
        assert "never stayed healthy" in cause["message"]


async def test_what_is_not_wanted_any_more_is_gone(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        await boot.want(None)
        await boot.until(lambda: boot.runs() is None)
        await boot.until(lambda: boot.conductor.slots.slots == {})
        assert device.disk.here == set()
        assert boot.phase() is Phase.REMOVED
        # And it may come again.
        await boot.until_good(TWO)


async def test_what_does_not_end_is_told_to_again_until_it_has(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        boot.servers.deaf = True
        await boot.want(None)
        await boot.until(lambda: boot.servers.refused > 3)
        boot.watchdog.look()
        assert boot.ended == []
        assert boot.runs() == ONE
        boot.servers.deaf = False
        await boot.until(lambda: boot.phase() is Phase.REMOVED and boot.runs() is None)


async def test_what_is_damaged_is_fetched_anew_though_it_does_not_end(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        device.disk.rotten.add(ONE)
        device.bad.add(ONE)
        boot.servers.deaf = True
        await boot.until(lambda: device.disk.fetched.count(ONE) == 2)
        assert ONE in device.disk.here


async def test_a_slot_that_hangs_is_not_silent(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        device.disk.stuck = asyncio.Event()
        await boot.want(TWO)
        await boot.until(lambda: boot.conductor.slots.slot(NAME).good == TWO)
        boot.watchdog.look()
        assert boot.ended == []
        await boot.clock.advance(SILENT_MOST + 1.0)
        boot.watchdog.look()
        assert boot.ended == [EXIT_CODE]
        device.disk.stuck.set()


async def test_a_link_or_a_bake_that_lasts_is_no_silence(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
        device.disk.gate = asyncio.Event()
        await boot.want(TWO)
        await boot.until(lambda: boot.phase() is Phase.FETCHING)
        await boot.clock.advance(100 * SILENT_MOST)
        boot.watchdog.look()
        assert boot.ended == []
        device.disk.gate.set()
        await boot.until(lambda: boot.phase() is Phase.GOOD)


async def test_a_full_disk_keeps_the_former_set(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)

        def full(*_: Json) -> None:
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(boot.journal, "add", full)
        with pytest.raises(OSError, match="no space"):
            await boot.want(TWO)
        assert (boot.phase(), boot.runs()) == (Phase.GOOD, ONE)
        monkeypatch.undo()
        await boot.until_good(TWO)


async def test_two_deployments_go_their_own_ways(device: Device) -> None:
    async with device.boot() as boot:
        other = Release(7, 0, "sha256:7")
        device.disk.trouble[TWO] = Cut("away")
        wanted = {NAME: Wanted(TWO, BAKE), "other": Wanted(other, BAKE)}
        assert await boot.conductor.want(1, wanted)
        await boot.until(lambda: boot.conductor.status("other").phase is Phase.GOOD)
        assert boot.phase() is Phase.FETCHING
        assert not boot.conductor.slots.settled


async def damaged(device: Device, line: int, *names: str) -> None:
    """A line of these files cannot be read."""

    def damage() -> None:
        for name in names:
            lines = (device.root / name).read_bytes().splitlines(keepends=True)
            lines[line] = b"x" + lines[line][1:]
            (device.root / name).write_bytes(b"".join(lines))

    await asyncio.to_thread(damage)


def is_running(boot: Boot) -> bool:
    return boot.runs() == ONE


@pytest.mark.parametrize("line", [0, -1])
async def test_a_damaged_journal_is_said_and_nothing_of_it_is_lost(
    device: Device, line: int
) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
    await damaged(device, line, "journal")
    async with device.boot() as boot:
        assert "its entries are all there" in boot.conductor.damage
        await boot.until(lambda: boot.runs() == ONE)
        assert boot.phase() is Phase.GOOD
    async with device.boot() as boot:
        assert boot.conductor.damage == ""


async def test_what_runs_is_not_ended_because_entries_are_missing(device: Device) -> None:
    async with device.boot() as boot:
        await boot.until_good(ONE)
    # What is wanted was said in it.
    await damaged(device, 0, "journal", "journal.copy")
    for damage in ("entries are missing", ""):
        async with device.boot() as boot:
            assert boot.conductor.damage.endswith(damage)
            assert boot.conductor.slots.generation == 0
            await boot.until(partial(is_running, boot))
    async with device.boot() as boot:
        assert await boot.conductor.want(5, {})
        await boot.until(lambda: boot.runs() is None)
    async with device.boot() as boot:
        assert boot.conductor.slots.names == []
