"""Writes that a power cut leaves whole or undone, and what room there is. All calls block."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def free_bytes(path: Path) -> int:
    """What is free on the disk of a directory. Raises OSError."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def write_all(handle: int, data: bytes) -> None:
    """Write all of it. Raises OSError."""
    while data:
        data = data[os.write(handle, data) :]


def sync_directory(path: Path) -> None:
    """Names that were made, changed or removed in a directory are on the disk itself."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, data: bytes) -> None:
    """Give a file this content, on the disk itself; whoever reads it finds the old or the new one.
    Raises OSError.
    """
    fresh = path.with_name(f"{path.name}.new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    fresh.replace(path)
    sync_directory(path.parent)


def sync_file_system(path: Path) -> None:
    """All that was written on the file system of `path` is on the disk itself."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            os.sync()
    finally:
        os.close(handle)
