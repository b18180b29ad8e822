"""The doctor on stores that are well, and on each way in which one can be ill."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest

from hatoba_scheduler.domain import transitions
from hatoba_scheduler.domain.causes import cancelled
from hatoba_scheduler.domain.gangs import after, ended, launch_all
from hatoba_scheduler.domain.records import Attempt, Change, Job, Resources, Task, Terms
from hatoba_scheduler.domain.states import AttemptState, JobState
from hatoba_scheduler.domain.transitions import Intent, Now, Outcome, Rows, View
from hatoba_scheduler.store.base import Applied, JobQuery, Submitted
from hatoba_scheduler.store.problems import StoreProblem
from hatoba_scheduler.store.samples import new_job, submission
from hatoba_scheduler.store.sqlite import SqliteStore, open_store
from hatoba_scheduler.store.sqlite.database import FILE, connect
from hatoba_scheduler.store.sqlite.doctor import check, repair

NOW = Now(2_000_000)
DAY = 24 * 3600 * 1_000_000


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[SqliteStore]:
    store = await open_store(directory, lambda: 1_500_000)
    try:
        yield store
    finally:
        await store.close()


class Life:
    """Takes jobs through their states, as the ledger does."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    async def submit(self, *jobs: Job) -> list[Job]:
        found = await self._store.submit([submission(job) for job in jobs])
        return [one.job for one in found if isinstance(one, Submitted)]

    async def write(self, changes: Sequence[Change | None]) -> list[Change]:
        done = [change for change in changes if change is not None]
        assert all(isinstance(one, Applied) for one in await self._store.apply(done))
        return done

    async def launch(self, jobs: Sequence[Job], index: int = 0) -> list[View]:
        done = await self.write(
            [transitions.launch(Rows(job, {}, {}), _intent(job, index), NOW) for job in jobs]
        )
        return [_view(change) for change in done]

    async def run(self, views: Sequence[View]) -> list[View]:
        done = await self.write([transitions.running(view, 3, "", NOW) for view in views])
        return [_view(change) for change in done]

    async def end(self, views: Sequence[View], *, gone: bool = True) -> list[View]:
        outcome = Outcome(AttemptState.SUCCEEDED, None, gone=gone)
        done = await self.write([transitions.ended(view, outcome, NOW) for view in views])
        return [_view(change) for change in done]


def _intent(job: Job, index: int) -> Intent:
    name = f"h1-{job.uid.replace('-', '')}-{index}-1"
    return Intent(index, name, "null", "", (), Resources(slots=1), True, "c" * 16)


def _view(change: Change) -> View:
    task: Task = change.tasks[0].row
    attempt: Attempt = change.attempts[0].row
    return View(change.job, task, attempt)


async def _fill(directory: Path) -> None:
    """A job that waits, one that runs, one that is over, one cancelled, one of three tasks."""
    async with opened(directory) as store:
        life = Life(store)
        jobs = await life.submit(*[new_job() for _ in range(4)], new_job(3))
        running = await life.run(await life.launch(jobs[1:3]))
        await life.end(running[1:])
        await life.write([transitions.cancel(Rows(jobs[3], {}, {}), cancelled("a", ""), NOW)])
        await life.end(await life.run(await life.launch([jobs[4]], index=1)))


def _problems(directory: Path, now: int = 0) -> list[StoreProblem]:
    with closing(connect(directory / FILE, reader=True)) as connection:
        return check(connection, now)


async def _checked(directory: Path, now: int = 0) -> list[StoreProblem]:
    return await asyncio.to_thread(_problems, directory, now)


def _spoil(directory: Path, *statements: str) -> None:
    with closing(sqlite3.connect(directory / FILE, isolation_level=None)) as connection:
        rules = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' OR name LIKE '%one_under%'"
        ).fetchall()
        for name, sql in rules:
            kind = "TRIGGER" if "TRIGGER" in sql else "INDEX"
            connection.execute(f"DROP {kind} {name}")
        for statement in statements:
            connection.execute(statement)
        for _, sql in rules:
            with contextlib.suppress(sqlite3.IntegrityError):
                connection.execute(sql)


