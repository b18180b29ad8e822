"""The file itself: its lock, its schema, rows that cannot be read, a disk that fills up."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from store_faults import contents
from structlog.testing import capture_logs

from hatoba_scheduler.domain.records import Host, MetricPoint, Queue, Resources, TokenRecord
from hatoba_scheduler.store.base import JobQuery, MetricQuery, Submitted
from hatoba_scheduler.store.conformance import launched
from hatoba_scheduler.store.errors import AlreadyRunning, SchemaTooNew, SqliteTooOld, StorageFull
from hatoba_scheduler.store.samples import submission
from hatoba_scheduler.store.sqlite import SqliteStore, open_store
from hatoba_scheduler.store.sqlite.database import (
    LOCK_FILE,
    DirectoryLock,
    Migration,
    connect,
    migrate,
    migrations,
)

KNOWN = migrations()

_SECOND = """
import asyncio, pathlib, sys
from hatoba_scheduler.store.errors import AlreadyRunning
from hatoba_scheduler.store.sqlite import open_store
try:
    asyncio.run(open_store(pathlib.Path(sys.argv[1]), lambda: 1))
except AlreadyRunning as error:
    print(error.pid, error)
"""


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[SqliteStore]:
    """A store, closed in the end."""
    store = await open_store(directory, lambda: 5)
    try:
        yield store
    finally:
        await store.close()


# -- one process ---------------------------------------------------------------------------------


async def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    async with opened(tmp_path):
        second = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _SECOND, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
    pid, _, message = second.stdout.partition(" ")
    assert int(pid) == os.getpid()
    assert f"process {os.getpid()} " in message
    assert str(tmp_path) in message


async def test_the_directory_is_free_after_the_close(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(AlreadyRunning):
            await open_store(tmp_path, lambda: 5)
    async with opened(tmp_path):
        pass


def test_what_a_dead_server_was_about_to_start_is_waited_for(tmp_path: Path) -> None:
    """A child holds its parent's lock until it is a program of its own, and may outlive it."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    held = os.open(tmp_path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(held, b"%d\n" % dead.pid)
    fcntl.flock(held, fcntl.LOCK_EX)
    child = subprocess.Popen(["cat"], pass_fds=[held], stdin=subprocess.PIPE)
    os.close(held)
    rests = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        child.communicate()

    DirectoryLock(tmp_path, rest).release()
    assert len(rests) == 1


# -- schema --------------------------------------------------------------------------------------


async def test_an_older_file_is_brought_up_to_date(tmp_path: Path) -> None:
    """What the first version wrote is still there after the next migration, with its new column."""
    async with opened(tmp_path) as store:
        await store.submit([submission(), submission()])
    await asyncio.to_thread(_migrate_further, tmp_path / "hatoba.db")


def _migrate_further(file: Path) -> None:
    known = [*KNOWN, Migration(99, "more", "ALTER TABLE jobs ADD COLUMN x INTEGER;")]
    with closing(connect(file, False)) as connection:
        migrate(connection, file, known, 7)
        migrate(connection, file, known, 8)
        versions = connection.execute("SELECT version, time FROM migrations").fetchall()
        assert versions == [*((step.version, 5) for step in KNOWN), (99, 7)]
        found = connection.execute("SELECT number, x FROM jobs").fetchall()
        assert found == [(1, None), (2, None)]


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "hatoba.db"
    broken = Migration(99, "bad", "CREATE TABLE half (a INTEGER); INSERT INTO nothing VALUES (1);")
    with closing(connect(file, False)) as connection:
        migrate(connection, file, KNOWN, 5)
        with pytest.raises(sqlite3.OperationalError, match="nothing"):
            migrate(connection, file, [*KNOWN, broken], 6)
        migrate(connection, file, KNOWN, 7)
        found = connection.execute("SELECT name FROM sqlite_master WHERE name = 'half'").fetchall()
    assert found == []


async def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    await asyncio.to_thread(_mark_newer, tmp_path / "hatoba.db")
    with pytest.raises(SchemaTooNew, match=r"hatoba\.db has schema 99, this version knows \d"):
        await open_store(tmp_path, lambda: 5)
    with pytest.raises(SchemaTooNew):
        await open_store(tmp_path, lambda: 5)


def _mark_newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("INSERT INTO migrations VALUES (99, 'later', 1)")
        connection.commit()


async def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(SqliteTooOld, match=r"needs 3\.37\.0 or newer"):
        await open_store(tmp_path, lambda: 5)


def test_migrations_are_numbered_without_gaps() -> None:
    assert [step.version for step in KNOWN] == list(range(1, len(KNOWN) + 1))


# -- rows that cannot be read --------------------------------------------------------------------

_TABLES = {
    "jobs": "uid",
    "tasks": "job_uid",
    "attempts": "job_uid",
    "events": "seq",
    "metrics": "job_uid",
    "queues": "name",
    "hosts": "name",
    "tokens": "id",
}
_KEYS = {"id", "seq", "uid", "job_uid", "project", "number"}
_GARBAGE = {
    "TEXT": ["CAST(x'ff00' AS TEXT)", "'{'", "'[1]'"],
    "INTEGER": ["99", "-7"],
    "REAL": ["9e999"],
    "BLOB": ["x'ff'"],
}


