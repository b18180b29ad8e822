"""Ends are carried on to those that wait for them, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from domain_rows import new_job

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.followers import AGAIN, Followers
from hatoba_scheduler.domain.records import Job
from hatoba_scheduler.domain.states import JobState
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
