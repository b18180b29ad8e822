"""Copies of the file: taken while it is used, and put back.

A copy is read through a connection that can write nothing, within one read transaction: the writer
goes on beside it, and the copy is the store as it was at one moment.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path

from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.store.backups import BackupRecord, Copied
from hatoba_scheduler.store.disk import disk_errors, sync_all
from hatoba_scheduler.store.errors import BadBackup, StorageFailed, StorageFull, StoreExists
from hatoba_scheduler.store.problems import Execute, StoreProblem
from hatoba_scheduler.store.sqlite import doctor
from hatoba_scheduler.store.sqlite.blob_index import job_roots
from hatoba_scheduler.store.sqlite.database import (
    FILE,
    DirectoryLock,
    connect,
    migrate,
    migrations,
    schema_version,
)
from hatoba_scheduler.store.sqlite.readers import Readers, fetch
from hatoba_scheduler.store.sqlite.statements import Row, execute_rows, of
from hatoba_scheduler.store.sqlite.unit import Direct
from hatoba_scheduler.store.sqlite.writer import Writer

PART = "backups"
SLICE_PAGES = 512
"""Pages between two looks at whether the copy is still wanted: 2 MiB."""
ROOTS_AT_ONCE = 1_000
RESERVE_BYTES = 16 << 20
"""What a copy leaves free on its disk."""
BESIDE = ("", "-wal", "-shm")


class SqliteBackups:
    """See `BackupStore`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def copy_to(self, target: Path, stopped: Callable[[], bool]) -> Copied:
        """See `BackupStore.copy_to`."""
        return await self._readers.run_apart(lambda source: copy(source, target, stopped))

    async def keep(self, backup: BackupRecord, roots: Iterable[str]) -> None:
        """See `BackupStore.keep`; what it names first, so that none of it is ever unkept."""
        rows: list[Row] = [(backup.id, digest) for digest in sorted(roots)]
        for start in range(0, len(rows), ROOTS_AT_ONCE):
            await self._write(_insert_roots(rows[start : start + ROOTS_AT_ONCE]))
        await self._write(lambda c: c.execute(of(PART, "insert_backup"), backup))

    async def all(self) -> list[BackupRecord]:
        """See `BackupStore.all`."""
        found = await self._readers.run(lambda c: fetch(c, of(PART, "backups")))
        return [BackupRecord(*row) for row in found]

    async def forget(self, backup_id: str) -> None:
        """See `BackupStore.forget`."""
        await self._write(lambda c: c.execute(of(PART, "delete_backup"), (backup_id,)))
        while await self._write(lambda c: _drop_roots(c, backup_id)):
            pass

    async def manifest_roots(self) -> set[str]:
        """See `BackupStore.manifest_roots`."""
        found = await self._readers.run(lambda c: fetch(c, of(PART, "roots")))
        return {digest for (digest,) in found}

    async def adopted(self) -> None:
        """See `BackupStore.adopted`."""
        await self._write(lambda c: c.execute(of(PART, "adopted")))

    async def probe(self) -> None:
        """See `BackupStore.probe`."""
        await self._write(lambda c: c.execute(of(PART, "probe")))

    async def check(self, now: Micros) -> list[StoreProblem]:
        """See `BackupStore.check`."""
        return await self._readers.run_apart(lambda connection: doctor.check(connection, now))

    async def execute(self, mend: Execute) -> None:
        """See `BackupStore.execute`."""
        await self._write(lambda c: c.execute(mend.sql))

    async def _write(self, work: Callable[[sqlite3.Connection], object]) -> object:
        return await self._writer.call(Direct(work))


def _insert_roots(rows: Sequence[Row]) -> Callable[[sqlite3.Connection], object]:
    return lambda connection: execute_rows(connection, "insert_roots", rows, PART)


def _drop_roots(connection: sqlite3.Connection, backup_id: str) -> int:
    return connection.execute(of(PART, "delete_roots"), (backup_id, ROOTS_AT_ONCE)).rowcount


# -- taking --------------------------------------------------------------------------------------


def copy(source: sqlite3.Connection, target: Path, stopped: Callable[[], bool]) -> Copied:
    """Write what `source` sees now into a new file; see `BackupStore.copy_to`."""
    copy_file(source, target, stopped)
    with closing(connect(target, reader=True)) as made:
        return Copied(target.stat().st_size, _last_event(made), frozenset(manifests_named(made)))


