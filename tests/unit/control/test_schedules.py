"""The loop of schedules: one job for each time, whatever the clock, the store and crashes do."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from zoneinfo import ZoneInfo

import pytest
from domain_rows import NOW, intent
from memory_schedules import MemorySchedules
from memory_store import MemoryStore

from hatoba.v1 import job_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler import failpoints
from hatoba_scheduler.control.alarm import LONGEST
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.schedule_book import Live, ScheduleBook, times_of
from hatoba_scheduler.control.schedules import (
    AGAIN,
    AGAIN_AT_MOST,
    LABEL,
    TIME_LABEL,
    ScheduleParts,
    Schedules,
)
from hatoba_scheduler.control.submit import Caller, JobMaker, Origin
from hatoba_scheduler.domain.records import Job
from hatoba_scheduler.domain.schedules import (
    CatchUp,
    Overlap,
    Schedule,
    Settings,
    with_settings,
)
from hatoba_scheduler.domain.states import AttemptState, Desired, JobState
from hatoba_scheduler.domain.transitions import Now, Outcome, ended, launch
from hatoba_scheduler.errors import HatobaError, NotFound, ResourceExhausted
from hatoba_scheduler.store.base import Duplicate, RequestKey
from hatoba_scheduler.store.errors import StorageFailed
from hatoba_scheduler.telemetry.tracing import SpanContext

START = 1_700_006_400.0
"""Midnight, UTC."""
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
SPEC = job_pb2.JobSpec(name="any", command=["true"]).SerializeToString()
TRACE = SpanContext("a" * 32, "b" * 16, sampled=False)


@dataclass
class Disk:
    """What outlives a crash."""

    store: MemoryStore = field(default_factory=MemoryStore)
    schedules: MemorySchedules = field(default_factory=MemorySchedules)
    uids: Iterator[int] = field(default_factory=itertools.count)


class House:
    """One server's life on a disk."""

    def __init__(self, disk: Disk, clock: FakeClock) -> None:
        self.disk = disk
        self.clock = clock
        self.ledger = Ledger(disk.store.as_store())
        self.book = ScheduleBook(disk.schedules)
        store = disk.store.as_store()
        parts = ScheduleParts(store, self.book, self.ledger, clock, lambda: TRACE)
        self.loop = Schedules(parts)
        self.refuse_with: HatobaError | None = None
        self.asked = 0
        self._maker = JobMaker(lambda: f"job-{next(disk.uids)}", "null")

    async def submit(self, spec: job_pb2.JobSpec, caller: Caller, key: RequestKey) -> Job:
        """As the job service does it."""
        self.asked += 1
        if self.refuse_with is not None:
            raise self.refuse_with
        now = Now(round(self.clock.time() * 1e6))
        made = self._maker.submission(spec, caller, Origin(), now, key)
        result = (await self.ledger.submit([made]))[0]
        if isinstance(result, Duplicate):
            return self.disk.store.jobs[result.resource]
        return result.job  # type: ignore[union-attr]

    async def add(self, name: str = "digits", cron: str = "@hourly", **said: object) -> Live:
        settings = replace(Settings(cron, "", SPEC), **said)  # type: ignore[arg-type]
        now = round(self.clock.time() * 1e6)
        row = Schedule(f"uid-{name}", "default", name, settings, "ann", now, position=now)
        live = await self.book.add(row, await asyncio.to_thread(times_of, settings))
        assert isinstance(live, Live)
        return live

    def live(self) -> Live:
        return self.book.get("default", "digits")

    @property
    def outcome(self) -> str:
        return self.live().schedule.last_outcome

    def times(self) -> list[int]:
        """Hours after START that jobs were submitted for, in the order of the submits."""
        said = [dict(job.labels).get(TIME_LABEL) for job in self.disk.store.jobs.values()]
        return [hours(text) for text in said if text]

    async def end(self, uid: str = "", state: AttemptState = AttemptState.SUCCEEDED) -> None:
        """A job, else the newest, runs and ends."""
        uid = uid or list(self.disk.store.jobs)[-1]
        await self.ledger.decide(uid, lambda rows: launch(rows, intent(rows), NOW))
        outcome = Outcome(state, None, gone=True)
        await self.ledger.decide(uid, lambda rows: ended(rows.view(0), outcome, NOW))  # type: ignore[arg-type]


