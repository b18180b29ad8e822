"""What becomes of a batch of writes when a statement fails, and what callers are told."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_faults import Script, contents, disk_error, disk_full

from hatoba_scheduler.domain.records import (
    AttemptWrite,
    Change,
    Host,
    Job,
    MetricPoint,
    Queue,
    Resources,
    TaskWrite,
)
from hatoba_scheduler.store.base import (
    Applied,
    Duplicate,
    JobQuery,
    RequestKey,
    Submission,
    Submitted,
)
from hatoba_scheduler.store.errors import StorageDamaged, StorageFailed, StorageFull, WriteRefused
from hatoba_scheduler.store.samples import (
    event_of,
    new_attempt,
    new_job,
    new_task,
    submission,
)
from hatoba_scheduler.store.sqlite import SqliteStore, open_store

Call = Callable[[], Awaitable[Any]]


class Bench:
    """A store on a scripted connection, with one job to change."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "hatoba.db"
        self.directory = directory
        self.script = Script()
        self.store: SqliteStore
        self.job: Job

    async def open(self) -> None:
        self.store = await open_store(
            self.directory, lambda: 5, open_connection=self.script.connect
        )

    async def prepare(self) -> None:
        (found,) = await self.store.submit([submission(new_job(2))])
        assert isinstance(found, Submitted)
        self.job = found.job

    async def contents(self) -> dict[str, list[Any]]:
        return await asyncio.to_thread(contents, self.file)

    async def at_once(self, calls: Sequence[Call]) -> list[Any]:
        """Make calls while the writer is busy, so that they become one batch; their outcomes."""
        async with self.script.held("COMMIT") as reached:
            gate = asyncio.gather(self.store.put_host(_host("gate")))
            await reached.wait()
            answers = asyncio.gather(*(call() for call in calls), return_exceptions=True)
            await asyncio.sleep(0)  # every call runs until it waits for its answer
        await gate
        return list(await answers)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    found = Bench(tmp_path)
    await found.open()
    await found.prepare()
    yield found
    found.script.calm()
    await found.store.close()


def _host(name: str) -> Host:
    return Host(name, "", "", Resources(), (), (), (), "", False)


def _launch(job: Job, index: int) -> Change:
    return Change(
        replace(job, version=job.version + 1),
        job.version,
        (TaskWrite(new_task(job, index), 0),),
        (AttemptWrite(new_attempt(job, index), 0),),
        (event_of(job, job.version + 1, index),),
    )


class Mixed:
    """One call of every kind, twice over, in an order that makes several runs of a batch."""

    def __init__(self, bench: Bench) -> None:
        store, job = bench.store, bench.job
        first = _launch(job, 0)
        self.items = [submission(replace(new_job(), labels=(("a", "b"),))) for _ in range(3)]
        key = RequestKey("default", "CancelJobs", "r", b"x")
        self.calls: list[Call] = [
            lambda: store.submit(self.items[:2]),
            lambda: store.apply([first]),
            lambda: store.put_queue(Queue("default", "fast", 1, "ada", 5), 0),
            lambda: store.remember_request(key, "r"),
            lambda: store.add_metrics([MetricPoint(job.uid, 0, "k", 1, 1, 0.5, 7)]),
            lambda: store.apply([_launch(first.job, 1)]),
            lambda: store.submit(self.items[2:]),
            lambda: store.put_host(_host("a")),
            lambda: store.delete_queue("default", "fast", 1),
            lambda: store.forget_requests(0),
        ]

    def check(self, answers: Sequence[Any]) -> None:
        """All of them were carried out, in order."""
        names = [found.job.name for found in answers[0] + answers[6]]
        assert names == ["train-2", "train-3", "train-4"]
        assert answers[1] == [Applied((4,))]
        assert answers[5] == [Applied((5,))]
        assert answers[3] is None
        assert answers[8:] == [True, 0]


async def _gapless(bench: Bench) -> None:
    events = await bench.store.events(0, 1000)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


