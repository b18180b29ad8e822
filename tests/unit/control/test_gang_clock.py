"""Gangs that do not gather are let go in time, also after a restart and after a bad disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from domain_rows import intent, new_job

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.gang_clock import GangClock
from hatoba_scheduler.domain.gangs import claimed, launch_all
from hatoba_scheduler.domain.records import Change, Terms
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.domain.transitions import Now, Rows

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books


class Broken(Exception):
    """A store that cannot write."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def watched(books: Books, clock: FakeClock) -> AsyncIterator[Books]:
    gangs = GangClock(books.ledger, clock)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(gangs.run())
        yield books
        running.cancel()


def now(clock: FakeClock) -> Now:
    return Now(round(clock.time() * 1e6))


async def begin(books: Books, clock: FakeClock, claims: int = 0) -> None:
    """A gang of two is launched, and so many of it claim."""
    job = replace(new_job("g", size=2), terms=Terms(gang=True, gang_timeout=60.0))
    await books.submit(job)

    def launched(rows: Rows) -> Change | None:
        return launch_all(rows, [intent(rows, 0), intent(rows, 1)], now(clock))

    await books.ledger.decide("g", launched)
    for index in range(claims):

        def claim(rows: Rows, index: int = index) -> Change | None:
            view = rows.view(index)
            return claimed(view, "n" * 16, "h:1", now(clock)) if view else None

        await books.ledger.decide("g", claim)


def states(books: Books) -> set[AttemptState]:
    return {attempt.state for attempt in books.rows("g").attempts.values()}


async def test_who_does_not_gather_is_let_go_when_the_time_is_over(
    watched: Books, clock: FakeClock
) -> None:
    await begin(watched, clock, claims=1)
    await clock.advance(59.0)
    assert AttemptState.STOPPING not in states(watched)
    await clock.advance(2.0)
    assert states(watched) == {AttemptState.STOPPING}


async def test_who_has_gathered_goes_on(watched: Books, clock: FakeClock) -> None:
    await begin(watched, clock, claims=2)
    await clock.advance(3600.0)
    assert states(watched) == {AttemptState.STARTING}


async def test_a_store_that_fails_is_asked_again(watched: Books, clock: FakeClock) -> None:
    await begin(watched, clock)
    watched.store.fail_with = Broken("disk full")
    await clock.advance(61.0)
    assert states(watched) == {AttemptState.LAUNCHING}
    watched.store.fail_with = None
    await clock.advance(2.0)
    assert states(watched) == {AttemptState.STOPPING}


async def test_a_restart_finds_the_same_time(books: Books, clock: FakeClock) -> None:
    await begin(books, clock)
    await clock.advance(50.0)
    gangs = GangClock(books.ledger, clock)
    gangs.recover()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(gangs.run())
        await clock.advance(9.0)
        assert states(books) == {AttemptState.LAUNCHING}
        await clock.advance(2.0)
        assert states(books) == {AttemptState.STOPPING}
        running.cancel()
