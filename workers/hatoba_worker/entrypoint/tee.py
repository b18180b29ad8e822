"""What the command writes, to the container's own stdout and stderr too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping

import structlog

from hatoba_worker import tinyfiles

log = structlog.get_logger(__name__)
POLL = 0.2
PIECE = 64 * 1024
LAST_SECONDS = 2.0
Sleep = Callable[[float], Awaitable[None]]


class Tee:
    """Follows files; `handles` are where each one's bytes go. A reader that does not read holds
    up this and nothing else.
    """

    def __init__(self, handles: Mapping[str, int], sleep: Sleep = asyncio.sleep) -> None:
        self._handles = dict(handles)
        self._sleep = sleep
        self._done = dict.fromkeys(handles, 0)

    async def run(self) -> None:
        """Copy what is new, until cancelled."""
        while True:
            await self.copy()
            await self._sleep(POLL)

    async def copy(self) -> None:
        """Copy all that is there now."""
        for path in list(self._handles):
            while tinyfiles.size(path) > self._done[path]:
                await asyncio.to_thread(self._copy_piece, path)

    async def finish(self) -> None:
        """Copy what is left, if it is taken."""
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self.copy()
        except TimeoutError:
            log.warning("stdout.not_read")

    def _copy_piece(self, path: str) -> None:
        try:
            data = tinyfiles.read_piece(path, self._done[path], PIECE)
            self._done[path] += len(data)
            _write(self._handles[path], data)
        except OSError as error:
            log.warning("stdout.closed", error=str(error))
            del self._handles[path]
            self._done[path] = 1 << 62


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
