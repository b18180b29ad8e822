"""The keeper's memory of what it started: JSON lines, appended without fsync.

No fsync: after a power loss nothing lives that the journal could speak of, and a killed keeper's
writes are safe in the page cache.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from hatoba_worker.keeper.frames import Json, to_json

COMPACT_ABOVE = 4 << 20


class Journal:
    """An append-only file of records, replaced as a whole when it is compacted.

    It is `large` above `compact_above` bytes, and above four times what compaction left.
    """

    def __init__(self, path: Path, compact_above: int = COMPACT_ABOVE) -> None:
        self._path = path
        self._pending = b""
        self._handle = -1
        self.size = 0
        self._compact_above = compact_above
        self._enough = compact_above

    def read(self) -> list[Json]:
        """Return the records on disk; lines that a death tore are left out."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        return [record for line in data.split(b"\n") if (record := _parse(line)) is not None]

    def rewrite(self, records: Iterable[Json]) -> None:
        """Replace the file by `records` in one step; raises OSError and keeps the old file."""
        fresh = self._path.with_suffix(".new")
        data = b"".join(map(_line, records))
        handle = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            _write_all(handle, data)
            fresh.rename(self._path)
        except OSError:
            os.close(handle)
            raise
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = handle
        self._pending = b""
        self.size = len(data)
        self._enough = max(self._compact_above, 4 * self.size)

    def add(self, record: Json) -> None:
        """Take a record to be written by the next `flush`."""
        self._pending += _line(record)

    def flush(self) -> None:
        """Write what is pending; raises OSError (a full disk) and keeps the rest for later."""
        while self._pending:
            written = os.write(self._handle, self._pending)
            self._pending = self._pending[written:]
            self.size += written

    @property
    def large(self) -> bool:
        """True when it is time to compact."""
        return self.size > self._enough


def _line(record: Json) -> bytes:
    return to_json(record) + b"\n"


def _parse(line: bytes) -> Json | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
