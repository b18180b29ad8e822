"""Small file operations that are done directly on the event loop.

Each takes some 5 to 50 microseconds on the local disk's cache, less than a hop to a thread. All
that may be larger goes through `asyncio.to_thread`; tests forbid blocking calls everywhere else.
"""

from __future__ import annotations

import contextlib
import os

PIECE = 64 * 1024


def is_empty(directory: str) -> bool:
    """True when the directory holds nothing, or does not exist."""
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True


def size(path: str) -> int:
    """Size in bytes; 0 for a file that does not exist."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def exists(path: str) -> bool:
    """Whether there is such a file."""
    return os.access(path, os.F_OK)


def read_piece(path: str, offset: int, length: int) -> bytes:
    """At most `length` bytes from `offset` on; raises OSError, also for a link or a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.pread(handle, length, offset)
    finally:
        os.close(handle)


def write(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a small file anew; raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def swap(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a small file anew; whoever reads it sees the old or the new one. Raises OSError."""
    write(f"{path}.new", data, mode)
    os.replace(f"{path}.new", path)


def append(path: str, data: bytes) -> None:
    """Add to the end of a small file, made if need be; raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def remove(path: str) -> None:
    """Remove a file, if it is there; raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def fresh(path: str) -> None:
    """Make an empty file, a new one if there was one; raises OSError."""
    remove(path)
    write(path, b"")


def share(path: str, link: str) -> None:
    """Give a file a second name, unless that is taken; raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.link(path, link)