def hours(text: str) -> int:
    moment = dt.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return round((moment.timestamp() - START) / HOUR)


@asynccontextmanager
async def serving(disk: Disk, clock: FakeClock, *, restored: bool = False) -> AsyncIterator[House]:
    """A server on this disk, killed at the end; adopted at once if it came out of a backup."""
    house = House(disk, clock)
    async with asyncio.TaskGroup() as group:
        ledger = group.create_task(house.ledger.run(), name="ledger")
        await house.ledger.recover()
        await house.book.recover()
        await house.loop.recover()
        if restored:
            await house.loop.adopted()
        house.loop.open(house.submit)
        loop = group.create_task(house.loop.run(), name="schedules")
        try:
            yield house
        finally:
            loop.cancel()
            ledger.cancel()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def house(disk: Disk, clock: FakeClock) -> AsyncIterator[House]:
    async with serving(disk, clock) as one:
        yield one


@pytest.fixture(autouse=True)
def no_failpoints() -> Iterator[None]:
    yield
    failpoints.arm("")


async def test_each_time_is_one_job_of_its_maker(house: House, clock: FakeClock) -> None:
    await house.add()
    await passes(clock, HOUR - 1)
    assert house.times() == []
    await passes(clock, 1)
    job = next(iter(house.disk.store.jobs.values()))
    assert (job.name, job.created_by, dict(job.labels)[LABEL]) == ("digits-1", "ann", "digits")
    assert house.outcome == "submitted digits-1"
    await house.end()
    await passes(clock, 2 * HOUR)
    assert house.times() == [1, 2]
    schedule = house.live().schedule
    assert schedule.recent == ("digits-2", "digits-1")
    assert schedule.last_outcome == "skipped: digits-2 has not ended"


@pytest.mark.parametrize(
    ("start", "wanted"),
    [
        # 02:30 is not there on the 29th, and comes twice on the 25th.
        ("2026-03-28", ["03-28 02:30 +0100", "03-29 03:00 +0200", "03-30 02:30 +0200"]),
        ("2026-10-24", ["10-24 02:30 +0200", "10-25 02:30 +0200", "10-26 02:30 +0100"]),
    ],
)
async def test_nights_in_which_the_clock_is_changed(
    disk: Disk, start: str, wanted: list[str]
) -> None:
    zone = ZoneInfo("Europe/Berlin")
    clock = FakeClock(dt.datetime.fromisoformat(start).replace(tzinfo=zone).timestamp())
    async with serving(disk, clock) as house:
        await house.add(cron="30 2 * * *", time_zone="Europe/Berlin", overlap=Overlap.ALLOW)
        for _ in range(3 * 24 * 4):
            await passes(clock, HOUR / 4)
        created = [job.create_time / 1e6 for job in disk.store.jobs.values()]
    made = [dt.datetime.fromtimestamp(second, zone) for second in created]
    assert [f"{moment:%m-%d %H:%M %z}" for moment in made] == wanted


async def test_a_run_that_waits_goes_when_the_one_before_ends(
    house: House, clock: FakeClock
) -> None:
    await house.add(overlap=Overlap.QUEUE)
    await passes(clock, 3 * HOUR)
    assert house.times() == [1]
    await house.end()
    await passes(clock, 0)
    assert house.times() == [1, 2]
    assert house.outcome == "submitted digits-2, 1 h late"
    assert house.live().schedule.waiting == 0


async def test_a_run_takes_the_place_of_the_one_before(house: House, clock: FakeClock) -> None:
    await house.add(overlap=Overlap.REPLACE)
    await passes(clock, 2 * HOUR)
    first, second = house.disk.store.jobs.values()
    assert first.state is JobState.CANCELLED
    assert first.cause is not None
    assert first.cause.message.startswith("Cancelled by schedule digits: replaced by the run of ")
    assert second.desired is Desired.RUN


async def test_runs_side_by_side(house: House, clock: FakeClock) -> None:
    await house.add(overlap=Overlap.ALLOW)
    await passes(clock, 3 * HOUR)
    assert house.times() == [1, 2, 3]