def copy_file(
    source: sqlite3.Connection, target: Path, stopped: Callable[[], bool] = lambda: False
) -> None:
    """The same, of a store of whatever version. Raises StorageFull, StorageFailed."""

    def go_on(status: int, remaining: int, total: int) -> None:
        if stopped():
            raise StorageFailed("the server stops: the copy was given up")

    source.execute("BEGIN")
    try:
        # Begins the read transaction: from here on the source stands still for us.
        _check_room(source, target)
        with closing(sqlite3.connect(target, isolation_level=None)) as made:
            source.backup(made, pages=SLICE_PAGES, progress=go_on, sleep=0)
            # One file, which needs no other beside it.
            made.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise _not_copied(target, error) from error
    finally:
        source.execute("ROLLBACK")
    with disk_errors(f"the copy {target} is not complete"):
        target.chmod(0o600)
        sync_all([target, target.parent], anchor=target)


def _not_copied(target: Path, error: sqlite3.Error) -> StorageFailed | StorageFull:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return StorageFull(f"the disk is full: the copy {target} could not be written")
    return StorageFailed(f"the store could not be copied to {target}: {error}")


def _last_event(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])


def _check_room(source: sqlite3.Connection, target: Path) -> None:
    source.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (pages,) = source.execute("PRAGMA page_count").fetchone()
    (size,) = source.execute("PRAGMA page_size").fetchone()
    free = shutil.disk_usage(target.parent).free
    if free < pages * size + RESERVE_BYTES:
        raise StorageFull(
            f"a copy of the store needs {pages * size:,} bytes and leaves {RESERVE_BYTES:,} free; "
            f"{free:,} are free in {target.parent}: free some, or name another directory"
        )


def manifests_named(connection: sqlite3.Connection) -> set[str]:
    """Digests of all manifests that a store names, whichever part of it does."""
    found = job_roots(connection)
    for part, name in (("datasets", "manifests"), ("models", "roots"), (PART, "roots")):
        found.update(digest for (digest,) in fetch(connection, of(part, name)))
    for (text,) in fetch(connection, of("deployments", "manifests")):
        found.update(json.loads(text))
    return found


# -- putting back --------------------------------------------------------------------------------


def verify(file: Path) -> int:
    """The store epoch of a copy that is whole. Raises BadBackup, or SchemaTooNew."""
    try:
        with closing(connect(file, reader=True)) as connection:
            bad = [text for (text,) in connection.execute("PRAGMA integrity_check") if text != "ok"]
            if bad:
                raise BadBackup(file, f"it is damaged: {bad[0]}")
            schema_version(connection, file, migrations())
            found = connection.execute("SELECT store_epoch FROM identity").fetchone()
    except sqlite3.Error as error:
        raise BadBackup(file, f"it cannot be read as a store: {error}") from error
    if found is None:
        raise BadBackup(file, "it is a store that was never used")
    return int(found[0])


def restore(
    file: Path, directory: Path, now: Micros, *, replace: bool, epoch_above: int = 0
) -> tuple[str, int, Path | None]:
    """Put a copy in place as the store of `directory`; its cluster id, its new epoch, and where
    the store is that was there: it is moved aside and kept.

    Raises AlreadyRunning while a server has the
    directory, StoreExists when there is a store and `replace` is not said, BadBackup, OSError.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = DirectoryLock(directory)
    try:
        return _restore(file, directory / FILE, now, replace, max(epoch_above, verify(file)))
    finally:
        lock.release()


def _restore(
    file: Path, place: Path, now: Micros, replace: bool, epoch: int
) -> tuple[str, int, Path | None]:
    if place.exists() and not replace:
        raise StoreExists(place)
    fresh = place.with_name(f"{FILE}.new")
    for suffix in BESIDE:
        Path(f"{fresh}{suffix}").unlink(missing_ok=True)
    shutil.copyfile(file, fresh)
    fresh.chmod(0o600)
    epoch = max(epoch, _epoch_of(place)) + 1
    with closing(connect(fresh, reader=False)) as connection:
        migrate(connection, fresh, migrations(), now)
        connection.execute("UPDATE identity SET store_epoch = ?, restored = 1", (epoch,))
        (cluster_id,) = connection.execute("SELECT cluster_id FROM identity").fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    aside = _move_aside(place) if place.exists() else None
    fresh.rename(place)
    sync_all([place, place.parent], anchor=place)
    return cluster_id, epoch, aside


def _epoch_of(place: Path) -> int:
    """The epoch of a store that is about to be replaced; 0 when it cannot say."""
    if not place.exists():
        return 0
    try:
        with closing(connect(place, reader=True)) as connection:
            return int(connection.execute("SELECT store_epoch FROM identity").fetchone()[0])
    except (sqlite3.Error, TypeError):
        return 0


def _move_aside(place: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = place.with_name(f"{FILE}.replaced-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = place.with_name(f"{FILE}.replaced-{stamp}-{number}")
    for suffix in reversed(BESIDE):
        part = Path(f"{place}{suffix}")
        if part.exists():
            part.rename(f"{aside}{suffix}")
    return aside
