"""One line of JSON for each request, in `DATA/router-access.log`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

from hatoba_worker.router.visits import Visit

EVERY = 0.5
MOST_LINES = 50_000
FILE_BYTES = 16 << 20
FILES = 4


class AccessLog:
    """A listener of visits; the file is turned over at 16 MiB, and four are kept.

    Lines that the disk does not take are counted in `dropped`, nothing else.
    """

    def __init__(
        self,
        path: Path,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        self._path = path
        self._sleep = sleep
        self._file_bytes = file_bytes
        self._waiting: deque[Visit] = deque()
        self.dropped = 0

    def __call__(self, visit: Visit) -> None:
        """Have it written soon."""
        if len(self._waiting) < MOST_LINES:
            self._waiting.append(visit)
        else:
            self.dropped += 1

    async def run(self) -> None:
        """Write until cancelled; what came last too."""
        try:
            while True:
                await self._sleep(EVERY)
                if self._waiting:
                    await asyncio.to_thread(self._write, self._take())
        finally:
            self._write(self._take())

    def _take(self) -> list[Visit]:
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def _write(self, visits: list[Visit]) -> None:
        if not visits:
            return
        text = "".join(f"{visit.line()}\n" for visit in visits)
        try:
            self._turn_over()
            handle = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            with os.fdopen(handle, "ab") as file:
                file.write(text.encode(errors="replace"))
        except OSError:
            self.dropped += len(visits)

    def _turn_over(self) -> None:
        try:
            if self._path.stat().st_size < self._file_bytes:
                return
        except FileNotFoundError:
            return
        for number in range(FILES - 1, 0, -1):
            older = self._name(number)
            with contextlib.suppress(FileNotFoundError):
                self._name(number - 1).replace(older)

    def _name(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path
