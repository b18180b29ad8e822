"""Plain waiting jobs beyond a bound are in the store alone, and nobody notices but the memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from domain_rows import CANCEL, NOW, intent, new_job
from memory_store import MemoryStore

from hatoba_scheduler.control.counts import JobCounts, OwnerKey
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.room import QueueRoom
from hatoba_scheduler.domain.parking import is_plain
from hatoba_scheduler.domain.records import Change, Job, Queue, Terms
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.domain.transitions import Rows, Settings, cancel, launch, updated
from hatoba_scheduler.errors import ResourceExhausted
from hatoba_scheduler.store.base import JobQuery, Parked
from hatoba_scheduler.store.errors import StorageFailed
from tests.unit.control.conftest import Books, running

J = JobState
KEEP = 2


def launching(rows: Rows) -> Change | None:
    return launch(rows, intent(rows, 0), NOW)


def cancelled(rows: Rows) -> Change | None:
    return cancel(rows, CANCEL, NOW)


def hurried(rows: Rows) -> Change | None:
    return updated(rows, Settings(priority=7), NOW)


def looked_at(rows: Rows) -> Change | None:
    return None


def in_memory(ledger: Ledger) -> set[str]:
    return {rows.job.uid for rows in ledger.all_rows()}


@pytest.fixture
async def few() -> AsyncIterator[Books]:
    """Four jobs, of which two are parked."""
    store = MemoryStore()
    made = Books(store, Ledger(store.as_store(), KEEP))
    made.ledger.listen(made.note)
    async with running(made.ledger):
        await made.submit(*(new_job(uid) for uid in "abcd"))
        yield made


@pytest.mark.parametrize(
    ("job", "plain"),
    [
        (new_job(), True),
        (new_job(hold=True), True),
        (new_job(size=2), False),
        (new_job(blocked_on=("x",)), False),
        (new_job(blocked_any=("x",), hold=True), False),
        (replace(new_job(), terms=Terms(start_after=5)), False),
        (replace(new_job(), terms=Terms(deadline=5)), False),
        (replace(new_job(), terms=Terms(max_queue_time=5)), False),
        (replace(new_job(), terms=Terms(timeout=5)), True),
        (replace(new_job(), state=J.LAUNCHING), False),
    ],
)
def test_what_waits_for_room_alone_is_plain(job: Job, plain: bool) -> None:
    assert is_plain(job) is plain


async def test_beyond_the_bound_jobs_are_told_of_and_parked(few: Books) -> None:
    assert in_memory(few.ledger) == {"a", "b"}
    assert few.ledger.active() == 4
    assert [commit.change.job.uid for commit in few.commits] == ["a", "b", "c", "d"]
    assert [event.seq for event in few.told] == [1, 2, 3, 4]


async def test_what_is_not_plain_is_always_in_memory(few: Books) -> None:
    await few.submit(new_job("array", size=3), new_job("later", blocked_on=("a",)))
    assert in_memory(few.ledger) == {"a", "b", "array", "later"}


async def test_a_decision_loads_those_that_are_parked_all_at_once(few: Books) -> None:
    asked = [few.ledger.ask(uid, launching) for uid in ("c", "a", "d")]
    answers = await asyncio.gather(*asked)
    assert all(isinstance(answer, Change) for answer in answers)
    assert few.store.lookups == [2]
    assert in_memory(few.ledger) == {"a", "b", "c", "d"}
    before = [commit.before for commit in few.commits[4:]]
    assert [job.state for job in before if job] == [J.QUEUED] * 3


async def test_a_parked_job_is_cancelled(few: Books) -> None:
    assert await few.ledger.decide("d", cancelled) is not None
    assert few.store.jobs["d"].state is J.CANCELLED
    assert (in_memory(few.ledger), few.ledger.active()) == ({"a", "b"}, 3)
    assert await few.ledger.decide("d", cancelled) is None, "it is over"


async def test_one_that_stays_plain_is_parked_again(few: Books) -> None:
    assert await few.ledger.decide("d", hurried) is not None
    assert await few.ledger.decide("c", looked_at) is None
    assert few.store.jobs["d"].priority == 7
    assert (in_memory(few.ledger), few.ledger.active()) == ({"a", "b"}, 4)


async def test_room_in_memory_is_used_again(few: Books) -> None:
    await few.ledger.decide("a", launching)
    await few.submit(new_job("e"), new_job("f"))
    assert in_memory(few.ledger) == {"a", "b", "e"}


async def test_a_parked_job_is_read_without_being_brought_in(few: Books) -> None:
    assert few.ledger.rows("d") is None
    rows = await few.ledger.load("d")
    assert rows == Rows(few.store.jobs["d"], {}, {})
    assert few.ledger.rows("d") is None
    assert set(await few.ledger.load_all(["a", "c", "nobody"])) == {"a", "c"}
    await few.ledger.decide("c", cancelled)
    assert await few.ledger.load("c") is None


async def test_a_store_that_cannot_be_read_fails_those_it_was_asked_for(few: Books) -> None:
    few.store.fail_reads_with = StorageFailed("EIO")
    parked, known = few.ledger.ask("d", launching), few.ledger.ask("a", launching)
    with pytest.raises(StorageFailed, match="EIO"):
        await parked
    assert await known is not None
    few.store.fail_reads_with = None
    assert await few.ledger.decide("d", launching) is not None


async def test_a_decision_about_a_job_that_is_not_told_of_yet_waits_for_it(few: Books) -> None:
    few.store.open.clear()
    few.store.reached.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(few.submit(new_job("e")))
        await few.store.reached.wait()
        asked = few.ledger.ask("e", cancelled)
        group.create_task(few.ledger.decide("zzz", looked_at))
        await asyncio.sleep(0)
        assert not asked.done()
        few.store.open.set()
    assert await asked is not None
    assert [event.reason for event in few.told[4:]] == ["submit", "cancel"]
    assert [event.seq for event in few.told] == [1, 2, 3, 4, 5, 6]


async def test_a_job_that_somebody_else_wrote_is_read_alone(few: Books) -> None:
    few.store.jobs["c"] = replace(few.store.jobs["c"], version=9, priority=3)
    few.store.jobs["a"] = replace(few.store.jobs["a"], version=9, priority=4)
    change = await few.ledger.decide("a", launching)
    assert change is not None
    assert (change.expected, change.job.priority) == (9, 4)
    assert few.ledger.rows("b") is not None


async def test_recovery_tells_of_parked_jobs_and_loads_the_rest(few: Books) -> None:
    await few.submit(new_job("array", size=3))
    await few.ledger.decide("b", launching)
    again = Ledger(few.store.as_store(), KEEP)
    heard: list[Parked] = []
    again.listen(lambda commits, events: None, heard.extend)
    await again.recover()
    assert in_memory(again) == {"a", "b", "c", "array"}
    await again.recover_parked()
    assert [(one.uids, one.state, one.queue) for one in heard] == [(["d"], J.QUEUED, "default")]
    assert again.active() == 5


# -- counts -------------------------------------------------------------------------------------


async def test_counts_follow_every_commit_and_are_the_same_after_a_restart(few: Books) -> None:
    counts = JobCounts(few.store.as_store(), few.ledger)
    await counts.recover()
    mine = replace(new_job("mine", size=3), created_by="user:ann", queue="night")
    await few.submit(mine)
    await few.ledger.decide("a", launching)
    await few.ledger.decide("d", cancelled)
    await few.ledger.decide("c", lambda rows: updated(rows, Settings(queue="night"), NOW))
    again = Ledger(few.store.as_store(), KEEP)
    fresh = JobCounts(few.store.as_store(), again)
    await again.recover()
    await fresh.recover()
    await again.recover_parked()
    for found in (counts, fresh):
        assert found.by_state("default", "default") == {
            J.QUEUED: 1,
            J.LAUNCHING: 1,
            J.CANCELLED: 1,
        }
        assert found.by_state("default", "night") == {J.QUEUED: 2}
        assert found.by_state() == found.by_state("default")
        assert found.by_state("lab") == found.by_state("default", "none") == {}
        assert found.unfinished(("default", "default")) == 2
        assert found.unfinished(("default", "none")) == 0
    assert fresh.tasks(("default", "night"))[J.QUEUED] == 4
    assert fresh.owners()[OwnerKey("default", "night", "user:ann")] == 1
    assert dict(fresh.queues())["default", "night"] == {J.QUEUED: 2}


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ((), {J.QUEUED: 3, J.HELD: 1, J.CANCELLED: 1}),
        ((("queue", "=", "night"),), {J.HELD: 1}),
        ((("queue", "!=", "night"),), {J.QUEUED: 3, J.CANCELLED: 1}),
        ((("state", "=", int(J.QUEUED)),), {J.QUEUED: 3}),
        ((("state", "!=", int(J.QUEUED)), ("queue", "!=", "night")), {J.CANCELLED: 1}),
        ((("active", "=", 1),), {J.QUEUED: 3, J.HELD: 1}),
        ((("active", "=", 0),), {J.CANCELLED: 1}),
        ((("state", "=", int(J.QUEUED)), ("active", "!=", 1)), {}),
        ((("created_by", "=", "user:ann"),), None),
    ],
)
async def test_questions_about_queues_and_states_need_no_store(
    few: Books,
    terms: tuple[tuple[str, str, str | int], ...],
    expected: dict[JobState, int] | None,
) -> None:
    counts = JobCounts(few.store.as_store(), few.ledger)
    await counts.recover()
    await few.submit(replace(new_job("held", hold=True), queue="night"))
    await few.submit(replace(new_job("lab"), project="lab"))
    await few.ledger.decide("d", cancelled)
    assert counts.answer(JobQuery("default", terms)) == expected


async def test_room_counts_parked_jobs_and_those_on_their_way(few: Books) -> None:
    counts = JobCounts(few.store.as_store(), few.ledger)
    await counts.recover()
    room = QueueRoom(counts)
    queue = Queue("default", "default", 1, "", 0, max_pending=6)
    key = room.take(queue)
    room.take(queue)
    with pytest.raises(ResourceExhausted, match="holds 6 unfinished"):
        room.take(queue)
    room.give_back(key, 2)
    await few.ledger.decide("d", cancelled)
    for _ in range(3):
        room.take(queue)


def test_nothing_is_left_of_places_given_back(few_counts: JobCounts) -> None:
    room = QueueRoom(few_counts)
    queue = Queue("default", "default", 1, "", 0, max_pending=1)
    for _ in range(3):
        room.give_back(room.take(queue))


@pytest.fixture
def few_counts() -> JobCounts:
    store = MemoryStore().as_store()
    return JobCounts(store, Ledger(store))
