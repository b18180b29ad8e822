"""What a container writes, into the same files that a process appends to by itself.

The engine tells when each piece was written, and gives everything from a time on. Where the files
stood before the first piece of such a time is kept beside them: whoever takes over reads from that
time on, and leaves out what the files have beyond. So no byte is lost, and none is written twice.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass

from hatoba_worker import tinyfiles
from hatoba_worker.executors.containers.engine import Frame
from hatoba_worker.executors.containers.states import seconds
from hatoba_worker.logs import FILES

CURSOR = ".output.json"
KEEP_EVERY = 1.0
_STREAMS = {1: "stdout", 2: "stderr"}


@dataclass(frozen=True, slots=True)
class Cursor:
    """A time as the engine writes it, and each log's size before the first piece of that time."""

    time: str = ""
    stdout: int = 0
    stderr: int = 0

    @property
    def since(self) -> str:
        """The time as the engine is asked for it: Unix seconds with nine decimals."""
        if not self.time:
            return ""
        decimals = self.time[20:].rstrip("Z").ljust(9, "0")
        return f"{int(seconds(self.time[:19] + 'Z'))}.{decimals}"


class Output:
    """The logs of one container; `home` is the directory where they are."""

    def __init__(self, home: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._monotonic = monotonic
        self._kept = self.cursor = _load(home)
        self._kept_at = monotonic()

    async def take(self, batches: AsyncIterator[Sequence[Frame]]) -> None:
        """Append what is new of frames that begin at the cursor. Raises OSError."""
        at = {"stdout": self.cursor.stdout, "stderr": self.cursor.stderr}
        there = {name: self._size(name) for name in at}
        first = True
        async for frames in batches:
            if first and frames:
                first = False
                self._check(frames[0], at, there)
            self._append(frames, at, there)
            if self._monotonic() - self._kept_at >= KEEP_EVERY:
                self.keep()

    def _check(self, frame: Frame, at: dict[str, int], there: dict[str, int]) -> None:
        """What was to come first may be dropped by now: then nothing is left out, and it is
        said."""
        if self.cursor.time and frame.time != self.cursor.time:
            told = f"[hatoba: the engine dropped what was written before {frame.time}]\n".encode()
            tinyfiles.append(self._path("stderr"), told)
            there["stderr"] += len(told)
            at |= there

    def _append(self, frames: Sequence[Frame], at: dict[str, int], there: dict[str, int]) -> None:
        new = {"stdout": bytearray(), "stderr": bytearray()}
        cursor = self.cursor
        for frame in frames:
            name = _STREAMS.get(frame.stream, "stdout")
            if frame.time != cursor.time:
                cursor = Cursor(frame.time, at["stdout"], at["stderr"])
            old = min(max(there[name] - at[name], 0), len(frame.data))
            new[name] += frame.data[old:]
            at[name] += len(frame.data)
        for name, data in new.items():
            if data:
                self._write(name, bytes(data))
                there[name] = at[name]
        self.cursor = cursor

    def _write(self, name: str, data: bytes) -> None:
        handle = os.open(
            self._path(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            while data:
                data = data[os.write(handle, data) :]
        finally:
            os.close(handle)

    def keep(self) -> None:
        """Note the cursor for whoever takes over. Raises OSError."""
        self._kept_at = self._monotonic()
        if self.cursor != self._kept:
            self._kept = self.cursor
            body = json.dumps(asdict(self.cursor)).encode()
            tinyfiles.swap(f"{self._home}/{CURSOR}", body)

    def _size(self, name: str) -> int:
        return tinyfiles.size(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._home}/{FILES[name]}"


def begin(home: str) -> None:
    """A new container is to write behind what the files have. Raises OSError."""
    stdout, stderr = (tinyfiles.size(f"{home}/{FILES[name]}") for name in _STREAMS.values())
    cursor = Cursor("", stdout, stderr)
    tinyfiles.swap(f"{home}/{CURSOR}", json.dumps(asdict(cursor)).encode())


def _load(home: str) -> Cursor:
    try:
        data = tinyfiles.read_piece(f"{home}/{CURSOR}", 0, tinyfiles.PIECE)
        return Cursor(**json.loads(data))
    except (OSError, ValueError, TypeError):
        return Cursor()