POINTS = ["intent.before", "intent.after", "submit.after", "moved.after"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("overlap", list(Overlap))
@pytest.mark.parametrize("away", [10 * MINUTE, 3 * HOUR])
async def test_a_crash_anywhere_doubles_and_loses_no_time(
    disk: Disk, clock: FakeClock, point: str, overlap: Overlap, away: float
) -> None:
    async with serving(disk, clock) as house:
        await house.add(overlap=overlap)
        failpoints.arm(f"schedule.{point}:error")
        await passes(clock, HOUR)
    failpoints.arm("")
    clock.set_by(away)
    async with serving(disk, clock) as house:
        await passes(clock, 0)
        schedule = house.live().schedule
        assert len(set(house.times())) == len(house.times()), "no time twice"
        if point != "intent.before" or away < HOUR:
            assert 1 in house.times(), "none lost that was taken up"
        assert schedule.submitting == 0
        assert schedule.last_job in disk.store.jobs
        if overlap is Overlap.SKIP:
            assert len(house.times()) == 1, "the run of before the crash is known"


async def test_a_run_of_before_a_crash_is_known_when_its_request_is_forgotten(
    disk: Disk, clock: FakeClock
) -> None:
    async with serving(disk, clock) as house:
        await house.add()
        failpoints.arm("schedule.submit.after:error")
        await passes(clock, HOUR)
    async with serving(disk, clock) as house:
        disk.store.requests.clear()
        await passes(clock, 10 * MINUTE)
        assert house.times() == [1]
        assert house.outcome == "submitted digits-1"


async def test_what_schedules_name_is_kept(house: House) -> None:
    spec = job_pb2.JobSpec(command=["true"])
    spec.code.digest = "sha256:code"
    spec.inputs.add(name="a").manifest.digest = "sha256:input"
    named = spec.inputs.add(name="b", source="datasets/faces:3")
    named.manifest.digest = "sha256:somebody else's"
    await house.add(spec=spec.SerializeToString())
    await house.add("plain")
    assert await house.book.manifest_roots() == {"sha256:code", "sha256:input"}


@pytest.mark.parametrize(
    ("catch_up", "wanted"), [(CatchUp.NONE, []), (CatchUp.LAST, [72]), (CatchUp.ALL, [70])]
)
async def test_times_that_were_missed(
    disk: Disk, clock: FakeClock, catch_up: CatchUp, wanted: list[int]
) -> None:
    async with serving(disk, clock) as house:
        await house.add(catch_up=catch_up, max_catch_up=3)
    clock.set_by(3 * DAY + MINUTE + 1)
    async with serving(disk, clock) as house:
        await passes(clock, 0)
        assert house.times() == wanted


async def test_all_missed_times_go_one_after_the_other(disk: Disk, clock: FakeClock) -> None:
    async with serving(disk, clock) as house:
        await house.add(catch_up=CatchUp.ALL)
    clock.set_by(5 * HOUR + MINUTE + 1)
    async with serving(disk, clock) as house:
        for count in range(1, 6):
            await passes(clock, 0)
            assert house.times() == list(range(1, count + 1))
            await house.end()
        await passes(clock, HOUR)
        assert house.times() == [1, 2, 3, 4, 5, 6]


async def test_what_cannot_be_submitted_now_is_later(house: House, clock: FakeClock) -> None:
    await house.add()
    house.refuse_with = ResourceExhausted("queue 'default' is full")
    await passes(clock, HOUR + AGAIN)
    assert house.outcome == "not submitted yet: queue 'default' is full"
    asked = house.asked
    await passes(clock, 10 * MINUTE)
    assert house.asked - asked <= 10 * MINUTE / AGAIN_AT_MOST + 5
    house.refuse_with = None
    await passes(clock, AGAIN_AT_MOST)
    assert house.times() == [1]


async def test_what_is_refused_is_left_out(house: House, clock: FakeClock) -> None:
    await house.add()
    house.refuse_with = NotFound("there is no queue 'night'")
    await passes(clock, HOUR)
    assert house.outcome == "refused: there is no queue 'night'"
    house.refuse_with = None
    await passes(clock, HOUR)
    assert house.times() == [2]


async def test_a_store_that_fails_delays_and_loses_nothing(house: House, clock: FakeClock) -> None:
    await house.add()
    house.disk.schedules.fail_with = StorageFailed("the disk does not answer")
    await passes(clock, HOUR + MINUTE)
    assert house.times() == []
    house.disk.schedules.fail_with = None
    await passes(clock, AGAIN_AT_MOST)
    assert house.times() == [1]


async def test_paused_resumed_and_deleted(house: House, clock: FakeClock) -> None:
    live = await house.add(overlap=Overlap.ALLOW)

    async def pause(paused: bool) -> None:
        settings = replace(live.schedule.settings, paused=paused)
        now = round(clock.time() * 1e6)
        await house.book.change_settings(
            live.schedule.uid,
            lambda schedule: with_settings(schedule, settings, now),
            times_of(settings),
        )

    await pause(True)
    await passes(clock, 2.5 * HOUR)
    await pause(False)
    await passes(clock, 0)
    assert house.times() == []
    await passes(clock, HOUR)
    assert house.times() == [3]
    await house.book.delete(live)
    await passes(clock, 5 * HOUR)
    assert house.times() == [3]


async def test_other_times_hold_from_then_on(house: House, clock: FakeClock) -> None:
    live = await house.add(cron="@daily")
    settings = replace(live.schedule.settings, cron="@hourly")
    await passes(clock, MINUTE)
    now = round(clock.time() * 1e6)
    await house.book.change_settings(
        live.schedule.uid, lambda one: with_settings(one, settings, now), times_of(settings)
    )
    await passes(clock, HOUR)
    assert house.times() == [1]


async def test_a_clock_put_back_by_a_year_silences_nobody(house: House, clock: FakeClock) -> None:
    await house.add(overlap=Overlap.ALLOW)
    clock.set_by(365 * DAY)
    await passes(clock, LONGEST)
    assert house.times() == [365 * 24]
    clock.set_by(-365 * DAY)
    await passes(clock, LONGEST)
    await passes(clock, 2 * HOUR)
    assert house.times() == [365 * 24, 1, 2]


async def test_thousands_of_schedules_cost_a_heap(house: House, clock: FakeClock) -> None:
    live = await house.add(cron="@daily", overlap=Overlap.ALLOW)
    for number in range(2_000):
        row = replace(live.schedule, uid=f"other-{number}", name=f"other-{number}", version=1)
        await house.book.add(row, times_of(live.schedule.settings))
    looks = count_calls(house.book, "find")
    await passes(clock, HOUR)
    assert looks() == 0
    await passes(clock, 23 * HOUR)
    for _ in range(100):
        await passes(clock, 0)
    assert len(house.disk.store.jobs) == 2_001
    assert len(set(house.times())) == 1


async def passes(clock: FakeClock, seconds: float) -> None:
    """Time passes, hour by hour, and everybody gets done what is due."""
    left = seconds
    while True:
        await clock.advance(min(left, HOUR))
        for _ in range(5):
            await clock.advance(0)
        left -= HOUR
        if left <= 0:
            return


def count_calls(book: ScheduleBook, name: str) -> Callable[[], int]:
    counted = 0
    method = getattr(book, name)

    def called(*args: object) -> object:
        nonlocal counted
        counted += 1
        return method(*args)

    setattr(book, name, called)
    return lambda: counted


# -- restores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("catch_up", [CatchUp.LAST, CatchUp.ALL, CatchUp.NONE])
async def test_after_a_restore_no_time_before_the_adoption_runs(
    disk: Disk, clock: FakeClock, catch_up: CatchUp
) -> None:
    """The store of then knew of them; the one from the backup cannot."""
    async with serving(disk, clock) as house:
        await house.add(catch_up=catch_up)
        await clock.advance(HOUR)
        await house.end()
        assert house.times() == [1]
        await house.loop.adopted()
        assert house.outcome.startswith("submitted")
    await clock.advance(5 * HOUR + MINUTE)
    async with serving(disk, clock, restored=True) as house:
        assert house.outcome.startswith("left out: the store was restored")
        assert house.live().schedule.last_time == round((START + 6 * HOUR) * 1e6)
        await clock.advance(HOUR)
        assert house.times() == [1, 7]


async def test_after_a_restore_what_was_being_submitted_is_left_out_too(
    disk: Disk, clock: FakeClock
) -> None:
    async with serving(disk, clock) as house:
        uid = (await house.add()).schedule.uid
    kept = disk.schedules.kept
    kept[uid] = replace(kept[uid], submitting=round((START + HOUR) * 1e6))
    await clock.advance(HOUR + MINUTE)
    async with serving(disk, clock, restored=True) as house:
        assert house.asked == 0
        assert house.live().schedule.submitting == 0
        await clock.advance(HOUR)
        assert house.times() == [2]
