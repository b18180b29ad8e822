"""`lost_after`: who is taken for lost, when, and that nobody else ever is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from domain_rows import NOW, intent, new_job

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.disconnects import Disconnects
from hatoba_scheduler.control.observe import of_attempt
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.records import Attempt, Terms
from hatoba_scheduler.domain.states import AttemptState, CauseCode, JobState, Release
from hatoba_scheduler.domain.transitions import Now, cancel, launch, reachability, running

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books

NAME = "h1-job-1-0-1"
BY_ANN = causes.cancelled("ann", "changed her mind")


@asynccontextmanager
async def waiting(books: Books, recalled: list[Attempt] | None = None) -> AsyncIterator[FakeClock]:
    clock = FakeClock()
    recall = (recalled if recalled is not None else []).append
    disconnects = Disconnects(books.ledger, clock, random.Random(1), recall)
    disconnects.recover()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(disconnects.run(), name="disconnects")
        yield clock
        task.cancel()


async def run_job(books: Books, terms: Terms) -> None:
    await books.submit(replace(new_job(), terms=terms))
    await books.ledger.decide("job-1", lambda rows: launch(rows, intent(rows), NOW))
    await books.ledger.decide(
        "job-1", of_attempt(0, NAME, lambda view: running(view, NOW.time, "", NOW))
    )


async def reachable(books: Books, yes: bool) -> None:
    step = of_attempt(0, NAME, lambda view: reachability(view, yes, Now(NOW.time + 1)))
    await books.ledger.decide("job-1", step)


async def test_it_is_lost_when_its_time_is_over_and_another_may_start(books: Books) -> None:
    await run_job(books, Terms(stop_after=10.0, lost_after=60.0))
    async with waiting(books) as clock:
        await reachable(books, False)
        await clock.advance(59.0)
        assert books.rows().attempts[0].state is AttemptState.RUNNING
        await clock.advance(2.0)
    attempt, task = books.rows().attempts[0], books.rows().tasks[0]
    assert attempt.state is AttemptState.LOST
    assert attempt.cause is not None
    assert attempt.cause.code is CauseCode.DISCONNECTED
    assert attempt.release is Release.RELEASED
    assert task.state is JobState.QUEUED


async def test_what_did_not_stop_by_itself_keeps_its_place(books: Books) -> None:
    await run_job(books, Terms(lost_after=60.0))
    async with waiting(books) as clock:
        await reachable(books, False)
        await clock.advance(61.0)
    assert books.rows().attempts[0].release is Release.RELEASING


async def test_what_comes_back_in_time_begins_anew(books: Books) -> None:
    await run_job(books, Terms(stop_after=10.0, lost_after=60.0))
    async with waiting(books) as clock:
        await reachable(books, False)
        await clock.advance(50.0)
        await reachable(books, True)
        await clock.advance(50.0)
        await reachable(books, False)
        await clock.advance(50.0)
        assert books.rows().attempts[0].state is AttemptState.RUNNING


async def test_without_the_term_it_waits_for_ever(books: Books) -> None:
    await run_job(books, Terms(stop_after=10.0))
    async with waiting(books) as clock:
        await reachable(books, False)
        await clock.advance(1e7)
    assert books.rows().attempts[0].state is AttemptState.RUNNING


async def test_time_in_which_the_server_was_away_does_not_count(books: Books) -> None:
    await run_job(books, Terms(stop_after=10.0, lost_after=60.0))
    await reachable(books, False)
    async with waiting(books) as clock:
        await clock.advance(59.0)
        assert books.rows().attempts[0].state is AttemptState.RUNNING
        await clock.advance(2.0)
    assert books.rows().attempts[0].state is AttemptState.LOST


async def test_what_was_being_stopped_when_it_was_lost_is_recalled_too(books: Books) -> None:
    """Its cause is that of the stop, and nobody knows whether it heard of that."""
    await run_job(books, Terms(stop_after=10.0, lost_after=60.0))
    recalled: list[Attempt] = []
    async with waiting(books, recalled) as clock:
        await books.ledger.decide("job-1", lambda rows: cancel(rows, BY_ANN, NOW))
        await reachable(books, False)
        await clock.advance(61.0)
    (attempt,) = recalled
    assert (attempt.name, attempt.state) == (NAME, AttemptState.CANCELLED)
    assert attempt.release is Release.RELEASED
