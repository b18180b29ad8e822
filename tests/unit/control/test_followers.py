"""Ends are carried on to those that wait for them, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from domain_rows import NOW, new_job
from waiting import News

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.followers import AGAIN, STEP, Followers
from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.records import Event, Job
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.domain.transitions import cancel
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.errors import StorageFailed

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books


class Unreadable:
    """A store that cannot be read at first, and then knows one job that succeeded."""

    def __init__(self) -> None:
        self.asked = 0

    async def jobs_by_uid(self, uids: Sequence[str]) -> dict[str, Job]:
        self.asked += 1
        if self.asked == 1:
            raise StorageFailed("the disk does not answer")
        return {uid: replace(new_job(uid), state=JobState.SUCCEEDED) for uid in uids}


async def test_a_store_that_cannot_be_read_delays_and_loses_nothing(books: Books) -> None:
    clock, store = FakeClock(), Unreadable()
    followers = Followers(books.ledger, cast(Store, store), clock)
    await books.submit(new_job(blocked_on=("job-0",)))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(followers.run(), name="followers")
        await clock.advance(0.0)
        assert books.rows().job.state is JobState.BLOCKED
        await clock.advance(AGAIN)
        assert books.rows().job.state is JobState.QUEUED
        task.cancel()


@asynccontextmanager
async def following(books: Books) -> AsyncIterator[Followers]:
    followers = Followers(books.ledger, books.store.as_store(), FakeClock())
    followers.recover()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(followers.run(), name="followers")
        try:
            yield followers
        finally:
            task.cancel()


async def cancelled(books: Books, uid: str) -> None:
    cause = causes.cancelled("owner", "")
    await books.ledger.decide(uid, lambda rows: cancel(rows, cause, NOW))


class Told:
    """Waits for what the ledger tells."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._news = News()
        books.ledger.listen(self._note)

    def _note(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        self._news.tell()

    async def until(self, holds: Callable[[], bool]) -> None:
        await self._news.until(holds)

    async def ended(self, count: int) -> None:
        """Until so many jobs have ended."""
        await self.until(lambda: sum(event.job_terminal for event in self._books.told) >= count)


def chain(links: int) -> list[Job]:
    """Each waits for the one before; the first is held."""
    first = new_job("job-0", hold=True)
    return [first, *(new_job(f"job-{n}", blocked_on=(f"job-{n - 1}",)) for n in range(1, links))]


async def test_a_chain_falls_in_batches(books: Books) -> None:
    told = Told(books)
    async with following(books):
        await books.submit(*chain(10_000))
        before = len(books.store.batches)
        await cancelled(books, "job-0")
        await told.ended(10_000)
    commits = len(books.store.batches) - before
    assert commits <= 10_000 / STEP * 4
    assert max(books.store.batches) <= 500
    states = [books.store.jobs[f"job-{n}"].state for n in range(10_000)]
    assert set(states[1:]) == {JobState.UPSTREAM_FAILED}
    cause = books.store.jobs["job-9999"].cause
    assert cause is not None
    assert cause.message == "job-9998-9999, which it depends on, ended UPSTREAM_FAILED."


async def test_what_waits_for_an_end_goes_only_once_that_is_stored(books: Books) -> None:
    jobs = [*chain(3), new_job("last", blocked_end=("job-2",))]
    told = Told(books)
    async with following(books):
        await books.submit(*jobs)
        await cancelled(books, "job-0")
        await told.ended(3)
        await told.until(lambda: books.rows("last").job.state is not JobState.BLOCKED)
    moved = [event.job_uid for event in books.told if event.reason != "submit"]
    assert moved == ["job-0", "job-1", "job-2", "last"]
    assert books.store.jobs["last"].state is JobState.QUEUED


async def test_one_that_may_succeed_still_waits(books: Books) -> None:
    jobs = [
        *chain(2),
        new_job("other", hold=True),
        new_job("either", blocked_any=("job-1", "other")),
        new_job("both", blocked_on=("either",)),
    ]
    told = Told(books)
    async with following(books):
        await books.submit(*jobs)
        await cancelled(books, "job-0")
        await told.ended(2)
        await told.until(lambda: books.rows("either").job.blocked_any == ("other",))
        assert books.rows("both").job.state is JobState.BLOCKED
        await cancelled(books, "other")
        await told.ended(5)
    assert books.store.jobs["both"].state is JobState.UPSTREAM_FAILED


async def test_ends_that_a_crash_cut_off_are_carried_on(books: Books) -> None:
    await books.submit(*chain(50))
    await cancelled(books, "job-0")
    told = Told(books)
    async with following(books):
        await told.ended(50)


async def test_a_store_that_fails_in_the_middle_loses_nobody(books: Books) -> None:
    clock = FakeClock()
    followers = Followers(books.ledger, books.store.as_store(), clock)
    await books.submit(*chain(500))
    await cancelled(books, "job-0")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(followers.run(), name="followers")
        followers.recover()
        books.store.fail_with = StorageFailed("the disk does not answer")
        await clock.advance(AGAIN)
        books.store.fail_with = None
        for _ in range(100):
            await clock.advance(AGAIN)
        task.cancel()
    assert sum(job.state is JobState.UPSTREAM_FAILED for job in books.store.jobs.values()) == 499
