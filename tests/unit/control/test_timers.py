"""Jobs whose time is over end then, whatever the clock and the store do meanwhile."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from domain_rows import CANCEL, NOW, intent, new_job

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control import timers as timers_module
from hatoba_scheduler.control.alarm import LONGEST
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.timers import AGAIN, Timers
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.dependencies import Upstream, upstream_ended
from hatoba_scheduler.domain.records import Job, RetryPolicy, Terms
from hatoba_scheduler.domain.states import AttemptState, CauseCode, JobState
from hatoba_scheduler.domain.transitions import (
    Outcome,
    cancel,
    claimed,
    ended,
    hold,
    launch,
    running,
    stopping,
)
from hatoba_scheduler.store.errors import StorageFailed

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books

START = 1_700_000_000.0
HOUR = 3600.0


def timed_job(uid: str = "job-1", *, after: float = 0.0, **said: Any) -> Job:
    """A job just submitted at START, its times in seconds from then."""
    terms = {
        "start_after": round((START + after) * 1e6) if after else 0,
        "deadline": round((START + said.pop("deadline")) * 1e6) if "deadline" in said else 0,
        "max_queue_time": said.pop("queue", 0.0),
    }
    job = new_job(uid, **said)
    return replace(job, create_time=round(START * 1e6), terms=Terms(**terms))


@asynccontextmanager
async def ticking(timers: Timers) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(timers.run(), name="timers")
        try:
            yield
        finally:
            task.cancel()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START)


@pytest.fixture
async def timers(books: Books, clock: FakeClock) -> AsyncIterator[Timers]:
    made = Timers(books.ledger, books.store.as_store(), clock)
    async with ticking(made):
        yield made


@pytest.mark.parametrize(
    "job",
    [
        timed_job(deadline=HOUR),
        timed_job(deadline=HOUR, hold=True),
        timed_job(deadline=HOUR, blocked_on=("up",)),
        timed_job(deadline=HOUR, size=1_000_000),
    ],
    ids=["queued", "held", "blocked", "array"],
)
async def test_what_waits_ends_at_its_deadline(
    books: Books, clock: FakeClock, timers: Timers, job: Job
) -> None:
    await books.submit(job)
    await clock.advance(HOUR - 1)
    assert not books.rows().job.state.terminal
    await clock.advance(1)
    ended_job = books.rows().job
    assert ended_job.state is JobState.TIMED_OUT
    assert ended_job.cause is not None
    assert ended_job.cause.code is CauseCode.DEADLINE
    assert ended_job.cause.message in [event.note for event in books.told]


async def test_what_runs_is_stopped_at_its_deadline_and_not_tried_again(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(deadline=HOUR, retries=RetryPolicy(infrastructure=9)))
    await start(books)
    await clock.advance(HOUR)
    assert books.rows().job.state is JobState.STOPPING
    assert books.told[-1].note
    await end(books, AttemptState.FAILED)
    job = books.rows().job
    assert (job.state, job.cause and job.cause.code) == (JobState.TIMED_OUT, CauseCode.DEADLINE)


async def test_what_ended_well_before_the_stop_reached_it_has_succeeded(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(deadline=HOUR))
    await start(books)
    await clock.advance(HOUR)
    await end(books, AttemptState.SUCCEEDED)
    assert books.rows().job.state is JobState.SUCCEEDED


async def test_what_was_preempted_at_its_deadline_does_not_begin_again(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(deadline=HOUR))
    await start(books)
    cause = causes.judge(causes.Ending(causes.ExitKind.STOPPED))[1]
    await books.ledger.decide(
        "job-1", lambda rows: stopping(view(rows), AttemptState.PREEMPTED, cause, NOW)
    )
    await clock.advance(HOUR)
    await end(books, AttemptState.PREEMPTED)
    await clock.advance(0)
    assert books.rows().job.state is JobState.TIMED_OUT


async def test_a_cancel_before_the_deadline_stays_a_cancel(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(deadline=HOUR))
    await start(books)
    cause = causes.cancelled("owner", "")
    await books.ledger.decide("job-1", lambda rows: cancel(rows, cause, NOW))
    await clock.advance(2 * HOUR)
    await end(books, AttemptState.FAILED)
    assert books.rows().job.state is JobState.CANCELLED


async def test_the_time_in_the_queue_counts_from_the_start_time(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(queue=60.0, after=HOUR))
    await clock.advance(HOUR + 59)
    assert books.rows().job.state is JobState.QUEUED
    await clock.advance(1)
    job = books.rows().job
    assert (job.state, job.cause and job.cause.code) == (
        JobState.TIMED_OUT,
        CauseCode.QUEUE_TIMEOUT,
    )


async def test_held_or_blocked_it_does_not_queue(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(queue=60.0, blocked_end=("up",)))
    await clock.advance(HOUR)
    up = Upstream("up", "up-1", JobState.FAILED)
    await books.ledger.decide("job-1", lambda rows: upstream_ended(rows, up, now_of(clock)))
    await clock.advance(50)
    await books.ledger.decide("job-1", lambda rows: hold(rows, True, now_of(clock)))
    await clock.advance(HOUR)
    await books.ledger.decide("job-1", lambda rows: hold(rows, False, now_of(clock)))
    await clock.advance(59)
    assert books.rows().job.state is JobState.QUEUED
    await clock.advance(1)
    assert books.rows().job.state is JobState.TIMED_OUT


async def test_what_has_found_a_place_queues_no_more(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(queue=60.0))
    await books.ledger.decide("job-1", lambda rows: launch(rows, intent(rows), NOW))
    await books.ledger.decide("job-1", lambda rows: claimed(view(rows), "nonce", now_of(clock)))
    await clock.advance(HOUR)
    assert books.rows().job.state is JobState.STARTING


async def test_what_the_backend_has_no_room_for_queues_on(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(queue=60.0))
    await books.ledger.decide("job-1", lambda rows: launch(rows, intent(rows), NOW))
    await clock.advance(60)
    assert books.rows().job.state is JobState.STOPPING
    await end(books, AttemptState.LOST)
    assert books.rows().job.state is JobState.TIMED_OUT


async def test_a_store_that_fails_delays_and_loses_nothing(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(deadline=HOUR))
    books.store.fail_with = StorageFailed("the disk does not answer")
    await clock.advance(HOUR + 3 * AGAIN)
    assert books.rows().job.state is JobState.QUEUED
    books.store.fail_with = None
    await clock.advance(AGAIN)
    assert books.rows().job.state is JobState.TIMED_OUT


async def test_what_is_late_is_known_until_it_has_ended(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(deadline=HOUR, queue=60.0, hold=True))
    await clock.advance(HOUR - 1)
    assert timers.late() == []
    books.store.fail_with = StorageFailed("the disk does not answer")
    await clock.advance(2 * AGAIN)
    (late,) = timers.late()
    assert (late.job.uid, late.due.cause.code) == ("job-1", CauseCode.DEADLINE)
    books.store.fail_with = None
    await clock.advance(AGAIN)
    assert books.rows().job.state is JobState.TIMED_OUT
    assert timers.late() == []


async def test_moments_of_jobs_that_ended_do_not_pile_up(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    of_timers = tracemalloc.Filter(True, timers_module.__file__)
    tracemalloc.start()
    try:
        for first in range(0, 4_000, 1_000):
            uids = [f"job-{first + n}" for n in range(1_000)]
            await books.submit(*(timed_job(uid, deadline=HOUR) for uid in uids))
            for uid in uids:
                await books.ledger.decide(uid, lambda rows: cancel(rows, CANCEL, NOW))
        snapshot = tracemalloc.take_snapshot().filter_traces([of_timers])
    finally:
        tracemalloc.stop()
    assert sum(one.count for one in snapshot.statistics("filename")) < 3_000


async def test_a_clock_that_is_set_forward_is_noticed(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(
        timed_job("late", deadline=300 * 24 * HOUR), timed_job("later", deadline=1e9)
    )
    await clock.advance(1)
    clock.set_by(365 * 24 * HOUR)
    await clock.advance(LONGEST)
    assert books.rows("late").job.state is JobState.TIMED_OUT
    assert books.rows("later").job.state is JobState.QUEUED


async def test_a_clock_that_is_set_back_ends_nothing_early(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(timed_job(deadline=HOUR))
    await clock.advance(HOUR - 1)
    clock.set_by(-365 * 24 * HOUR)
    await clock.advance(HOUR)
    assert books.rows().job.state is JobState.QUEUED
    clock.set_by(365 * 24 * HOUR)
    await clock.advance(LONGEST)
    assert books.rows().job.state is JobState.TIMED_OUT


async def test_a_restart_finds_the_same_moments(books: Books, clock: FakeClock) -> None:
    await books.submit(
        timed_job("queued", queue=60.0),
        timed_job("released", queue=60.0, hold=True),
        timed_job("held", queue=60.0, hold=True),
        timed_job("passed", deadline=10.0),
    )
    await clock.advance(30)
    await books.ledger.decide("released", lambda rows: hold(rows, False, now_of(clock)))
    ledger = Ledger(books.store.as_store())
    timers = Timers(ledger, books.store.as_store(), clock)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ledger.run(), name="ledger")]
        await ledger.recover()
        await timers.recover()
        async with ticking(timers):
            await clock.advance(0)
            assert states(books) == {"passed"}
            await clock.advance(30)
            assert states(books) == {"passed", "queued"}
            await clock.advance(30)
            assert states(books) == {"passed", "queued", "released"}
            await clock.advance(HOUR)
            assert states(books) == {"passed", "queued", "released"}
        for task in tasks:
            task.cancel()


async def test_many_deadlines_at_once_are_taken_in_steps(
    books: Books, clock: FakeClock, timers: Timers
) -> None:
    await books.submit(*(timed_job(f"job-{n}", deadline=HOUR) for n in range(2_000)))
    for _ in range(20):
        await clock.advance(HOUR)
    assert len(states(books)) == 2_000
    assert max(books.store.batches) <= 500


def states(books: Books) -> set[str]:
    return {uid for uid, job in books.store.jobs.items() if job.state is JobState.TIMED_OUT}


def now_of(clock: FakeClock) -> Any:
    return replace(NOW, time=round(clock.time() * 1e6))


def view(rows: Any) -> Any:
    return rows.view(0)


async def start(books: Books) -> None:
    await books.ledger.decide("job-1", lambda rows: launch(rows, intent(rows), NOW))
    await books.ledger.decide("job-1", lambda rows: running(view(rows), NOW.time, "", NOW))


async def end(books: Books, state: AttemptState) -> None:
    outcome = Outcome(state, None if state is AttemptState.SUCCEEDED else causes.lost("gone"))
    await books.ledger.decide(
        "job-1", lambda rows: ended(view(rows), replace(outcome, gone=True), NOW)
    )