def _mend(directory: Path, problems: Sequence[StoreProblem]) -> list[StoreProblem]:
    with closing(connect(directory / FILE, reader=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        done = repair(connection, problems, NOW.time)
        connection.execute("COMMIT")
        return done


async def test_a_store_that_is_well(tmp_path: Path) -> None:
    await _fill(tmp_path)
    assert await _checked(tmp_path, 10 * DAY) == []


async def test_a_gang_whose_first_member_ended_waits_for_the_others(tmp_path: Path) -> None:
    """Until the last one has: then no task of it may wait any more."""
    async with opened(tmp_path) as store:
        life = Life(store)
        (job,) = await life.submit(replace(new_job(2), terms=Terms(gang=True)))
        rows = Rows(job, {}, {})
        (begun,) = await life.write([launch_all(rows, [_intent(job, 0), _intent(job, 1)], NOW)])
        rows = after(rows, begun)
        first = View(rows.job, rows.tasks[0], rows.attempts[0], rows)
        await life.write([ended(first, Outcome(AttemptState.SUCCEEDED, None, gone=True), NOW)])
    assert await _checked(tmp_path, 10 * DAY) == []
    _spoil(tmp_path, "UPDATE attempts SET state = 6, release = 3 WHERE idx = 1")
    found = [one.text() for one in await _checked(tmp_path) if one.invariant == "I3"]
    assert any("[0] is STOPPING, its attempt 1 is SUCCEEDED" in text for text in found), found


RUNS = "(SELECT uid FROM jobs WHERE number = 2)"
ENDED = "(SELECT uid FROM jobs WHERE number = 3)"
SPOILED = {
    "a second attempt under way": (
        "I3",
        "has 2 attempts under way",
        "CREATE TEMP TABLE copy AS SELECT * FROM attempts WHERE state < 6;"
        "UPDATE copy SET number = 2, fence = 2, name = name || 'x';"
        "INSERT INTO attempts SELECT * FROM copy;",
    ),
    "an attempt that does not go with its task": (
        "I3",
        "is RUNNING, its attempt 1 is LAUNCHING",
        f"UPDATE attempts SET state = 1 WHERE job_uid = {RUNS}",
    ),
    "a task without its attempt": (
        "I31",
        "says attempt 1, the newest is 0",
        f"DELETE FROM attempts WHERE job_uid = {RUNS}",
    ),
    "a fence that does not grow": (
        "I31",
        "with fence 0",
        f"UPDATE attempts SET fence = 0 WHERE job_uid = {RUNS}",
    ),
    "a lost event": ("I20", "the event log from", "DELETE FROM events WHERE seq = 6"),
    "a history with a hole": (
        "I20",
        "is its number",
        f"UPDATE events SET job_seq = job_seq + 1 WHERE job_uid = {ENDED} AND job_seq = 3",
    ),
    "a change that no event tells": (
        "I20",
        "its events tell of",
        f"UPDATE jobs SET version = version + 1 WHERE uid = {RUNS}",
    ),
    "a task that moved untold": (
        "I20",
        "its newest event says RUNNING",
        f"UPDATE tasks SET state = 6 WHERE job_uid = {RUNS}",
    ),
    "an end taken back": (
        "I8",
        "by its tasks it is",
        f"UPDATE jobs SET state = 7 WHERE uid = {ENDED}",
    ),
    "counts that do not add up": (
        "I8",
        "its tasks are",
        "UPDATE jobs SET counts = '[0,3,0,0,0,0,0,0,0,0,0,0,0,0]' WHERE number = 5",
    ),
    "a cancel forgotten": (
        "I17",
        "may still start",
        "UPDATE jobs SET desired = 2 WHERE number = 5",
    ),
    "an end that holds": (
        "I32",
        "still holds its place",
        f"UPDATE attempts SET release = 1 WHERE job_uid = {ENDED}",
    ),
    "an end that is never confirmed": (
        "I32",
        "ended over a day ago",
        f"UPDATE attempts SET release = 2 WHERE job_uid = {ENDED}",
    ),
    "a place given away": (
        "I32",
        "is under way and not HELD",
        f"UPDATE attempts SET release = 3 WHERE job_uid = {RUNS}",
    ),
    "a key that names nothing": (
        "I2",
        "which does not exist",
        "UPDATE requests SET resource = 'nowhere' WHERE id = 1",
    ),
    "a job without its spec": ("I1", "has no spec", "DELETE FROM specs WHERE id = 1"),
    "labels of nobody": (
        "I1",
        "1 rows of job_labels belong to",
        "INSERT INTO job_labels VALUES ('a', 'b', 999)",
    ),
    "a dependency on nothing": (
        "I1",
        "waits for job nobody",
        "UPDATE jobs SET blocked_on = '[\"nobody\"]' WHERE number = 1",
    ),
    "a job that is gone": ("I1", "and does not exist", f"DELETE FROM jobs WHERE uid = {ENDED}"),
    "a row that cannot be read": ("I34", "of jobs cannot be read", "UPDATE jobs SET state = 99"),
    "text that is no text": (
        "I34",
        "of attempts cannot be read",
        "UPDATE attempts SET host = CAST(x'ff' AS TEXT)",
    ),
    "a generation that came too early": (
        "I7",
        "of generation 2 is under way",
        f"UPDATE attempts SET generation = 2 WHERE job_uid = {RUNS}",
    ),
    "an index that is missing": (
        "schema",
        "index events_by_job is missing",
        "DROP INDEX events_by_job",
    ),
    "a newer schema": (
        "schema",
        "use the version that wrote it",
        "INSERT INTO migrations VALUES (999, 'later', 1)",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
async def test_each_illness_is_named(what: str, tmp_path: Path) -> None:
    invariant, words, statements = SPOILED[what]
    await _fill(tmp_path)
    await asyncio.to_thread(_spoil, tmp_path, *statements.split(";"))
    found = await _checked(tmp_path, 10 * DAY)
    assert any(one.invariant == invariant and words in one.message for one in found), found


@pytest.mark.parametrize(
    "what",
    [
        "counts that do not add up",
        "an end that holds",
        "labels of nobody",
        "an index that is missing",
    ],
)
async def test_what_needs_no_guess_is_mended(what: str, tmp_path: Path) -> None:
    await _fill(tmp_path)
    await asyncio.to_thread(_spoil, tmp_path, *SPOILED[what][2].split(";"))
    found = await _checked(tmp_path)
    done = await asyncio.to_thread(_mend, tmp_path, found)
    assert all(problem.repaired for problem in done)
    assert await _checked(tmp_path) == []


async def test_a_mended_state_is_told_in_an_event(tmp_path: Path) -> None:
    await _fill(tmp_path)
    await asyncio.to_thread(_spoil, tmp_path, SPOILED["counts that do not add up"][2])
    await asyncio.to_thread(_mend, tmp_path, await _checked(tmp_path))
    async with opened(tmp_path) as store:
        newest = (await store.events(0, 1000))[-1]
        assert (newest.reason, newest.actor) == ("repair", "doctor")
        assert "counted anew" in newest.note
        jobs = await store.list_jobs(JobQuery("default"), "", 10)
    assert jobs[0].counts[JobState.SUCCEEDED] == 1


async def test_what_would_be_a_guess_is_left_alone(tmp_path: Path) -> None:
    await _fill(tmp_path)
    await asyncio.to_thread(_spoil, tmp_path, SPOILED["an end taken back"][2].replace("7", "10"))
    found = await _checked(tmp_path)
    done = await asyncio.to_thread(_mend, tmp_path, found)
    assert found
    assert not any(problem.repaired for problem in done)
    assert await _checked(tmp_path) == found


def _truncate(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)


def _zero_a_page(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.seek(4096 * 20)
        handle.write(bytes(4096 * 4))


def _garbage_header(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.write(b"garbage" * 20)


@pytest.mark.parametrize("damage", [_truncate, _zero_a_page, _garbage_header])
async def test_a_damaged_file(damage: Callable[[Path], None], tmp_path: Path) -> None:
    await _fill(tmp_path)
    await asyncio.to_thread(damage, tmp_path / FILE)
    try:
        found = await _checked(tmp_path)
    except sqlite3.DatabaseError:
        return
    assert [one for one in found if one.invariant == "file"]


@pytest.mark.timeout(300)
async def test_twenty_thousand_jobs_take_seconds(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        life = Life(store)
        for _ in range(20):
            jobs = await life.submit(*[new_job() for _ in range(1000)])
            await life.end(await life.run(await life.launch(jobs)))
    began = time.monotonic()
    assert await _checked(tmp_path, DAY) == []
    took = time.monotonic() - began
    print(f"20,000 jobs and 80,000 events: {took:.2f} s")
    assert took < 15