async def _statements(bench: Bench) -> int:
    """How many statements the mixed batch takes, as one transaction."""
    mixed = Mixed(bench)
    start = len(bench.script.statements)
    mixed.check(await bench.at_once(mixed.calls))
    ran = bench.script.statements[start:]
    assert [sql for sql in ran if sql == "COMMIT"] == ["COMMIT"] * 2
    return len(ran) - 1 - ran.index("COMMIT")


async def test_a_failing_disk_fails_the_whole_batch_at_every_statement(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place, last = 0, 1
    while place < last:
        place += 1
        bench = Bench(await asyncio.to_thread(tmp_path_factory.mktemp, "bench"))
        await bench.open()
        await bench.prepare()
        if place == 1:
            twin = Bench(await asyncio.to_thread(tmp_path_factory.mktemp, "twin"))
            await twin.open()
            await twin.prepare()
            last = await _statements(twin)
            await twin.store.close()
            assert last > 20
        await _fail_everything(bench, place, disk_full() if place % 3 == 0 else disk_error())
        await bench.store.close()


async def _fail_everything(bench: Bench, place: int, error: sqlite3.OperationalError) -> None:
    kind = StorageFull if "full" in str(error) else StorageFailed
    mixed = Mixed(bench)
    await bench.store.put_host(_host("gate"))
    before, opened = await bench.contents(), bench.script.opened

    def arm(sql: str) -> None:
        if sql == "COMMIT":
            bench.script.fail_at(place, error)

    bench.script.after = arm
    answers = await bench.at_once(mixed.calls)
    assert [type(answer) for answer in answers] == [kind] * len(mixed.calls), place
    assert await bench.contents() == before, place
    bench.script.calm()
    mixed.check(await asyncio.gather(*(call() for call in mixed.calls)))
    assert bench.script.opened == opened + 1
    await _gapless(bench)


async def test_a_write_that_fails_takes_no_other_with_it(bench: Bench) -> None:
    mixed = Mixed(bench)
    refused = submission(replace(new_job(), uid=bench.job.uid))
    calls = mixed.calls
    calls.insert(4, lambda: bench.store.submit([submission(), refused]))
    answers = await bench.at_once(calls)
    assert isinstance(answers.pop(4), WriteRefused)
    mixed.check(answers)
    await _gapless(bench)


@pytest.mark.parametrize("place", range(1, 40, 3))
async def test_a_disk_that_fails_while_writes_run_singly(bench: Bench, place: int) -> None:
    """What was committed is answered, what was not fails, and nothing is in between."""
    items = [submission() for _ in range(6)]
    items[1] = submission(replace(new_job(), uid=bench.job.uid))

    def arm(sql: str) -> None:
        if sql == "ROLLBACK":
            bench.script.fail_at(place, disk_error())

    bench.script.after = arm
    answers = await bench.at_once([_submit(bench, item) for item in items])
    bench.script.calm()
    stored = await bench.store.jobs_by_uid([item.job.uid for item in items])
    for item, answer in zip(items, answers, strict=True):
        if item is items[1]:
            assert isinstance(answer, WriteRefused | StorageFailed)
        else:
            assert isinstance(answer, list) == (item.job.uid in stored)
    failed = [isinstance(answer, StorageFailed) for answer in answers]
    assert failed == sorted(failed), "nothing runs after the failure"
    await _gapless(bench)


def _submit(bench: Bench, item: Submission) -> Call:
    return lambda: bench.store.submit([item])


async def test_an_answer_lost_after_the_commit_is_no_second_job(bench: Bench) -> None:
    """The caller is told of a failure; its repeat finds the job."""
    item = submission()
    start = len(bench.script.statements)
    await bench.store.submit([submission()])
    commit = len(bench.script.statements) - start
    bench.script.fail_at(commit, disk_error(), after=True)
    with pytest.raises(StorageFailed):
        await bench.store.submit([item])
    bench.script.calm()
    assert await bench.store.submit([item]) == [Duplicate(item.job.uid)]
    await bench.store.submit([submission()])
    await _gapless(bench)


async def test_nothing_is_answered_or_seen_before_the_commit(bench: Bench) -> None:
    async with bench.script.held("COMMIT") as reached:
        call = asyncio.gather(bench.store.submit([submission()]))
        await reached.wait()
        assert await bench.store.event_bounds() == (1, 1)
        assert not call.done()
    await call
    assert await bench.store.event_bounds() == (1, 2)


async def test_calls_that_wait_together_are_committed_together(bench: Bench) -> None:
    start = len(bench.script.statements)
    answers = await bench.at_once([_submit(bench, submission()) for _ in range(100)])
    names = [answer[0].job.name for answer in answers]
    assert names == [f"train-{number}" for number in range(2, 102)]
    assert bench.script.statements[start:].count("COMMIT") == 2


async def test_more_calls_than_the_queue_holds_are_answered_in_order(bench: Bench) -> None:
    calls = [bench.store.submit([submission()]) for _ in range(1_500)]
    answers = await asyncio.gather(*calls)
    numbers = [
        int(found.job.name.removeprefix("train-"))
        for (found,) in answers
        if isinstance(found, Submitted)
    ]
    assert numbers == list(range(2, 1_502))


async def test_a_full_database_refuses_writes_and_takes_them_again(bench: Bench) -> None:
    """`max_page_count` makes SQLite itself raise SQLITE_FULL."""
    await bench.store.close()
    bench.script.max_pages = 200
    await bench.open()
    kept = 0
    while True:
        try:
            kept += len(await bench.store.submit([submission() for _ in range(20)]))
        except StorageFull:
            break
    assert kept
    assert sum((await bench.store.count_jobs(JobQuery("default"))).values()) == kept + 1
    with pytest.raises(StorageFull):
        await bench.store.submit([submission() for _ in range(500)])
    bench.script.max_pages = 100_000
    # The limit belongs to a connection: the one opened after a failure has the new one.
    answers = await asyncio.gather(
        *(bench.store.submit([submission() for _ in range(100)]) for _ in range(3)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [list] * 3
    await _gapless(bench)
    await bench.contents()


async def test_a_store_that_cannot_be_opened_says_so_until_it_can(bench: Bench) -> None:
    def unopenable(_: str) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    bench.script.opening = unopenable
    bench.script.fail_at(1, disk_error())
    assert bench.store.trouble.error is None
    for _ in range(20):
        with pytest.raises(StorageFailed):
            await bench.store.submit([submission()])
    assert isinstance(await bench.store.trouble.wait(), StorageFailed)
    assert await bench.store.job(bench.job.uid) == bench.job
    bench.script.calm()
    await bench.store.backups.probe()
    assert bench.store.trouble.error is None
    await bench.store.submit([submission()])
    await _gapless(bench)


async def test_a_damaged_file_breaks_the_store_at_once(bench: Bench) -> None:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    bench.script.fail_at(2, error)
    with pytest.raises(StorageFailed):
        await bench.store.submit([submission()])
    (found,) = await asyncio.gather(anext(bench.store.broken()))
    assert isinstance(found, StorageDamaged)


async def test_the_writer_moves_the_log_into_the_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hatoba_scheduler.store.sqlite.writer.CHECKPOINT_PAGES", 50)
    for _ in range(10):
        await bench.store.submit([submission() for _ in range(50)])
    assert any("wal_checkpoint" in sql for sql in bench.script.statements)
    wal = await asyncio.to_thread(lambda: bench.file.with_name("hatoba.db-wal").stat().st_size)
    assert wal < 2 * 2**20
    bench.script.before = _refuse_checkpoints
    for _ in range(3):
        await bench.store.submit([submission() for _ in range(50)])
    await _gapless(bench)


def _refuse_checkpoints(sql: str) -> None:
    if "wal_checkpoint" in sql:
        raise disk_error()


async def test_the_writer_writes_as_durably_as_it_says(bench: Bench) -> None:
    connection = await asyncio.to_thread(bench.script.connect, bench.file, False)
    names = ("journal_mode", "synchronous", "wal_autocheckpoint")

    def settings() -> list[object]:
        with closing(connection):
            return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await asyncio.to_thread(settings) == ["wal", 2, 0]


async def test_readers_write_nothing(bench: Bench) -> None:
    reader = await asyncio.to_thread(bench.script.connect, bench.file, True)

    def vandalise() -> None:
        reader.execute("DELETE FROM jobs")

    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await asyncio.to_thread(vandalise)
    reader.close()
