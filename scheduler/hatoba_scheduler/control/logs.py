"""What jobs write, kept by attempt, stream and offset in files of the data directory.

Offsets are the job's own and never change. A range dropped at its source is a hole in the file and
a line in the stream's list of gaps. Bytes are acknowledged once they are on the disk.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.domain.records import Attempt, Event
from hatoba_scheduler.errors import OutOfRange, Reason, ResourceExhausted
from hatoba_scheduler.whole import whole

STREAMS = ("build", "stdout", "stderr")
READ = 64 * 1024
OPEN_FILES = 256


class Piece(NamedTuple):
    """A part of a stream: bytes from `offset` on, or so many missing ones."""

    offset: int
    data: bytes
    gap: int = 0


@dataclass(slots=True)
class _Stream:
    """One stream's file: its size so far, and (offset, length) of what is missing."""

    path: Path
    size: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    loaded: bool = False


class LogSource(Protocol):
    """What brings logs here that a backend keeps."""

    def expects(self, name: str) -> bool:
        """Whether more of an attempt's log is to come than is stored."""
        ...

    def read(self, name: str) -> None:
        """Somebody reads this attempt's log as it grows."""
        ...

    def failure(self, name: str) -> Exception | None:
        """Why nothing of it came when that was tried last; None: nothing went wrong."""
        ...

    async def fresh(self, name: str) -> None:
        """Have what there is now stored."""
        ...

    async def last(self, name: str) -> None:
        """Have stored what there is of an attempt whose command has ended, and which goes soon."""
        ...


class LogStore:
    """All logs of this installation, below one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.sources: dict[str, LogSource] = {}
        """By backend: of those that keep logs which nobody ships."""
        self._streams: OrderedDict[tuple[str, str], _Stream] = OrderedDict()
        self._grown: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def _stream(self, attempt: Attempt, stream: str) -> _Stream:
        key = (attempt.name, stream)
        found = self._streams.get(key)
        if found is None:
            folder = self._root / attempt.job_uid / f"{attempt.index}-{attempt.number}"
            found = self._streams[key] = _Stream(folder / stream)
            if len(self._streams) > OPEN_FILES:
                self._streams.popitem(last=False)
        else:
            self._streams.move_to_end(key)
        return found

    async def append(self, attempt: Attempt, stream: str, piece: Piece) -> int:
        """Store a piece; returns up to where the stream is stored.

        What is stored already is ignored; a piece beyond the end changes nothing. Raises
        ResourceExhausted when the disk is full.
        """
        lock = self._locks.setdefault((attempt.name, stream), asyncio.Lock())
        async with lock:
            try:
                # A thread that is left alone would still write when the next piece comes.
                size = await whole(asyncio.to_thread(_append, self._stream(attempt, stream), piece))
            except (OSError, OverflowError) as error:
                raise ResourceExhausted(
                    f"a log could not be stored: {error}", reason=Reason.STORE_FULL
                ) from error
        self.poke(attempt.name)
        return size

    async def sizes(self, attempt: Attempt) -> dict[str, int]:
        """Stored size of each stream that has something."""
        return await asyncio.to_thread(self._sizes, attempt)

    def _sizes(self, attempt: Attempt) -> dict[str, int]:
        found = {}
        for name in STREAMS:
            stream = self._stream(attempt, name)
            _load(stream)
            if stream.size:
                found[name] = stream.size
        return found

    async def read(self, attempt: Attempt, stream: str, offset: int) -> Piece | None:
        """The next bytes, at most 64 KiB, or the gap there; None at the end of what is stored.

        Raises OutOfRange beyond the end.
        """
        return await asyncio.to_thread(_read, self._stream(attempt, stream), offset)

    async def tail_offset(self, attempt: Attempt, stream: str, lines: int) -> int:
        """Offset at which the last `lines` lines of what is stored begin."""
        return await asyncio.to_thread(_tail_offset, self._stream(attempt, stream), lines)

    def poke(self, name: str) -> None:
        """Wake those who follow an attempt: its log grew, or it ended."""
        event = self._grown.pop(name, None)
        if event is not None:
            event.set()

    def growth(self, name: str) -> asyncio.Event:
        """Set at the attempt's next growth or end; take it before reading, and hold it."""
        found = self._grown.get(name)
        if found is None:
            found = self._grown[name] = asyncio.Event()
        return found

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Wake those who wait for an attempt to begin or to end; a listener of the ledger."""
        del events
        if not self._grown:
            return
        for commit in commits:
            for attempt, _ in commit.change.attempts:
                self.poke(attempt.name)
                self.poke(f"{attempt.job_uid}:{attempt.index}")
            if commit.change.job.state.terminal:
                self.poke(f"{commit.change.job.uid}:0")


def _load(stream: _Stream) -> None:
    if stream.loaded:
        return
    try:
        stream.size = stream.path.stat().st_size
        gaps = stream.path.with_suffix(".gaps")
        if gaps.exists():
            stream.gaps = [tuple(json.loads(line)) for line in gaps.read_text().splitlines()]
    except FileNotFoundError:
        stream.size = 0
    stream.loaded = True


def _append(stream: _Stream, piece: Piece) -> int:
    _load(stream)
    if piece.offset > stream.size or not (piece.data or piece.gap):
        return stream.size
    stream.path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(stream.path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if piece.gap:
            _append_gap(stream, fd, piece)
        fresh = piece.data[stream.size - piece.offset :] if piece.data else b""
        written = 0
        while written < len(fresh):
            written += os.pwrite(fd, fresh[written:], stream.size + written)
        os.fdatasync(fd)
        stream.size += len(fresh)
    finally:
        os.close(fd)
    return stream.size


def _append_gap(stream: _Stream, fd: int, piece: Piece) -> None:
    length = piece.offset + piece.gap - stream.size
    if length <= 0:
        return
    with stream.path.with_suffix(".gaps").open("a") as file:
        file.write(json.dumps([stream.size, length]) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.ftruncate(fd, stream.size + length)
    stream.gaps.append((stream.size, length))
    stream.size += length


def _read(stream: _Stream, offset: int) -> Piece | None:
    _load(stream)
    if offset > stream.size:
        raise OutOfRange(
            f"offset {offset} lies beyond the {stream.size} bytes that are stored",
            reason=Reason.OFFSET_OUT_OF_RANGE,
        )
    if offset == stream.size:
        return None
    end = min(stream.size, offset + READ)
    for start, length in stream.gaps:
        if start <= offset < start + length:
            return Piece(offset, b"", start + length - offset)
        if offset < start < end:
            end = start
    fd = os.open(stream.path, os.O_RDONLY)
    try:
        return Piece(offset, os.pread(fd, end - offset, offset))
    finally:
        os.close(fd)


def _tail_offset(stream: _Stream, lines: int) -> int:
    _load(stream)
    if not stream.size:
        return 0
    wanted = lines
    last = stream.size - 1
    for offset, block in _blocks_backwards(stream):
        position = len(block)
        while (position := block.rfind(b"\n", 0, position)) >= 0:
            if offset + position == last:
                continue
            wanted -= 1
            if wanted == 0:
                return offset + position + 1
    return 0


def _blocks_backwards(stream: _Stream) -> Iterator[tuple[int, bytes]]:
    with stream.path.open("rb") as file:
        end = stream.size
        while end > 0:
            start = max(0, end - READ)
            file.seek(start)
            yield start, file.read(end - start)
            end = start
