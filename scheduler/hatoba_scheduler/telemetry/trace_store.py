"""Recent traces in a small database of their own, so that a trace can be drawn with no collector.

One thread owns the file: it writes in batches and answers queries. Nothing here ever blocks the
event loop or fails a job: when the thread cannot keep up, or the disk is full, spans are dropped
and counted. A file that cannot be used is put away and begun anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from hatoba.v1 import job_pb2
from hatoba_scheduler.telemetry.tracing import FinishedSpan

QUEUE_SPANS = 16_384
BATCH_SPANS = 1_024
DELAY_SECONDS = 1.0
KEPT_SPANS = 100_000
MAX_TRACE_SPANS = 10_000
# Many spans a statement: each statement hands the GIL over twice, whatever it inserts.
_ROWS = 128

_SCHEMA = """
CREATE TABLE IF NOT EXISTS span (
    id INTEGER PRIMARY KEY,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (trace_id, span_id)
)
"""
_INSERT = "INSERT OR IGNORE INTO span (trace_id, span_id, body) VALUES "
_TRIM = "DELETE FROM span WHERE id <= (SELECT max(id) FROM span) - ?"
_QUERY = "SELECT body FROM span WHERE trace_id = ? LIMIT ?"

_log = structlog.get_logger("hatoba.trace_store")


class _Query(NamedTuple):
    trace_id: str
    loop: asyncio.AbstractEventLoop
    reply: asyncio.Future[list[job_pb2.Span]]


_Item = FinishedSpan | job_pb2.Span | _Query


class _Inbox:
    """What waits for the thread, which is woken once for many spans.

    Woken for each, it would take the interpreter from the event loop each time.
    """

    def __init__(self) -> None:
        self._items: deque[_Item] = deque()
        self._some = threading.Event()
        self._hurry = threading.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _Item) -> None:
        """Take one more; it is looked at within a second, or as soon as there is a batch."""
        self._items.append(item)
        if not self._some.is_set():
            self._some.set()
        if len(self._items) >= BATCH_SPANS and not self._hurry.is_set():
            self._hurry.set()

    def hurry(self) -> None:
        """Let what is there be looked at now."""
        self._some.set()
        self._hurry.set()

    def take(self) -> list[_Item]:
        """Wait for something, and for more of it; at most a batch."""
        self._some.wait()
        self._hurry.wait(DELAY_SECONDS)
        # First cleared, then taken: what comes in between wakes the thread once more.
        self._some.clear()
        self._hurry.clear()
        items = [self._items.popleft() for _ in range(min(len(self._items), BATCH_SPANS))]
        if self._items:
            self.hurry()
        return items


class TraceStore:
    """Keeps the newest `kept` spans in `path`; a span that comes twice is kept once."""

    def __init__(self, path: Path, kept: int = KEPT_SPANS) -> None:
        self._path = path
        self._kept = kept
        self._inbox = _Inbox()
        self._closing = threading.Event()
        self.dropped = 0
        """Spans that were not kept, since the start."""
        self._thread = threading.Thread(target=self._run, name="trace-store", daemon=True)
        self._thread.start()

    def __call__(self, span: FinishedSpan) -> None:
        """Take one span of this process."""
        self._put(span)

    def add(self, spans: Iterable[job_pb2.Span]) -> None:
        """Take checked spans of clients and workers."""
        for span in spans:
            self._put(span)

    async def trace(self, trace_id: str) -> list[job_pb2.Span]:
        """The kept spans of a trace by start, those taken before this call included."""
        if self._closing.is_set():
            return []
        loop = asyncio.get_running_loop()
        query = _Query(trace_id, loop, loop.create_future())
        self._inbox.put(query)
        self._inbox.hurry()
        spans = await query.reply
        return sorted(spans, key=lambda span: (span.start_unix_nanos, span.span_id))

    async def close(self) -> None:
        """Write what is queued and end the thread."""
        self._closing.set()
        self._inbox.hurry()
        await asyncio.to_thread(self._thread.join)

    def _put(self, span: FinishedSpan | job_pb2.Span) -> None:
        if len(self._inbox) < QUEUE_SPANS:
            self._inbox.put(span)
        else:
            self.dropped += 1

    # -- the thread's side ----------------------------------------------------------------------
    def _run(self) -> None:
        database = _opened(self._path)
        while not self._closing.is_set() or self._inbox:
            database = self._step(database)
        if database is not None:
            database.close()

    def _step(self, database: sqlite3.Connection | None) -> sqlite3.Connection | None:
        items = self._inbox.take()
        spans = [item for item in items if not isinstance(item, _Query)]
        queries = [item for item in items if isinstance(item, _Query)]
        database = database or _opened(self._path)
        try:
            if database is None:
                self.dropped += len(spans)
            else:
                self._write(database, spans)
            self._answer(database, queries)
        except sqlite3.Error as error:
            self.dropped += len(spans)
            _log.warning("spans not kept", path=str(self._path), spans=len(spans), error=str(error))
            self._answer(None, queries)
            return _after(error, self._path, database)
        return database

    def _write(
        self, database: sqlite3.Connection, spans: Sequence[FinishedSpan | job_pb2.Span]
    ) -> None:
        if not spans:
            return
        database.execute("BEGIN IMMEDIATE")
        try:
            for start in range(0, len(spans), _ROWS):
                rows = [_row(span) for span in spans[start : start + _ROWS]]
                values = ",".join(["(?,?,?)"] * len(rows))
                database.execute(_INSERT + values, [cell for row in rows for cell in row])
            database.execute(_TRIM, (self._kept,))
            database.execute("COMMIT")
        except sqlite3.Error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _answer(self, database: sqlite3.Connection | None, queries: Sequence[_Query]) -> None:
        for query in queries:
            bodies: list[tuple[bytes]] = []
            if database is not None:
                bodies = database.execute(_QUERY, (query.trace_id, MAX_TRACE_SPANS)).fetchall()
            spans = [job_pb2.Span.FromString(body) for (body,) in bodies]
            # The loop may have ended while the query waited.
            with contextlib.suppress(RuntimeError):
                query.loop.call_soon_threadsafe(_resolve, query.reply, spans)


def _row(span: FinishedSpan | job_pb2.Span) -> tuple[str, str, bytes]:
    message = span.to_message() if isinstance(span, FinishedSpan) else span
    return message.trace_id, message.span_id, message.SerializeToString()


def _resolve(reply: asyncio.Future[list[job_pb2.Span]], spans: list[job_pb2.Span]) -> None:
    if not reply.done():
        reply.set_result(spans)


def _opened(path: Path) -> sqlite3.Connection | None:
    try:
        return _connected(path)
    except sqlite3.Error as error:
        _log.warning("trace file cannot be used", path=str(path), error=str(error))
        return _after(error, path, None)


def _after(
    error: sqlite3.Error, path: Path, database: sqlite3.Connection | None
) -> sqlite3.Connection | None:
    """A full disk or a lock passes: try again later. A damaged file is begun anew at once."""
    if database is not None:
        database.close()
    if isinstance(error, sqlite3.OperationalError):
        return None
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            Path(f"{path}{suffix}").unlink()
    with contextlib.suppress(sqlite3.Error):
        return _connected(path)
    return None


def _connected(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # Losing the last second of traces to a power cut is fine; waiting for the disk is not.
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -512")
        database.execute(_SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database
