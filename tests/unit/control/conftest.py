"""A ledger over a store in memory, running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import structlog.testing
from domain_rows import NOW, rows_of
from memory_store import MemoryStore

from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.domain.records import Event, Job
from hatoba_scheduler.domain.transitions import Rows, submitted
from hatoba_scheduler.store.base import Submission


@dataclass
class Books:
    """A ledger, its store, and all that listeners were told."""

    store: MemoryStore
    ledger: Ledger
    told: list[Event] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)

    def note(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        self.commits.extend(commits)
        self.told.extend(events)

    async def submit(self, *jobs: Job) -> None:
        await self.ledger.submit([submission(job) for job in jobs])

    def rows(self, uid: str = "job-1") -> Rows:
        rows = self.ledger.rows(uid)
        return rows if rows is not None else rows_of(self.store.jobs[uid])


def submission(job: Job) -> Submission:
    return Submission(job, job.uid, b"", submitted(job, NOW))


@asynccontextmanager
async def running(ledger: Ledger) -> AsyncIterator[asyncio.Task[None]]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ledger.run(), name="ledger")
        try:
            yield task
        finally:
            task.cancel()


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[structlog.typing.EventDict]]:
    """What was logged; rendering it would read source files from disk, on the loop."""
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
async def books() -> AsyncIterator[Books]:
    store = MemoryStore()
    made = Books(store, Ledger(store.as_store()))
    made.ledger.listen(made.note)
    async with running(made.ledger):
        yield made


@pytest.fixture
def submission_of() -> Callable[[Job], Submission]:
    return submission
