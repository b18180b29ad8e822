"""Bringing files safely to the disk. Everything here blocks."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hatoba_scheduler.store.errors import StorageFailed, StorageFull

# From here on one syncfs costs less than an fsync for each: 6 ms against 400 ms for 200 files.
_FEW = 8
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Raise StorageFull or StorageFailed for what the operating system refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(f"the server's disk is full: {what}") from error
        raise StorageFailed(f"the server's disk failed: {what} ({error.strerror})") from error


def sync_all(paths: Sequence[str | Path], *, anchor: Path) -> None:
    """Return once these files or directories are on the disk, all in the file system of `anchor`.

    Raises OSError.
    """
    if len(paths) > _FEW and _syncfs(anchor):
        return
    for path in paths:
        sync(path)


def sync(path: str | Path) -> None:
    """Bring one file or directory to the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _reports_errors(release: str) -> bool:
    """Whether syncfs tells of failed writes, as it does from Linux 5.8 on."""
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    return numbers >= [5, 8]


_LIBC = ctypes.CDLL(None, use_errno=True)
_HAS_SYNCFS = hasattr(_LIBC, "syncfs") and _reports_errors(os.uname().release)


def _syncfs(anchor: Path) -> bool:
    """Bring a whole file system to the disk; False where that cannot be trusted."""
    if not _HAS_SYNCFS:
        return False
    fd = os.open(anchor, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(anchor))
    finally:
        os.close(fd)
    return True
