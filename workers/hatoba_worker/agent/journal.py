"""The agent's memory of what it decided: on disk before it acts, and readable after a power cut.

Each line is an entry with a checksum. An entry counts once it is on the disk itself, not in its
cache; one that a power cut tore is left out with all that follows it, and said to be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import structlog

from hatoba_worker.agent.disk import sync_directory, write_all

log = structlog.get_logger(__name__)

LARGE = 256 << 10
"""Bytes above which it is written anew with the fewest entries."""
_CRC = 8
Json = Mapping[str, Any]


class Read(NamedTuple):
    """Entries that can be trusted, and how many bytes after them cannot."""

    entries: list[Json]
    lost: int


class Journal:
    """An append-only file. Its directory is its own; calls block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1
        self._size = 0

    @property
    def large(self) -> bool:
        """True when it is time to write it anew."""
        return self._size > LARGE

    def open(self) -> Read:
        """What is there; what cannot be trusted is cut off. Raises OSError."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._handle = os.open(self._path, flags, 0o600)
        data = self._path.read_bytes()
        entries, good = _parsed(data)
        lost = len(data) - good
        if lost:
            log.error("journal.damaged", path=str(self._path), kept=len(entries), bytes_lost=lost)
            os.ftruncate(self._handle, good)
            os.fsync(self._handle)
        self._size = good
        sync_directory(self._path.parent)
        return Read(entries, lost)

    def add(self, *entries: Json) -> None:
        """Have entries on the disk when it returns. Raises OSError: then they are not there."""
        data = b"".join(map(_line, entries))
        try:
            write_all(self._handle, data)
            os.fdatasync(self._handle)
        except OSError:
            # Half an entry would hide all that follow it.
            os.ftruncate(self._handle, self._size)
            raise
        self._size += len(data)

    def rewrite(self, entries: Iterable[Json]) -> None:
        """Put these in place of all, in one step. Raises OSError and keeps what there is."""
        fresh = self._path.with_suffix(".new")
        data = b"".join(map(_line, entries))
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        handle = os.open(fresh, flags, 0o600)
        try:
            write_all(handle, data)
            os.fdatasync(handle)
            fresh.replace(self._path)
        except OSError:
            os.close(handle)
            raise
        sync_directory(self._path.parent)
        os.close(self._handle)
        self._handle, self._size = handle, len(data)

    def close(self) -> None:
        """Let go of the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def read(path: Path) -> Read:
    """What a journal holds, which is left as it is; blocks. Raises OSError."""
    data = path.read_bytes()
    entries, good = _parsed(data)
    return Read(entries, len(data) - good)


def _line(entry: Json) -> bytes:
    text = json.dumps(entry, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32(text), text)


def _parsed(data: bytes) -> tuple[list[Json], int]:
    """Entries up to the first that is not whole, and where that begins."""
    entries: list[Json] = []
    at = 0
    while (end := data.find(b"\n", at)) >= 0:
        entry = _entry(data[at:end])
        if entry is None:
            break
        entries.append(entry)
        at = end + 1
    return entries, at


def _entry(line: bytes) -> Json | None:
    text = line[_CRC + 1 :]
    if line[: _CRC + 1] != b"%08x " % crc32(text):
        return None
    found = json.loads(text)
    return found if isinstance(found, dict) else None
