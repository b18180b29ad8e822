"""Batches on disk until the server has them: a ring, whose oldest make room for new ones.

All of it blocks; what is written survives the router's death.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".batch"
LIMIT = 64 << 20


class Entry(NamedTuple):
    """One batch; `path` sorts by age."""

    path: Path
    batch: str


class Spool:
    """A directory of batches of at most `limit` bytes, in the order of `clock_ns`."""

    def __init__(self, directory: Path, clock_ns: Callable[[], int], limit: int = LIMIT) -> None:
        self._directory = directory
        self._clock_ns = clock_ns
        self._limit = limit
        self._newest = 0

    def open(self) -> None:
        """Make the directory; what a death left half written goes. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._directory.iterdir():
            if path.suffix != SUFFIX:
                path.unlink(missing_ok=True)

    def put(self, batch: str, content: bytes) -> int:
        """Keep a batch; returns how many older ones had to go for it. Raises OSError."""
        self._newest = max(self._newest + 1, self._clock_ns())
        path = self._directory / f"{self._newest:020d}-{batch}{SUFFIX}"
        fresh = path.with_suffix(".new")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        fresh.replace(path)
        return self._trim()

    def entries(self) -> list[Entry]:
        """What is kept, the oldest first."""
        with contextlib.suppress(FileNotFoundError):
            names = sorted(name for name in os.listdir(self._directory) if name.endswith(SUFFIX))
            return [
                Entry(self._directory / name, name.removesuffix(SUFFIX).partition("-")[2])
                for name in names
            ]
        return []

    def _trim(self) -> int:
        sizes = [(entry.path, _size(entry.path)) for entry in self.entries()]
        over = sum(size for _, size in sizes) - self._limit
        gone = 0
        for path, size in sizes[:-1]:
            if over <= 0:
                break
            path.unlink(missing_ok=True)
            over -= size
            gone += 1
        return gone


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
