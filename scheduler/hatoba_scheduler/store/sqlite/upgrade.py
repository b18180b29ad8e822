"""Opens a file for the first time in a process: it is whole, and of this version's schema.

Before a store that holds something is migrated, a copy of it is written beside it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import structlog

from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.store.errors import DatabaseDamaged
from hatoba_scheduler.store.sqlite.backup import copy_file
from hatoba_scheduler.store.sqlite.database import (
    DAMAGED,
    Connect,
    Migration,
    connect,
    migrate,
    schema_version,
)

log = structlog.get_logger(__name__)

KEPT_COPIES = 3
QUICK_BYTES = 64 << 20
"""A file of up to this size is looked through at every start, which takes about 0.1 s."""
_HEADER = b"SQLite format 3\0"
SERVED = "admin.token"
"""Stands beside a store that was served."""


def open_upgraded(
    path: Path, known: Sequence[Migration], now: Micros, open_connection: Connect = connect
) -> sqlite3.Connection:
    """The writing connection of a file, migrated.

    Raises DatabaseDamaged, SchemaTooNew, StorageFull (no room for the copy) and sqlite3.Error.
    """
    _check_header(path)
    try:
        connection = open_connection(path, False)
        try:
            _check_pages(connection, path)
            found = schema_version(connection, path, known)
            if 0 < found < known[-1].version:
                _copy_beside(path, found, now)
            migrate(connection, path, known, now)
        except BaseException:
            connection.close()
            raise
    except sqlite3.DatabaseError as error:
        raise damage_of(path, error) or error from None
    return connection


def damage_of(path: Path, error: sqlite3.Error) -> DatabaseDamaged | None:
    """What an error says of the file; None when the file may well be whole."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED:
        return DatabaseDamaged(path, str(error))
    return None


def _check_header(path: Path) -> None:
    """See what SQLite takes for a new and empty database, or for a smaller one."""
    if not path.exists():
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(100)
    if not size:
        if (path.parent / SERVED).exists():
            raise DatabaseDamaged(path, "the file is empty")
        return
    if len(header) < 100 or not header.startswith(_HEADER):
        raise DatabaseDamaged(path, "the file does not begin as a database does")
    page = int.from_bytes(header[16:18]) or 1
    page = 65_536 if page == 1 else page
    pages = int.from_bytes(header[28:32])
    if size < pages * page and not Path(f"{path}-wal").exists():
        raise DatabaseDamaged(path, f"it has {size:,} of its {pages * page:,} bytes")


def _check_pages(connection: sqlite3.Connection, path: Path) -> None:
    if path.stat().st_size > QUICK_BYTES:
        return
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise DatabaseDamaged(path, " ".join(found.split()))


def _copy_beside(path: Path, version: int, now: Micros) -> None:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now / 1e6))
    target = path.with_name(f"{path.name}.schema-{version}-{stamp}")
    partial = path.with_name(f"{path.name}.schema.part")
    partial.unlink(missing_ok=True)
    with closing(connect(path, reader=True)) as source:
        copy_file(source, partial)
    partial.rename(target)
    log.info("store.copied_before_migration", copy=str(target), schema=version)
    for old in copies_of(path)[KEPT_COPIES:]:
        old.unlink()


def copies_of(path: Path) -> list[Path]:
    """Copies that were taken before migrations, newest first."""
    found = path.parent.glob(f"{path.name}.schema-*-*")
    return sorted(found, key=lambda copy: copy.name.rpartition("-")[2], reverse=True)
