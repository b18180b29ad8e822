"""The agent's memory of what it decided: on disk before it acts, and readable after a power cut.

It is in two files that say the same. Each line is an entry with a checksum and its place, a round
and a number in it; a round begins when both are written anew. An entry counts once a file has it on
the disk itself. What is damaged in one is in the other, and is put back from there; where both are
damaged the other entries count, and `Read` says that there is a gap, until they are written anew:
who goes by them must end nothing because of it.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import structlog

from hatoba_worker.agent import disk

log = structlog.get_logger(__name__)

LARGE = 256 << 10
"""Bytes of a file above which both are written anew with the fewest entries."""
_COPY = ".copy"
_CRC = 8
Json = Mapping[str, Any]


class Read(NamedTuple):
    """Entries that can be trusted, how many bytes of both files cannot, and whether entries are
    missing for that.
    """

    entries: list[Json]
    lost: int
    gap: bool

    @property
    def damage(self) -> str:
        """What became of it, in words; empty: all is well."""
        if not self.lost:
            return ""
        kept = "entries are missing" if self.gap else "its entries are all there"
        return f"its journal was damaged: {self.lost:,} bytes cannot be read, {kept}"


class _Place(NamedTuple):
    round: int
    number: int


class _Found(NamedTuple):
    """Whole lines by place, and what counts of them."""

    lines: dict[_Place, bytes]
    read: Read

    @property
    def last(self) -> _Place:
        return max(self.lines, default=_Place(1, 0))


class Journal:
    """Two append-only files in a directory of their own; calls block. `passing` hears of the points
    `journal.KIND.before`, `.between` (one file has it) and `.after` of each entry that is added.
    """

    def __init__(self, path: Path, passing: Callable[[str], None] = lambda _: None) -> None:
        self._directory = path.parent
        self._files = [_File(one) for one in _paths(path)]
        self._last = _Place(1, 0)
        self._passing = passing

    @property
    def large(self) -> bool:
        """True when it is time to write it anew."""
        return max(one.size for one in self._files) > LARGE

    def open(self) -> Read:
        """What is there; what cannot be trusted is put right or cut off. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = _merged([one.open() for one in self._files])
        self._last = found.last
        if found.read.damage:
            log.error("journal.damaged", gap=found.read.gap, bytes_lost=found.read.lost)
        self._written(b"".join(found.lines.values()))
        return found.read

    def _written(self, data: bytes) -> bool:
        """Have this in the files; whether one at least has it."""
        any_has = False
        for one in self._files:
            try:
                one.become(data)
                any_has = True
            except OSError as error:
                # The disk is full: the two together say it all, as they are.
                log.warning("journal.not_written", path=str(one.path), error=str(error))
                one.cut_torn()
        disk.sync_directory(self._directory)
        return any_has

    def add(self, *entries: Json) -> None:
        """Have entries on the disk when it returns. Raises OSError: then they are not there."""
        places = (self._last._replace(number=at) for at in itertools.count(self._last.number + 1))
        data = b"".join(map(_line, places, entries))
        self._pass(entries, "before")
        try:
            for number, one in enumerate(self._files):
                if number:
                    self._pass(entries, "between")
                one.add(data)
        except OSError:
            for one in self._files:
                one.take_back()
            raise
        for one in self._files:
            one.size += len(data)
        self._last = self._last._replace(number=self._last.number + len(entries))
        self._pass(entries, "after")

    def _pass(self, entries: Iterable[Json], where: str) -> None:
        for one in entries:
            self._passing(f"journal.{one.get('kind')}.{where}")

    def rewrite(self, entries: Iterable[Json]) -> None:
        """Put these, which say the same, in place of all, each file in one step. Where the disk has
        no room for that, what there was still counts. Raises OSError.
        """
        places = (_Place(self._last.round + 1, at) for at in itertools.count(1))
        lines = list(map(_line, places, entries))
        if self._written(b"".join(lines)):
            self._last = _Place(self._last.round + 1, len(lines))

    def close(self) -> None:
        """Let go of the files."""
        for one in self._files:
            one.close()