def _columns(table: str) -> list[tuple[str, str]]:
    schema = "".join(step.sql for step in KNOWN)
    body = re.search(rf"CREATE TABLE {table} \((.*?)\n\)", schema, re.DOTALL)
    assert body is not None
    found = re.findall(r"^    (\w+) (TEXT|INTEGER|REAL|BLOB)", body[1], re.MULTILINE)
    return [(name, kind) for name, kind in found if name not in {*_KEYS, _TABLES[table]}]


class Spoiler:
    """Writes garbage into the first row of a table, past the store, and takes it back."""

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        for what in ("jobs", "tasks", "attempts"):
            self._connection.execute(f"DROP TRIGGER {what}_final")

    def spoil(self, table: str, column: str, garbage: str) -> None:
        self._write(table, f"{column} = {garbage}")

    def restore(self, table: str, column: str, value: object) -> None:
        self._write(table, f"{column} = ?", value)

    def value(self, table: str, column: str) -> object:
        key = _TABLES[table]
        query = f"SELECT {column} FROM {table} ORDER BY {key} LIMIT 1"
        return self._connection.execute(query).fetchone()[0]

    def _write(self, table: str, what: str, *values: object) -> None:
        key = _TABLES[table]
        first = f"(SELECT {key} FROM {table} ORDER BY {key} LIMIT 1)"
        done = self._connection.execute(f"UPDATE {table} SET {what} WHERE {key} = {first}", values)
        assert done.rowcount == 1

    def close(self) -> None:
        self._connection.close()


async def _fill(store: SqliteStore) -> None:
    """Two of everything."""
    results = await store.submit([submission(), submission()])
    jobs = [found.job for found in results if isinstance(found, Submitted)]
    await store.apply([launched(job) for job in jobs])
    for name in ("a", "b"):
        await store.put_host(Host(name, "", "", Resources(), (), (), (), "", False))
        await store.put_token(TokenRecord(name, "", "", 1, 5))
        await store.put_queue(Queue("default", name, 1, "", 5), 0)
    await store.add_metrics([MetricPoint(job.uid, 0, "k", 1, 1, 0.5, 7) for job in jobs])


@pytest.mark.parametrize("table", list(_TABLES))
async def test_a_row_that_cannot_be_read_spoils_no_other(tmp_path: Path, table: str) -> None:
    async with opened(tmp_path) as store:
        await _fill(store)
        spoiler = await asyncio.to_thread(Spoiler, tmp_path / "hatoba.db")
        for column, kind in _columns(table):
            value = await asyncio.to_thread(spoiler.value, table, column)
            for garbage in _GARBAGE[kind]:
                await asyncio.to_thread(spoiler.spoil, table, column, garbage)
                with capture_logs():
                    await _read_the_others(store)
                await asyncio.to_thread(spoiler.restore, table, column, value)
        await asyncio.to_thread(spoiler.close)
        assert isinstance((await store.submit([submission()]))[0], Submitted)


async def _read_the_others(store: SqliteStore) -> None:
    good = await store.job_by_name("default", "train-2")
    assert good is not None
    assert (await store.list_jobs(JobQuery("default"), "", 10))[0] == good
    live = await store.live(1_000_000)
    assert good in live.jobs
    uids = {job.uid for job in live.jobs}
    assert {row.job_uid for row in live.tasks} == {row.job_uid for row in live.attempts} == uids
    assert len(await store.tasks(good.uid, -1, 5)) == 1
    assert len(await store.attempts(good.uid, None, (-1, 0), 5)) == 1
    assert [event.seq for event in await store.events(0, 3)][-2:] in ([2, 3], [3, 4])
    assert len(await store.metrics(MetricQuery(good.uid))) == 1
    assert (await store.hosts())[-1].name == "b"
    assert (await store.tokens())[-1].id == "b"
    assert [queue.name for queue in await store.queues("default", "", 5)][-2:] == ["b", "default"]
    assert sum((await store.count_jobs(JobQuery("default"))).values()) >= 1


async def test_an_unreadable_row_is_told_of(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await _fill(store)
        spoiler = await asyncio.to_thread(Spoiler, tmp_path / "hatoba.db")
        await asyncio.to_thread(spoiler.spoil, "jobs", "desired", "99")
        with capture_logs() as logs:
            assert len(await store.list_jobs(JobQuery("default"), "", 10)) == 1
        await asyncio.to_thread(spoiler.close)
    assert [(entry["event"], entry["table"]) for entry in logs] == [
        ("store.row_unreadable", "jobs")
    ]


# -- a disk that fills up ------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no tmpfs here: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.root
async def test_a_full_disk_refuses_writes_and_recovers(small_disk: Path) -> None:
    data = small_disk / "data"
    filler = small_disk / "filler"
    await asyncio.to_thread(data.mkdir)
    await asyncio.to_thread(filler.write_bytes, b"x" * 2**20)
    async with opened(data) as store:
        kept = 0
        with capture_logs():
            while True:
                try:
                    kept += len(await store.submit([submission() for _ in range(20)]))
                except StorageFull:
                    break
            with pytest.raises(StorageFull):
                await store.submit([submission() for _ in range(500)])
        assert sum((await store.count_jobs(JobQuery("default"))).values()) == kept
        await asyncio.to_thread(filler.unlink)
        kept += len(await store.submit([submission() for _ in range(20)]))
        events = await store.events(0, 10_000)
        assert [event.seq for event in events] == list(range(1, kept + 1))
    assert len((await asyncio.to_thread(contents, data / "hatoba.db"))["jobs"]) == kept
