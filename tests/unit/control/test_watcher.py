"""A watcher: woken by what concerns it alone, slow at nobody's cost, told that it lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
from domain_rows import NOW, new_job
from memory_store import MemoryStore
from waiting import turns

from hatoba.v1 import job_pb2
from hatoba_scheduler.control import events as events_module
from hatoba_scheduler.control import fanout
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.control.fanout import SLOTS
from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.domain.records import Change, Event, Job
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.domain.transitions import Rows, submitted
from hatoba_scheduler.errors import InvalidArgument
from hatoba_scheduler.services.watch import Watcher
from hatoba_scheduler.store.base import ServerIdentity, Store

Message = job_pb2.WatchJobsResponse
Request = job_pb2.WatchJobsRequest


@dataclass
class LogStore(MemoryStore):
    """As much of a store as watchers ask for."""

    identity: ServerIdentity = ServerIdentity("cluster", 1)

    async def event_bounds(self) -> tuple[int, int]:
        return 1, len(self.log)

    async def jobs_by_uid(self, uids: Sequence[str]) -> dict[str, Job]:
        return {uid: self.jobs[uid] for uid in uids if uid in self.jobs}

    async def events(self, after_seq: int, limit: int, job_uids: Sequence[str] = ()) -> list[Event]:
        self.reads += 1
        wanted = (e for e in self.log if not job_uids or e.job_uid in job_uids)
        return [event for event in wanted if event.seq > after_seq][:limit]


class Ticks:
    """A clock whose time passes when a test says so."""

    def __init__(self) -> None:
        self._due: list[asyncio.Future[None]] = []

    def time(self) -> float:
        return 0.0

    monotonic = time

    async def sleep(self, seconds: float) -> None:
        self._due.append(asyncio.get_running_loop().create_future())
        await self._due[-1]

    async def pass_periods(self, count: int) -> None:
        """So many times the time in which every watcher is looked at once."""
        for _ in range(count * SLOTS):
            await turns()
            self._due.pop().set_result(None)
            await asyncio.sleep(0)


@dataclass
class House:
    """A log, what is in it, and watchers of it."""

    store: LogStore = field(default_factory=LogStore)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    most_behind: int = 1_000_000

    def __post_init__(self) -> None:
        self.log = EventLog(cast(Store, self.store), 0, self.most_behind)

    def happens(self, **about: str | JobState) -> Event:
        """One event, committed and told: of the queue, project or job that is said."""
        uid = str(about.pop("uid", "u1"))
        owner = str(about.pop("created_by", "ada"))
        job = replace(new_job(), uid=uid, created_by=owner)
        event = replace(submitted(job, NOW), project="default", seq=len(self.store.log) + 1)
        for name, value in about.items():
            event = replace(event, **{name: value})  # type: ignore[arg-type]
        self.store.jobs[uid] = job
        self.store.log.append(event)
        change = Change(job, 0, events=(event,))
        self.log.on_commit([Commit(None, change, Rows(job, {}, {}))], [event])
        return event

    def watch(self, followed: Sequence[Job] = (), **request: object) -> AsyncIterator[Message]:
        watcher = Watcher(self.log, cast(Store, self.store), self.stopping)
        return watcher.watch(Request(**request), followed)  # type: ignore[arg-type]


async def live(house: House, stream: AsyncIterator[Message]) -> list[Message]:
    """The next message of a watcher that waits when the next event comes."""
    async with asyncio.TaskGroup() as group:
        first = group.create_task(some(stream, 1))
        await turns()
        assert house.log.watchers == 1
        house.happens()
    return first.result()


async def some(stream: AsyncIterator[Message], count: int) -> list[Message]:
    """The next messages."""
    async with asyncio.timeout(10):
        return [await anext(stream) for _ in range(count)]


def seqs(messages: Sequence[Message]) -> list[int]:
    return [m.event.seq for m in messages if m.HasField("event")]


async def test_only_those_are_woken_whom_it_may_concern() -> None:
    house = House()
    woken: list[str] = []

    async def follow(name: str, text: str) -> None:
        async for message in house.watch(filter=text):
            woken.extend([name] * message.HasField("event"))

    async with asyncio.TaskGroup() as group:
        asks = {"gpu": "queue = gpu", "cpu": "queue = cpu", "ada": "created_by = ada", "all": ""}
        tasks = [group.create_task(follow(name, text)) for name, text in asks.items()]
        await turns()
        house.happens(queue="gpu", created_by="bob")
        house.happens(queue="cpu")
        house.happens(queue="cpu", project="other")
        await turns()
        for task in tasks:
            task.cancel()
    assert sorted(woken) == ["ada", "all", "all", "cpu", "gpu"]
    assert house.log.watchers == 0


async def test_a_filter_decides_in_the_past_as_it_does_now() -> None:
    house = House()
    for number in range(4):
        house.happens(uid=f"u{number}", created_by="ada" if number % 2 else "bob")
    kept = await some(house.watch(cursor="0", filter="created_by = ada"), 2)
    past = EventLog(cast(Store, house.store), 4)
    watcher = Watcher(past, cast(Store, house.store), house.stopping)
    stored = await some(watcher.watch(Request(cursor="0", filter="created_by = ada"), []), 2)
    assert seqs(kept) == seqs(stored) == [2, 4]


async def test_what_is_stored_and_not_told_yet_is_told_once() -> None:
    house = House()
    events = [house.happens() for _ in range(4)]
    after_a_restart = EventLog(cast(Store, house.store), 2)
    watcher = Watcher(after_a_restart, cast(Store, house.store), house.stopping)
    stream = watcher.watch(Request(cursor="0"), [])
    found = seqs(await some(stream, 2))
    async with asyncio.TaskGroup() as group:
        rest = group.create_task(some(stream, 3))
        await turns()
        after_a_restart.on_commit([], events[2:])
        await turns()
        after_a_restart.on_commit([], [replace(events[3], seq=5)])
    assert [*found, *seqs(rest.result())] == [1, 2, 3, 4, 5]


async def test_one_that_does_not_read_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "AHEAD", 3)
    monkeypatch.setattr(events_module, "KEPT", 5)
    house = House()
    stream = house.watch()
    assert (await some(stream, 1))[0].HasField("heartbeat")
    assert seqs(await live(house, stream)) == [1]
    for _ in range(20):
        house.happens()
    assert seqs(await some(stream, 20)) == list(range(2, 22))
    assert house.store.reads > 0


async def test_one_that_is_far_behind_is_told_to_read_anew() -> None:
    house = House(most_behind=10)
    stream = house.watch()
    await some(stream, 1)
    await live(house, stream)
    for _ in range(fanout.AHEAD + 20):
        house.happens()
    *events, last = [message async for message in stream]
    assert last.HasField("resync")
    assert seqs(events) == []
    assert last.cursor == f"1.{house.log.newest}"
    again = house.watch(cursor=last.cursor)
    house.happens()
    assert seqs(await some(again, 1)) == [house.log.newest]


async def test_a_cursor_that_is_too_old_is_of_no_use_and_the_oldest_always_is() -> None:
    house = House(most_behind=10)
    for _ in range(30):
        house.happens()
    assert (await some(house.watch(cursor="1.5"), 1))[0].HasField("resync")
    assert seqs(await some(house.watch(cursor="0"), 30)) == list(range(1, 31))


async def test_silent_ones_are_told_that_they_live_and_how_far_they_are() -> None:
    house, clock = House(), Ticks()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(house.log.run(clock, house.stopping))
        stream = house.watch(filter="queue = none")
        await some(stream, 1)
        beat = group.create_task(some(stream, 1))
        await turns()
        house.happens(queue="gpu")
        passing = group.create_task(clock.pass_periods(3))
        (message,) = await beat
        assert (message.WhichOneof("kind"), message.cursor) == ("heartbeat", "1.1")
        passing.cancel()
        running.cancel()


async def test_all_are_told_when_the_server_stops() -> None:
    house, clock = House(), Ticks()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(house.log.run(clock, house.stopping))
        stream = house.watch()
        await some(stream, 1)
        end = group.create_task(some(stream, 1))
        await turns()
        house.stopping.set()
        assert (await end)[0].end.reason == "shutdown"
        running.cancel()


async def test_the_end_of_a_job_ends_its_watch_whatever_is_told() -> None:
    house = House()
    job = replace(new_job(), uid="u1")
    stream = house.watch([job], jobs=["u1"], reasons=["retry"])
    await some(stream, 1)
    async with asyncio.TaskGroup() as group:
        end = group.create_task(some(stream, 1))
        await turns()
        for uid in ("u2", "u1"):
            house.happens(uid=uid, job_from=JobState.RUNNING, job_to=JobState.FAILED)
    assert end.result()[0].end.reason == "terminal"


@pytest.mark.parametrize("text", ["queue", "active = true", "colour = red"])
async def test_a_filter_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await some(House().watch(filter=text), 1)
    assert refused.value.reason == "INVALID_FILTER"


async def test_a_reason_that_no_event_has_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="did you mean launch"):
        await some(House().watch(reasons=["lanch"]), 1)


async def test_named_jobs_and_a_filter_do_not_go_together() -> None:
    with pytest.raises(InvalidArgument, match="leave out one"):
        await some(House().watch([new_job()], jobs=["u1"], filter="queue = gpu"), 1)