class _File:
    """One of the two."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._handle = -1

    def open(self) -> bytes:
        """What is in it."""
        self._handle = os.open(self.path, _FLAGS, 0o600)
        data = self.path.read_bytes()
        self.size = len(data)
        return data

    def add(self, data: bytes) -> None:
        """Have it on the disk behind what is known to be there."""
        disk.write_all(self._handle, data)
        os.fdatasync(self._handle)

    def take_back(self) -> None:
        """Undo what was added last: half an entry would hide the next one."""
        os.ftruncate(self._handle, self.size)

    def cut_torn(self) -> None:
        """End behind the last end of a line, which needs no room."""
        self.size = self.path.read_bytes().rfind(b"\n") + 1
        os.ftruncate(self._handle, self.size)
        os.fsync(self._handle)

    def become(self, data: bytes) -> None:
        """Have this in it and nothing else, in one step; nothing is written where that is so."""
        if self.size == len(data) and self.path.read_bytes() == data:
            return
        disk.replace(self.path, data)
        os.close(self._handle)
        self._handle, self.size = os.open(self.path, _FLAGS, 0o600), len(data)

    def close(self) -> None:
        """Let go of it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def read(path: Path) -> Read:
    """What a journal holds, which is left as it is; blocks. Raises OSError, FileNotFoundError where
    there is none.
    """
    there = [one for one in _paths(path) if one.exists()] or [path]
    return _merged([one.read_bytes() for one in there]).read


def _paths(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(f"{path.name}{_COPY}")


def _line(place: _Place, entry: Json) -> bytes:
    told = json.dumps(entry, separators=(",", ":"))
    text = f"{place.round}.{place.number} {told}".encode()
    return b"%08x %s\n" % (crc32(text), text)


class _Whole(NamedTuple):
    """Of one file: whole lines and what they say by place, bytes that are damaged, and whether the
    last ones are.
    """

    lines: dict[_Place, tuple[bytes, Json]]
    lost: int
    ends_damaged: bool


def _whole(data: bytes) -> _Whole:
    found: dict[_Place, tuple[bytes, Json]] = {}
    *lines, torn = data.split(b"\n")
    lost, damaged = len(torn), False
    for line in lines:
        place, entry = _parsed(line)
        damaged = entry is None
        if entry is None:
            lost += len(line) + 1
        else:
            found[place] = (line + b"\n", entry)
    return _Whole(found, lost, damaged or bool(torn))


def _merged(files: Iterable[bytes]) -> _Found:
    """What files say together."""
    parts = [_whole(data) for data in files]
    lines = {place: line for part in parts for place, line in part.lines.items()}
    lost = sum(part.lost for part in parts)
    places, complete = _counting(sorted(lines))
    gap = not complete or all(part.ends_damaged for part in parts)
    entries = [lines[one][1] for one in places]
    return _Found({one: lines[one][0] for one in places}, Read(entries, lost, gap))


def _counting(places: list[_Place]) -> tuple[list[_Place], bool]:
    """Those of the newest round, where all are there from its first on; else all that there are."""
    newest = [one for one in places if one.round == places[-1].round]
    complete = not newest or len(newest) == newest[-1].number
    return (newest if complete else places), complete


def _parsed(line: bytes) -> tuple[_Place, Json | None]:
    """Where an entry belongs, and what it says; None: it is not whole."""
    text = line[_CRC + 1 :]
    nowhere = _Place(0, 0)
    if line[: _CRC + 1] != b"%08x " % crc32(text):
        return nowhere, None
    place, _, told = text.partition(b" ")
    try:
        round_, number = map(int, place.split(b"."))
        found = json.loads(told)
    except ValueError:
        return nowhere, None
    return _Place(round_, number), found if isinstance(found, dict) else None
