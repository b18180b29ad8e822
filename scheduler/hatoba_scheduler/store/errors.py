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
