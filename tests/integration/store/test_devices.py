"""Devices on SQLite: unreadable rows are told and spoil no other, and nothing is looked for by a
walk through a whole table."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hatoba_scheduler.domain.device_rollouts import Stage
from hatoba_scheduler.domain.devices import Want
from hatoba_scheduler.store.conformance_devices import (
    LOG,
    TOKEN,
    UID,
    enroll,
    happened,
    loaded,
    new_device,
    put,
    record,
    row,
    whole_device,
)
from hatoba_scheduler.store.devices import AT_ONCE, Write
from hatoba_scheduler.store.errors import WriteRefused
from hatoba_scheduler.store.sqlite import SqliteStore, open_store
from hatoba_scheduler.store.sqlite.database import FILE, connect, migrations
from hatoba_scheduler.store.sqlite.statements import many, of

GARBLED = "CAST(x'ff00' AS TEXT)"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    one = await open_store(tmp_path, lambda: 1)
    yield one
    await one.close()


async def spoil(directory: Path, statement: str) -> None:
    """Write garbage past the store."""

    def work() -> None:
        with closing(sqlite3.connect(directory / FILE, isolation_level=None)) as connection:
            assert connection.execute(statement).rowcount == 1

    await asyncio.to_thread(work)


# -- rows that cannot be read ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        "state = 99",
        "labels = '{'",
        "labels = '[1]'",
        "wants = '[[1, 2, 3, 4]]'",
        f"boot_id = {GARBLED}",
    ],
)
async def test_a_device_that_cannot_be_read_is_told(
    store: SqliteStore, tmp_path: Path, garbage: str
) -> None:
    await put(store, whole_device("a"), whole_device("b"))
    await spoil(tmp_path, f"UPDATE devices SET {garbage} WHERE name = 'a'")
    with capture_logs() as logs:
        assert await loaded(store) == {"b": whole_device("b")}
    told = [(entry["event"], entry["table"]) for entry in logs]
    assert told == [("store.row_unreadable", "devices")]


async def test_what_is_asked_of_a_device_that_cannot_be_read_is_refused(
    store: SqliteStore, tmp_path: Path
) -> None:
    await store.devices.put_token(TOKEN)
    assert await enroll(store, new_device("a")) is None
    await spoil(tmp_path, f"UPDATE devices SET boot_id = {GARBLED}")
    with pytest.raises(WriteRefused):
        await enroll(store, new_device("a"))
    assert await enroll(store, new_device("b"), "k2") is None


@pytest.mark.parametrize("garbage", ["stage = 99", "cause = '{'", f"cause = {GARBLED}"])
async def test_a_row_of_a_roll_out_that_cannot_be_read_is_passed_over(
    store: SqliteStore, tmp_path: Path, garbage: str
) -> None:
    rows = [row(name) for name in "abc"]
    await store.devices.put_rows(rows)
    await spoil(tmp_path, f"UPDATE device_rollouts SET {garbage} WHERE device = 'b'")
    with capture_logs() as logs:
        assert await store.devices.rows(UID, 1) == [rows[0], rows[2]]
        assert await store.devices.page_of_rows(UID, 1, "", 2, ()) == [rows[0], rows[2]]
    assert {entry["table"] for entry in logs} == {"device_rollouts"}


async def test_other_rows_that_cannot_be_read_are_left_out(
    store: SqliteStore, tmp_path: Path
) -> None:
    await put(store, new_device("a"))
    await store.devices.write([], [happened("a"), happened("a")])
    await store.devices.add_records("a", [record(1), record(2)])
    await store.devices.put_token(TOKEN)
    await spoil(tmp_path, f"UPDATE device_events SET message = {GARBLED} WHERE seq = 1")
    await spoil(tmp_path, f"UPDATE device_records SET deployment = {GARBLED} WHERE position = 1")
    await spoil(tmp_path, "UPDATE device_tokens SET labels = '{'")
    with capture_logs() as logs:
        assert [one.seq for one in await store.devices.events("a", 0, 9)] == [2]
        assert await store.devices.records("a", LOG, "", 0, 9) == [record(2)]
        assert await store.devices.token(TOKEN.id) is None
    told = [entry["table"] for entry in logs]
    assert told == ["device_events", "device_records", "device_tokens"]


# -- how they are found ----------------------------------------------------------------------------

PAGE = (
    f"{of('devices', 'rows')} AND device > ? AND stage IN (?, ?) ORDER BY device LIMIT ?",
    f"{of('devices', 'rows')} ORDER BY device",
    f"{of('devices', 'records')} ORDER BY position LIMIT ?",
    f"{of('devices', 'records')} AND deployment = ? ORDER BY position DESC LIMIT ?",
    f"{of('devices', 'records')} AND position < ? ORDER BY position",
    f"{of('devices', 'devices')} WHERE name = ?",
)
RECORDS = ("newest_record", "note_newest", "kept_records", "oldest_records", "trim_records")
ONE = ("events", "tokens", "known_key", *RECORDS)
DROP = (
    *("drop_device", "drop_rows", "drop_rows_of_device", "drop_events"),
    *("drop_records", "drop_record_kinds"),
)
MANY = ("versions", "touch", "newest_events", "trim_events")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A file with today's schema."""
    with closing(connect(tmp_path_factory.mktemp("plans") / FILE, reader=False)) as made:
        for step in migrations():
            made.executescript(step.sql)
        yield made


@pytest.mark.parametrize(
    "sql",
    [
        *PAGE,
        *(of("devices", name) for name in (*ONE, *DROP)),
        *(many(name, 10, "devices") for name in MANY),
    ],
)
def test_no_statement_walks_through_a_table(empty: sqlite3.Connection, sql: str) -> None:
    found = empty.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?")).fetchall()
    plan = [step for *_, step in found]
    assert any("SEARCH" in step for step in plan)
    walks = [step for step in plan if step.startswith("SCAN") and "CONSTANT ROW" not in step]
    assert not [step for step in walks if step != "SCAN v" and "json_each" not in step]
    assert not [step for step in plan if "ORDER BY" in step]


async def test_ten_thousand_devices_are_loaded_at_once(store: SqliteStore) -> None:
    count = 10_000
    devices = [
        replace(
            whole_device(f"d{number:05}"),
            wants=(Want("projects/default/deployments/digits", 3, number % 7),),
            report=b"r" * 300,
        )
        for number in range(count)
    ]
    for start in range(0, count, AT_ONCE):
        part = devices[start : start + AT_ONCE]
        assert not await store.devices.write([Write(one, 0) for one in part])
        await store.devices.put_rows([row(one.name, stage=Stage.SUCCEEDED) for one in part])
    assert await loaded(store) == {one.name: one for one in devices}
    last = await store.devices.page_of_rows(UID, 1, "d09989", 100, {Stage.SUCCEEDED})
    assert [one.device for one in last] == [f"d{number:05}" for number in range(9_990, count)]
