"""What the mock's world did: an append-only file of JSON lines, fsynced before a call is answered.

It is an oracle that no bug of the scheduler can touch, and all that the world is rebuilt from.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened to `name` at `time` (seconds since 1970)."""

    event: str
    """`create`, `claim`, `start`, `end`, `stop`, `delete` or `release` of an attempt; `apply` or
    `remove` of a deployment; `replica`, `starting`, `ready`, `crash`, `drain` or `gone` of one of
    its replicas.
    """
    name: str
    time: float
    data: dict[str, object] = field(default_factory=dict)


class Ledger:
    """The entries, in memory and, where there is a path, in its file."""

    def __init__(self, path: Path | None) -> None:
        self.entries: list[Entry] = []
        self._path = path
        self._pending: list[Entry] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._work = asyncio.Event()
        self._closed = False

    async def load(self) -> None:
        """Begin with what the file says. A line that was torn by a crash never counted."""
        self._closed = False
        if self._path is not None:
            self.entries = await asyncio.to_thread(_load, self._path)

    def record(self, entry: Entry) -> None:
        """Take note; the next `flush` returns when it is on the disk."""
        self.entries.append(entry)
        if self._path is not None:
            self._pending.append(entry)
            self._work.set()

    async def flush(self) -> None:
        """Return once everything recorded so far is on the disk."""
        if self._path is None:
            return await asyncio.sleep(0)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._work.set()
        await done

    async def write_what_comes(self) -> None:
        """Write until closed. A caller that is cancelled meanwhile cannot tear a line."""
        while not self._closed or self._pending or self._waiting:
            await self._work.wait()
            self._work.clear()
            await self._write_pending()

    def close(self) -> None:
        """Have the writer end once everything is written."""
        self._closed = True
        self._work.set()

    async def _write_pending(self) -> None:
        entries, self._pending = self._pending, []
        waiting, self._waiting = self._waiting, []
        if entries and self._path is not None:
            await asyncio.to_thread(_append, self._path, entries)
        for done in waiting:
            if not done.done():
                done.set_result(None)


def read_ledger(path: Path) -> list[Entry]:
    """All whole entries of a ledger file, in the order they happened."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_entry(json.loads(line)) for line in lines]


def _load(path: Path) -> list[Entry]:
    """Read it, and cut off the end of a write that a crash tore."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
    return read_ledger(path)


def _append(path: Path, entries: Iterable[Entry]) -> None:
    lines = b"".join(_line(entry) for entry in entries)
    with path.open("ab") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _line(entry: Entry) -> bytes:
    known = {"event": entry.event, "name": entry.name, "time": entry.time}
    return json.dumps(known | entry.data).encode() + b"\n"


def _entry(line: dict[str, object]) -> Entry:
    event, name, time = str(line.pop("event")), str(line.pop("name")), line.pop("time")
    return Entry(event, name, float(str(time)), line)
