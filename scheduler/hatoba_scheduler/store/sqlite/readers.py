"""Reads, on a few threads that each have a connection of their own and can write nothing."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from typing import Any, TypeVar

import structlog

from hatoba_scheduler.store.errors import StorageDamaged, StorageFailed, StoreClosed
from hatoba_scheduler.store.sqlite.database import DAMAGED
from hatoba_scheduler.store.sqlite.statements import SIZES, Row

log = structlog.get_logger(__name__)

READERS = 2
WAITING = 256

T = TypeVar("T")
Parameters = Sequence[str | int]


class Garbled(bytes):
    """A text column whose bytes are no UTF-8."""


class Readers:
    """A pool of read-only connections."""

    def __init__(
        self,
        open_connection: Callable[[], sqlite3.Connection],
        on_damage: Callable[[StorageDamaged], None],
    ) -> None:
        """Connections open on first use, so that none is made for a store that failed to open.

        `on_damage` is told, in whatever thread, what says that the file is no whole database.
        """
        self._open = open_connection
        self._on_damage = on_damage
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(WAITING)
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="hatoba-store-reader")
        self._closed = False

    async def run(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """What `read` returns, run in a thread. Raises StorageFailed, StoreClosed."""
        async with self._room:
            if self._closed:
                raise StoreClosed("the store is closed")
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, read)

    async def run_apart(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """As `run`, on a thread and a connection of its own: for what takes long."""
        if self._closed:
            raise StoreClosed("the store is closed")
        return await asyncio.to_thread(self._read_apart, read)

    def _read_apart(self, read: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with closing(self._open()) as connection:
                return read(connection)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    async def close(self) -> None:
        """Let reads that run finish, then close the connections."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._close)

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        connection = None
        try:
            connection = self._taken()
            return read(connection)
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
                connection = None
            raise self._failed(error) from error
        finally:
            if connection is not None:
                self._idle.put(connection)

    def _failed(self, error: sqlite3.Error) -> StorageFailed:
        text = f"the store could not be read: {error}"
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in DAMAGED:
            return StorageFailed(text)
        self._on_damage(StorageDamaged(text))
        return StorageDamaged(text)

    def _taken(self) -> sqlite3.Connection:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._open()

    def _close(self) -> None:
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get().close()


def fetch(connection: sqlite3.Connection, sql: str, parameters: Parameters = ()) -> list[Row]:
    """All rows. Text that is no UTF-8 comes as Garbled instead of failing the whole read."""
    try:
        return connection.execute(sql, parameters).fetchall()
    except sqlite3.OperationalError as error:
        if "decode to UTF-8" not in str(error):
            raise
    connection.text_factory = lenient
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.text_factory = str


def keyed(keys: Sequence[str]) -> tuple[str, list[str]]:
    """`IN (...)` for the keys; padded, so that few forms of a statement have to be prepared."""
    size = next((size for size in sorted(SIZES) if size >= len(keys)), len(keys))
    padded = [*keys, *([keys[-1]] * (size - len(keys)))]
    return f"IN ({', '.join('?' * size)})", padded


def lenient(raw: bytes) -> str | Garbled:
    """A text factory that fails for no bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return Garbled(raw)


def decoded(
    rows: Iterable[Row], decode: Callable[[Row], T], table: str, bad: list[Row] | None = None
) -> list[T]:
    """The records of rows; one that cannot be read is logged and left out (and put into `bad`)."""
    found: list[T] = []
    for row in rows:
        try:
            found.append(decoded_row(row, decode))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a row, others stay readable
            log.error("store.row_unreadable", table=table, row=_shown(row), error=repr(error))
            if bad is not None:
                bad.append(row)
    return found


def legible(rows: Sequence[Row], table: str) -> Sequence[Row]:
    """Rows as they are, without those in which a text is no UTF-8; these are logged."""
    if Garbled not in map(type, chain.from_iterable(rows)):
        return rows
    return decoded(rows, lambda row: row, table)


def decoded_row(row: Row, decode: Callable[[Row], T]) -> T:
    """The record of a row. Raises whatever `decode` does, and ValueError for garbled text."""
    if Garbled in map(type, row):
        raise ValueError("text that is no UTF-8")
    return decode(row)


def _shown(row: Row) -> list[str]:
    return [repr(value)[:80] for value in row[:4]]


def page(
    read: Callable[[Any, int], list[Row]],
    decode: Callable[[Row], T],
    table: str,
    after: Any,
    limit: int,
    key: Callable[[Row], Any],
) -> list[T]:
    """Up to `limit` records above `after`; unreadable rows are passed over, not counted."""
    found: list[T] = []
    while limit > len(found):
        wanted = limit - len(found)
        rows = read(after, wanted)
        found += decoded(rows, decode, table)
        if len(rows) < wanted:
            break
        after = key(rows[-1])
    return found
