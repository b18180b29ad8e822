"""The file: its lock, its connections, its schema."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from hatoba_scheduler.store.base import ServerIdentity
from hatoba_scheduler.store.errors import AlreadyRunning, SchemaTooNew, SqliteTooOld

FILE = "hatoba.db"
LOCK_FILE = "hatoba.db.lock"
LINGERS, LOOK_AGAIN = 5.0, 0.02
"""Seconds for which the lock of a process that is gone is waited for, and between two looks."""
CACHED_STATEMENTS = 256
OLDEST_SQLITE = (3, 37, 0)

DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Error codes that say that the file is no whole database."""

Connect = Callable[[Path, bool], sqlite3.Connection]
"""Opens the file; True for a reader's connection, which can write nothing."""


class Migration(NamedTuple):
    """One step of the schema: `sql` is run in one transaction."""

    version: int
    name: str
    sql: str


def require_sqlite() -> None:
    """Raise SqliteTooOld when this interpreter's SQLite has no STRICT tables (before 3.37)."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise SqliteTooOld(sqlite3.sqlite_version, ".".join(map(str, OLDEST_SQLITE)))


class DirectoryLock:
    """Holds a data directory for this process; the kernel lets go of it when the process ends."""

    def __init__(self, directory: Path, rest: Callable[[float], None] = time.sleep) -> None:
        """Take the lock; blocks a little when its holder has just died. Raises AlreadyRunning when
        another process has it.
        """
        self._fd = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + LINGERS
        while not self._taken():
            pid = _pid(os.pread(self._fd, 32, 0))
            # What a server was about to start holds its lock until it is an own program.
            if _runs(pid) or time.monotonic() >= until:
                os.close(self._fd)
                raise AlreadyRunning(directory, pid)
            rest(LOOK_AGAIN)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._fd)


def _pid(content: bytes) -> int:
    text = content.strip()
    return int(text) if text.isdigit() else 0


def _runs(pid: int) -> bool:
    """Whether a process is there and not only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False


def connect(
    path: Path, reader: bool, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    """Open the file as the writer or as a reader. Raises sqlite3.Error."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'ro' if reader else 'rwc'}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        factory=factory,
        cached_statements=CACHED_STATEMENTS,
    )
    try:
        _configure(connection, reader)
    except BaseException:
        connection.close()
        raise
    return connection


def _configure(connection: sqlite3.Connection, reader: bool) -> None:
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA temp_store=MEMORY")
    if reader:
        connection.execute("PRAGMA query_only=1")
        return
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA cache_size=-16384")


def migrations() -> list[Migration]:
    """Those that come with this version, in order."""
    folder = resources.files(__package__).joinpath("migrations")
    return sorted(
        Migration(int(match[1]), match[2], file.read_text("utf-8"))
        for file in folder.iterdir()
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name))
    )


def migrate(
    connection: sqlite3.Connection, path: Path, known: Sequence[Migration], now: int
) -> None:
    """Bring the schema to the newest that is known; each step commits by itself.

    Raises SchemaTooNew when the file is ahead of `known`.
    """
    connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations "
        "(version INTEGER PRIMARY KEY, name TEXT NOT NULL, time INTEGER NOT NULL) STRICT"
    )
    found = schema_version(connection, path, known)
    for migration in known:
        if migration.version > found:
            _step(connection, migration, now)


def schema_version(connection: sqlite3.Connection, path: Path, known: Sequence[Migration]) -> int:
    """The version of a file's schema, 0 of an empty one. Raises SchemaTooNew."""
    tables = "SELECT count(*) FROM sqlite_master WHERE name = 'migrations'"
    if not connection.execute(tables).fetchone()[0]:
        return 0
    (found,) = connection.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()
    if found > known[-1].version:
        raise SchemaTooNew(path, found, known[-1].version)
    return int(found)


def _step(connection: sqlite3.Connection, migration: Migration, now: int) -> None:
    done = f"INSERT INTO migrations VALUES ({migration.version}, '{migration.name}', {now});"
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{migration.sql}\n{done}\nCOMMIT;")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def identity(connection: sqlite3.Connection, new_id: Callable[[], str]) -> ServerIdentity:
    """The installation's identity, made when there is none."""
    query = "SELECT cluster_id, store_epoch, restored FROM identity"
    found = connection.execute(query).fetchone()
    if found is None:
        made = "INSERT INTO identity (cluster_id, store_epoch) VALUES (?, 1)"
        connection.execute(made, (new_id(),))
        found = connection.execute(query).fetchone()
    cluster_id, epoch, restored = found
    return ServerIdentity(cluster_id, epoch, bool(restored))
