"""The one thread that writes: it gathers calls into batches and commits each batch once.

SQLite 3.7.0 to 3.51.2 can corrupt a WAL that two connections write and checkpoint; here one
connection does both, and nothing else may open the file for writing.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import structlog

from hatoba_scheduler.errors import HatobaError
from hatoba_scheduler.store.errors import (
    StorageDamaged,
    StorageFailed,
    StorageFull,
    StoreClosed,
    WriteRefused,
)
from hatoba_scheduler.store.sqlite.database import DAMAGED
from hatoba_scheduler.store.sqlite.recent_specs import RecentSpecs
from hatoba_scheduler.store.sqlite.statements import write as statement
from hatoba_scheduler.store.sqlite.unit import Direct, Write, carry_out
from hatoba_scheduler.store.trouble import Trouble
from hatoba_scheduler.telemetry.timings import Timings

log = structlog.get_logger(__name__)

QUEUE = 1024
BATCH_WEIGHT = 4_000
"""Rows of one commit; with more, a small call would wait long behind whole batches."""
GATHER_FROM = 8
GATHER_SECONDS = 0.002
GATHER_STEP_SECONDS = 0.0005
CHECKPOINT_PAGES = 2_000
LARGE_WAL_PAGES = 16_384

_DISK = (StorageFull, StorageFailed)
_REFUSED = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
)


def tune_interpreter() -> None:
    """Switch threads after 0.5 ms, so that a busy event loop cannot starve the writer."""
    sys.setswitchinterval(0.0005)


@dataclass(slots=True)
class _Call:
    write: Write | Direct
    answer: asyncio.Future[Any]


Outcome = tuple[_Call, object]
"""A call and its answer, or the exception it ends with."""


class _StorageLost(Exception):
    """The connection cannot be relied on any more."""

    def __init__(self, kind: type[HatobaError], text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text

    def told(self) -> HatobaError:
        """What one caller is told: an exception is raised in one place only."""
        return self.kind(self.text)


class Writer:
    """Owns the writing connection and its thread; called from one event loop."""

    def __init__(self, open_connection: Callable[[], sqlite3.Connection]) -> None:
        """Start the thread; it opens its connection with the first write, and anew after errors."""
        self._open = open_connection
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(QUEUE)
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self.commits = Timings()
        """From a transaction's begin to its commit."""
        self._position = 0
        self._specs = RecentSpecs()
        self._last_batch = 0
        self._pages = 0
        self._closing = False
        self._broken: _StorageLost | None = None
        self.trouble = Trouble()
        self.broken: asyncio.Future[BaseException] = self._loop.create_future()
        self._stopped = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="hatoba-store-writer", daemon=True)
        self._thread.start()

    async def call(self, write: Write | Direct) -> Any:
        """Queue a write; its answer, after the commit.

        Raises StorageFull, StorageFailed, WriteRefused or StoreClosed; then nothing is written.
        """
        await self._room.acquire()
        if self._closing:
            self._room.release()
            raise _closed()
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._calls.put(_Call(write, answer))
        return await answer

    def found_damaged(self, error: StorageDamaged) -> None:
        """A reader met damage: the store can go on no more. Any thread may call."""
        self._tell(self._mark_broken, error)

    async def stop(self) -> None:
        """Finish what is queued, checkpoint and close."""
        if not self._closing:
            self._closing = True
            self._calls.put(None)
        await asyncio.shield(self._stopped)

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._serve():
                pass
        except BaseException as error:  # the server must not live on without its writer
            log.critical("store.writer_died", exc_info=True)
            self._break(_StorageLost(StorageFailed, f"the store's writer died: {error!r}"))
        finally:
            self._close()
            self._tell(self._end)

    def _serve(self) -> bool:
        """Carry out one batch; False at the end."""
        first = self._calls.get()
        if first is None:
            return False
        batch, ended = self._gather(first)
        self._tell(self._answer, self._carry_out(batch))
        self._checkpoint_when_due()
        return not ended

    def _gather(self, first: _Call) -> tuple[list[_Call], bool]:
        batch = [first]
        weight, ended = self._fill(batch, first.write.weight)
        if len(batch) >= GATHER_FROM and weight < BATCH_WEIGHT and not ended:
            self._wait_for_more(len(batch))
            _, ended = self._fill(batch, weight)
        self._last_batch = len(batch)
        return batch, ended

    def _fill(self, batch: list[_Call], weight: int) -> tuple[int, bool]:
        while weight < BATCH_WEIGHT:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
            if call is None:
                return weight, True
            batch.append(call)
            weight += call.write.weight
        return weight, False

    def _wait_for_more(self, have: int) -> None:
        """Give callers whose last answers have just gone out the time to come back."""
        deadline = time.monotonic() + GATHER_SECONDS
        while have + self._calls.qsize() < self._last_batch and time.monotonic() < deadline:
            time.sleep(GATHER_STEP_SECONDS)

    def _carry_out(self, batch: list[_Call]) -> list[Outcome]:
        try:
            return self._transact(batch)
        except _StorageLost as lost:
            self._reopen(lost)
            return [(call, lost.told()) for call in batch]
        except Exception as error:  # noqa: BLE001 - told to its caller
            if len(batch) > 1:
                return self._one_by_one(batch)
            return [(batch[0], _refused(error))]

    def _one_by_one(self, batch: Sequence[_Call]) -> list[Outcome]:
        done: list[Outcome] = []
        for place, call in enumerate(batch):
            try:
                done += self._transact([call])
            except _StorageLost as lost:
                self._reopen(lost)
                return done + [(later, lost.told()) for later in batch[place:]]
            except Exception as error:  # noqa: BLE001 - told to its caller
                done.append((call, _refused(error)))
        return done

    def _transact(self, batch: Sequence[_Call]) -> list[Outcome]:
        """Carry calls out in one transaction.

        Raises _StorageLost when the connection must be opened anew, and what a write raised when
        it alone is to blame; either way nothing is written.
        """
        connection = self._usable()
        began = time.monotonic()
        try:
            before = connection.total_changes
            connection.execute("BEGIN IMMEDIATE")
            answers, position = self._run_all(connection, batch)
            connection.execute("COMMIT")
        except Exception as error:
            self._roll_back(connection, error)
            raise
        self.commits.add(time.monotonic() - began)
        self._position = position
        self._pages += 12 + (connection.total_changes - before) // 8
        return list(zip(batch, answers, strict=True))

    def _run_all(
        self, connection: sqlite3.Connection, batch: Sequence[_Call]
    ) -> tuple[list[object], int]:
        answers: list[object] = []
        position = self._position
        for direct, group in groupby(
            (call.write for call in batch), lambda write: isinstance(write, Direct)
        ):
            writes: list[Any] = list(group)
            if direct:
                answers += [write.run(connection) for write in writes]
            else:
                found, position = carry_out(connection, writes, position, self._specs)
                answers += found
        return answers, position

    def _roll_back(self, connection: sqlite3.Connection, error: Exception) -> None:
        """Undo an open transaction. Raises _StorageLost unless a write alone is to blame."""
        self._specs.clear()
        if isinstance(error, sqlite3.Error) and not isinstance(error, _REFUSED):
            raise _storage_lost(error) from error
        if not connection.in_transaction:
            raise _storage_lost(error) from error
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error as failure:
            raise _storage_lost(failure) from failure

    def _usable(self) -> sqlite3.Connection:
        if self._broken is not None:
            raise _StorageLost(self._broken.kind, self._broken.text)
        if self._connection is None:
            try:
                self._connection = self._open()
                self._position = _last_position(self._connection)
            except sqlite3.Error as error:
                self._discard()
                raise _storage_lost(error) from error
        return self._connection

    def _reopen(self, lost: _StorageLost) -> None:
        if self._broken is not None:
            return
        log.error("store.write_failed", error=lost.text)
        self._discard()
        self._tell(self.trouble.fails, lost.told())
        if lost.kind is StorageDamaged:
            self._break(lost)

    def _discard(self) -> None:
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        try:
            connection.close()
        except sqlite3.Error as error:
            log.warning("store.close_failed", error=str(error))

    def _break(self, lost: _StorageLost) -> None:
        self._broken = lost
        self._tell(self._mark_broken, lost.told())

    def _checkpoint_when_due(self) -> None:
        if self._pages < CHECKPOINT_PAGES or self._connection is None:
            return
        self._pages = 0
        try:
            _, written, moved = self._connection.execute(
                "PRAGMA wal_checkpoint(PASSIVE)"
            ).fetchone()
        except sqlite3.Error as error:
            # The commits stand in the WAL; the next commit tells whether the disk still works.
            log.warning("store.checkpoint_failed", error=str(error))
            return
        if written - moved > LARGE_WAL_PAGES:
            log.warning("store.wal_large", pages=written, checkpointed=moved)

    def _close(self) -> None:
        if self._connection is not None:
            try:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error as error:
                log.warning("store.checkpoint_failed", error=str(error))
        self._discard()

    # -- back on the loop -----------------------------------------------------------------------

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            log.warning("store.loop_closed")

    def _answer(self, outcomes: list[Outcome]) -> None:
        if self.trouble.error is not None and not isinstance(outcomes[-1][1], _DISK):
            self.trouble.works()
        for call, outcome in outcomes:
            self._room.release()
            if call.answer.done():
                continue
            if isinstance(outcome, Exception):
                call.answer.set_exception(outcome)
            else:
                call.answer.set_result(outcome)

    def _mark_broken(self, error: HatobaError) -> None:
        if not self.broken.done():
            self.broken.set_result(error)

    def _end(self) -> None:
        self._closing = True
        while not self._calls.empty():
            call = self._calls.get_nowait()
            if call is not None:
                self._answer([(call, self._broken.told() if self._broken else _closed())])
        if not self._stopped.done():
            self._stopped.set_result(None)


def _last_position(connection: sqlite3.Connection) -> int:
    (position,) = connection.execute(statement("last_seq")).fetchone()
    return int(position)


def _refused(error: Exception) -> HatobaError:
    if isinstance(error, HatobaError):
        return error
    refused = WriteRefused(f"the store refused a row: {error}")
    refused.__cause__ = error
    return refused


def _closed() -> HatobaError:
    return StoreClosed("the store is closed")


def _storage_lost(error: Exception) -> _StorageLost:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or "disk is full" in str(error):
        text = "the disk or database is full; free space where the data directory is"
        return _StorageLost(StorageFull, text)
    kind = StorageDamaged if code in DAMAGED else StorageFailed
    return _StorageLost(kind, f"the store could not be written: {error}")
