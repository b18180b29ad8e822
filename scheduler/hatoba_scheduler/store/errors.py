"""What a store refuses or fails with; each is one of the server's own errors."""

from __future__ import annotations

from pathlib import Path

from hatoba_scheduler.errors import (
    FailedPrecondition,
    Internal,
    Reason,
    ResourceExhausted,
    Unavailable,
)


class StorageFull(ResourceExhausted):
    """The disk or database is full: nothing of the call was written; reads still work."""

    default_reason = Reason.STORE_FULL


class StorageFailed(Unavailable):
    """The disk failed: the call was not acknowledged; repeat it with the same request id."""

    default_reason = Reason.STORE_UNAVAILABLE


class StorageDamaged(StorageFailed):
    """The database file is damaged: the server stops, and a backup must be restored."""

    default_reason = Reason.STORE_DAMAGED


class StoreClosed(Unavailable):
    """The store is closed or about to be; nothing of the call was written."""

    default_reason = Reason.DRAINING


class WriteRefused(Internal):
    """A row of the call breaks a rule of the schema: nothing of the call was written."""


class AlreadyRunning(FailedPrecondition):
    """Another process holds the data directory; `pid` is 0 when it did not say."""

    def __init__(self, directory: Path, pid: int) -> None:
        self.directory = directory
        self.pid = pid
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{who} already uses the data directory {directory}; "
            "stop it with `hatoba server stop` or choose another directory"
        )


class SqliteTooOld(FailedPrecondition):
    """This interpreter's SQLite lacks what the schema needs."""

    def __init__(self, found: str, needed: str) -> None:
        super().__init__(
            f"this Python has SQLite {found}, the store needs {needed} or newer; use another Python"
        )


class SchemaTooNew(FailedPrecondition):
    """The database was written by a newer version of this program."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        self.found = found
        self.known = known
        super().__init__(
            f"{path} has schema {found}, this version knows {known}; "
            "start the version that wrote it, or a newer one"
        )


class DatabaseDamaged(FailedPrecondition):
    """The database file is no store any more; what it held is in a backup, or lost."""

    default_reason = Reason.STORE_DAMAGED

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(
            f"the database {path} is damaged: {text}. Nothing was changed. "
            f"`hatoba server doctor --data {path.parent}` says what is wrong with it; "
            f"`hatoba server restore BACKUP --data {path.parent} --replace` puts a backup in its "
            "place and keeps the damaged file beside it"
        )


class BadBackup(FailedPrecondition):
    """A copy that cannot be put in place."""

    def __init__(self, file: Path, why: str) -> None:
        super().__init__(f"{file} is no backup that can be restored: {why}")


class StoreExists(FailedPrecondition):
    """There is a store where a copy was to be put."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"{file} exists; with --replace it is moved aside and kept, "
            "and the backup takes its place"
        )
