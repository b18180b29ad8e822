"""From each older schema, with rows in every table, to today's: a copy first, and nothing lost."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hatoba_scheduler.store.base import JobQuery
from hatoba_scheduler.store.devices import RecordKind
from hatoba_scheduler.store.errors import SchemaTooNew, StorageFull
from hatoba_scheduler.store.samples import submission
from hatoba_scheduler.store.sqlite import backup as copies
from hatoba_scheduler.store.sqlite import open_store
from hatoba_scheduler.store.sqlite.database import FILE, connect, migrate, migrations
from hatoba_scheduler.store.sqlite.doctor import check
from hatoba_scheduler.store.sqlite.upgrade import KEPT_COPIES, copies_of

KNOWN = migrations()
RECORDS_BY_KIND = 18
VALUES: dict[str, Any] = {"TEXT": "", "INTEGER": 0, "REAL": 0.5, "BLOB": b"x"}
Contents = dict[str, list[dict[str, Any]]]


def made_before(directory: Path, version: int) -> Contents:
    """A store of an older schema with a row in each of its tables; what is in it."""
    with closing(connect(directory / FILE, reader=False)) as connection:
        older = [step for step in KNOWN if step.version <= version]
        migrate(connection, directory / FILE, older, 5)
        for table in tables(connection):
            fill(connection, table)
        return contents(connection)


def tables(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    )
    return sorted(name for (name,) in found if name != "migrations")


def fill(connection: sqlite3.Connection, table: str) -> None:
    columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
    names = ", ".join(name for _, name, *_ in columns)
    values = [VALUES[kind] for _, _, kind, *_ in columns]
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)


def contents(connection: sqlite3.Connection) -> Contents:
    found: Contents = {}
    for table in tables(connection):
        cursor = connection.execute(f"SELECT * FROM {table}")
        names = [name for name, *_ in cursor.description]
        found[table] = [dict(zip(names, row, strict=True)) for row in cursor]
    return found


def read(file: Path) -> Contents:
    with closing(connect(file, reader=True)) as connection:
        return contents(connection)


@pytest.mark.parametrize("version", [step.version for step in KNOWN[:-1]])
async def test_an_older_store_is_copied_and_migrated(tmp_path: Path, version: int) -> None:
    before = await asyncio.to_thread(made_before, tmp_path, version)
    with capture_logs():
        store = await open_store(tmp_path, lambda: 86_400_000_000)
    await store.submit([submission()])
    assert sum((await store.count_jobs(JobQuery("default"))).values()) == 1
    await store.close()
    after = await asyncio.to_thread(read, tmp_path / FILE)
    for table, rows in before.items():
        for row in rows:
            assert any(row.items() <= now.items() for now in after[table]), table
    (copy,) = await asyncio.to_thread(copies_of, tmp_path / FILE)
    assert copy.name == f"{FILE}.schema-{version}-19700102T000000Z"
    assert await asyncio.to_thread(read, copy) == before
    problems = await asyncio.to_thread(schema_problems, tmp_path / FILE)
    assert problems == []


def schema_problems(file: Path) -> list[str]:
    with closing(connect(file, reader=True)) as connection:
        return [one.text() for one in check(connection) if one.invariant in ("file", "schema")]


async def test_a_new_store_and_one_of_today_are_not_copied(tmp_path: Path) -> None:
    for _ in range(2):
        await (await open_store(tmp_path, lambda: 5)).close()
    assert await asyncio.to_thread(copies_of, tmp_path / FILE) == []


async def test_the_newest_copies_are_kept(tmp_path: Path) -> None:
    for day in range(KEPT_COPIES + 2):
        await asyncio.to_thread((tmp_path / FILE).unlink, missing_ok=True)
        await asyncio.to_thread(made_before, tmp_path, 8 if day % 2 else 9)
        with capture_logs():
            await (await open_store(tmp_path, functools.partial(int, day * 86_400_000_000))).close()
    kept = await asyncio.to_thread(copies_of, tmp_path / FILE)
    assert [copy.name.rpartition("-")[2] for copy in kept] == [
        "19700105T000000Z",
        "19700104T000000Z",
        "19700103T000000Z",
    ]


async def test_without_room_for_the_copy_nothing_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await asyncio.to_thread(made_before, tmp_path, 9)
    monkeypatch.setattr(copies, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(StorageFull, match="free some"):
        await open_store(tmp_path, lambda: 5)
    assert await asyncio.to_thread(read, tmp_path / FILE) == before
    assert await asyncio.to_thread(copies_of, tmp_path / FILE) == []


async def test_a_migration_that_fails_leaves_the_schema_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await asyncio.to_thread(made_before, tmp_path, 9)
    broken = [*KNOWN[:-1], KNOWN[-1]._replace(sql="CREATE TABLE half (a); NONSENSE;")]
    monkeypatch.setattr("hatoba_scheduler.store.sqlite.store.migrations", lambda: broken)
    with capture_logs(), pytest.raises(sqlite3.OperationalError):
        await open_store(tmp_path, lambda: 5)
    after = await asyncio.to_thread(read, tmp_path / FILE)
    assert "half" not in after
    assert after["jobs"][0].items() >= before["jobs"][0].items()
    monkeypatch.undo()
    with capture_logs():
        await (await open_store(tmp_path, lambda: 5)).close()


async def test_a_newer_schema_is_refused_with_its_number(tmp_path: Path) -> None:
    await (await open_store(tmp_path, lambda: 5)).close()

    def later() -> None:
        with closing(connect(tmp_path / FILE, reader=False)) as connection:
            connection.execute("INSERT INTO migrations VALUES (999, 'later', 1)")

    await asyncio.to_thread(later)
    with pytest.raises(
        SchemaTooNew, match=r"has schema 999, this version knows .* start the version"
    ):
        await open_store(tmp_path, lambda: 5)


async def test_what_a_device_lost_before_records_had_bounds_by_kind_is_told(
    tmp_path: Path,
) -> None:
    def before() -> None:
        with closing(connect(tmp_path / FILE, reader=False)) as connection:
            older = [step for step in KNOWN if step.version < RECORDS_BY_KIND]
            migrate(connection, tmp_path / FILE, older, 5)
            fill(connection, "devices")
            connection.execute("UPDATE devices SET name = 'a', newest_record = 9")
            rows = [(1, RecordKind.LOG, 0), (9, RecordKind.FIGURE, 5)]
            connection.executemany(
                "INSERT INTO device_records VALUES ('a', ?, 7, ?, '', x'', ?)",
                [(position, kind.value, lost) for position, kind, lost in rows],
            )

    await asyncio.to_thread(before)
    with capture_logs():
        store = await open_store(tmp_path, lambda: 86_400_000_000)
    logs = await store.devices.records("a", RecordKind.LOG, "", 0, 9)
    assert [(one.position, one.lost) for one in logs] == [(1, 0), (8, 5)]
    (figure,) = await store.devices.records("a", RecordKind.FIGURE, "", 0, 9)
    assert (figure.position, figure.lost) == (9, 5)
    assert await store.devices.newest_record("a") == 9
    await store.close()
