"""A SQLite store whose connections fail, or wait, where a test says so."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hatoba_scheduler.store.sqlite.database import connect

Hook = Callable[[str], None]


class Script:
    """What the writer's connections do; `before` and `after` are called around each statement."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.before: Hook = _nothing
        self.after: Hook = _nothing
        self.opening: Hook = _nothing
        self.opened = 0
        self.max_pages = 0

    def connect(self, path: Path, reader: bool) -> sqlite3.Connection:
        """Opens as the product does; a reader's connection is left alone."""
        if reader:
            return connect(path, reader)
        self.opening(str(path))
        script = self

        class Scripted(sqlite3.Connection):
            def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
                return script.run(lambda: sqlite3.Connection.execute(self, sql, parameters), sql)

        connection = connect(path, reader, Scripted)
        self.opened += 1
        if self.max_pages:
            sqlite3.Connection.execute(connection, f"PRAGMA max_page_count={self.max_pages}")
        return connection

    def run(self, execute: Callable[[], sqlite3.Cursor], sql: str) -> sqlite3.Cursor:
        """One statement, with what is to happen around it."""
        self.statements.append(sql)
        self.before(sql)
        cursor = execute()
        try:
            self.after(sql)
        except BaseException:
            # An open statement would keep its connection, and its lock, beyond the close.
            cursor.close()
            raise
        return cursor

    def fail_at(self, place: int, error: sqlite3.Error, *, after: bool = False) -> None:
        """From now, the statement at this place (from 1) fails, before or after its effect."""
        start = len(self.statements)

        def hook(sql: str) -> None:
            if len(self.statements) - start == place:
                raise error

        self.before, self.after = (_nothing, hook) if after else (hook, _nothing)

    def calm(self) -> None:
        """No more faults."""
        self.before = self.after = self.opening = _nothing
        self.max_pages = 0

    @asynccontextmanager
    async def held(self, statement: str) -> AsyncIterator[asyncio.Event]:
        """While inside, the writer waits at the next such statement; the event tells it does."""
        loop, reached, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def hook(sql: str) -> None:
            if sql.startswith(statement):
                loop.call_soon_threadsafe(reached.set)
                go_on.wait(20)

        self.before = hook
        try:
            yield reached
        finally:
            if self.before is hook:
                self.before = _nothing
            go_on.set()


def _nothing(_: str) -> None:
    pass


def disk_error() -> sqlite3.OperationalError:
    """What SQLite raises when the disk fails."""
    return sqlite3.OperationalError("disk I/O error")


def disk_full() -> sqlite3.OperationalError:
    """What SQLite raises when the disk is full."""
    return sqlite3.OperationalError("database or disk is full")


def contents(path: Path) -> dict[str, list[Any]]:
    """Every table of a file, and that SQLite finds it whole."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()
            for (name,) in names
        }
    finally:
        connection.close()
