"""What a device has to tell, kept on its disk until the server has it: logs, metrics, inputs.

Records have numbers that only grow. The ring is bounded: what is oldest goes when it is full, and
who reads on learns which numbers are gone. Only what is on the disk itself is given out: a number
that was sent once never stands for something else after a power cut.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import structlog

from hatoba_worker.agent.disk import replace, sync_directory, write_all

log = structlog.get_logger(__name__)

LIMIT = 64 << 20
SEGMENT = 1 << 20
LARGEST = 256 << 10
"""Bytes of one record; who has more to say says it in parts."""
_HEAD = struct.Struct("<IIQQB")
"""Checksum of all that follows it, length of the data, number, time, kind."""
_CRC = 4


class Record(NamedTuple):
    """One thing to tell; `time` is microseconds since 1970, as the device knew it."""

    number: int
    time: int
    kind: int
    data: bytes


class Batch(NamedTuple):
    """Records in order. `gone` is how many numbers before the first are lost for ever."""

    records: list[Record]
    gone: int


@dataclass(slots=True)
class _Segment:
    """A file of records: number of its first, number behind its last, bytes."""

    path: Path
    first: int
    end: int
    size: int


class Ring:
    """Records below a directory of its own. Calls block; one thread at a time."""

    def __init__(self, root: Path, limit: int = LIMIT, segment: int = SEGMENT) -> None:
        self._root = root
        self._limit = limit
        self._segment = segment
        self._segments: deque[_Segment] = deque()
        self._pending: list[bytes] = []
        self._waiting = 0
        self._next = 1
        self._acked = 0

    @property
    def newest(self) -> int:
        """Number of the newest record that is on the disk; 0: there was none yet."""
        return self._next - 1 - self._waiting

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(one.size for one in self._segments)

    def open(self) -> None:
        """Read what there is. What a power cut tore is cut off; what is damaged is left out."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._segments.clear()
        self._next = _read_mark(self._root) + 1
        for path in sorted(self._root.glob("*.ring")):
            self._take_up(path)

    def _take_up(self, path: Path) -> None:
        size = path.stat().st_size
        segment = _opened(path)
        if segment is not None and segment.size == size:
            self._next = max(self._next, segment.end)
        else:
            # What is lost of it may have been sent: its numbers are not used again.
            self._next = max(self._next, int(path.stem) + size // _HEAD.size + 1)
            _write_mark(self._root, self._next - 1)
        if segment is None:
            path.unlink()
        else:
            self._segments.append(segment)

    def add(self, time: int, kind: int, data: bytes) -> int:
        """Take a record, which is on the disk after the next `sync`; its number. Raises ValueError
        for one that is too large.
        """
        if len(data) > LARGEST:
            raise ValueError(f"a record has at most {LARGEST:,} bytes, this one has {len(data):,}")
        number = self._next
        self._next += 1
        body = _HEAD.pack(0, len(data), number, time, kind)[_CRC:] + data
        self._pending.append(crc32(body).to_bytes(_CRC, "little") + body)
        self._waiting += 1
        return number

    def sync(self) -> None:
        """Have all that was taken on the disk itself. Raises OSError: then it is kept for the next
        time, or lost with the power.
        """
        while self._pending:
            segment = self._open_segment()
            room = max(1, self._segment - segment.size)
            part = _that_fit(self._pending, room)
            data = b"".join(self._pending[:part])
            _append(segment.path, segment.size, data)
            segment.size += len(data)
            segment.end += part
            del self._pending[:part]
            self._waiting -= part
        self._bound()

    def _open_segment(self) -> _Segment:
        last = self._segments[-1] if self._segments else None
        first = self._next - self._waiting
        if last is not None and last.size < self._segment and last.end == first:
            return last
        made = _Segment(self._root / f"{first:020d}.ring", first, first, 0)
        self._segments.append(made)
        return made

    def _bound(self) -> None:
        while self.size > self._limit and len(self._segments) > 1:
            oldest = self._segments.popleft()
            oldest.path.unlink(missing_ok=True)
            lost = oldest.end - max(oldest.first, self._acked + 1)
            if lost > 0:
                log.warning("ring.full", records_lost=lost)

    def read(self, after: int, most: int) -> Batch:
        """Records behind a number, at most `most` bytes of data but at least one record."""
        records: list[Record] = []
        taken = 0
        for segment in list(self._segments):
            if segment.end <= after + 1:
                continue
            for record in _records(segment.path, segment.size):
                if record.number <= after:
                    continue
                if records and taken + len(record.data) > most:
                    return Batch(records, records[0].number - after - 1)
                records.append(record)
                taken += len(record.data)
        return Batch(records, records[0].number - after - 1 if records else 0)

    def begin_after(self, number: int) -> None:
        """Give what comes from now on numbers above this one, which somebody has of us already.
        To be called when nothing waits for `sync`.
        """
        if number >= self._next:
            self._next = number + 1
            _write_mark(self._root, number)

    def acked(self, number: int) -> None:
        """The server has all up to a number: what holds nothing else goes."""
        self._acked = max(self._acked, number)
        while self._segments and self._segments[0].end <= self._acked + 1:
            # The number has to outlive the last record.
            if len(self._segments) == 1:
                _write_mark(self._root, self.newest)
            self._segments.popleft().path.unlink(missing_ok=True)


# -- files ----------------------------------------------------------------------------------------


def _opened(path: Path) -> _Segment | None:
    """What can be trusted of a file; None: nothing."""
    size, first, end = 0, 0, 0
    for record in _records(path, path.stat().st_size):
        first = first or record.number
        end = record.number + 1
        size += _HEAD.size + len(record.data)
    if size < path.stat().st_size:
        log.warning("ring.damaged", path=str(path), kept=size)
        os.truncate(path, size)
    return _Segment(path, first, end, size) if first else None


def _records(path: Path, size: int) -> Iterator[Record]:
    """Records up to the first that is not whole."""
    data = path.read_bytes()[:size]
    at = 0
    while at + _HEAD.size <= len(data):
        check, length, number, time, kind = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        if end > len(data) or crc32(data[at + _CRC : end]) != check:
            return
        yield Record(number, time, kind, data[at + _HEAD.size : end])
        at = end


def _that_fit(pending: list[bytes], room: int) -> int:
    """How many of them a segment takes: at least one."""
    taken = 0
    for count, one in enumerate(pending):
        if count and taken + len(one) > room:
            return count
        taken += len(one)
    return len(pending)


def _append(path: Path, size: int, data: bytes) -> None:
    """Add to a file of this size, on the disk itself. Raises OSError and leaves it as it was."""
    fresh = not size
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        write_all(handle, data)
        os.fdatasync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise
    finally:
        os.close(handle)
    if fresh:
        sync_directory(path.parent)


def _write_mark(root: Path, number: int) -> None:
    replace(root / "newest", str(number).encode())


def _read_mark(root: Path) -> int:
    try:
        return int((root / "newest").read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return 0
