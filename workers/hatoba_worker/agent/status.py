"""How the agent is, in a file that can be read on the device itself, without any link."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from hatoba_worker import tinyfiles
from hatoba_worker.agent.watchdog import Beat

log = structlog.get_logger(__name__)

FILE = "status.json"
EVERY = 60.0
"""Seconds after which it is written unasked; a card of flash memory bears only so many writes."""
GATHER = 1.0
Json = Mapping[str, Any]


class StatusFile:
    """Written whenever something changed, and now and then."""

    def __init__(
        self,
        data: Path,
        snapshot: Callable[[], Json],
        beat: Beat,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._path = data / FILE
        self._snapshot = snapshot
        self._beat = beat
        self._sleep = sleep
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """It is another way now."""
        self._changed.set()

    async def run(self) -> None:
        """Write, until cancelled."""
        while True:
            self._beat()
            await self.write()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._changed.wait()
            self._changed.clear()
            await self._sleep(GATHER)

    async def write(self) -> None:
        """Write it now. A full disk costs what is new."""
        text = json.dumps(self._snapshot(), indent=1)
        try:
            await asyncio.to_thread(tinyfiles.swap, str(self._path), text.encode())
        except OSError as error:
            log.info("status.unwritten", error=str(error))


def read(data: Path) -> dict[str, Any]:
    """What the agent of a directory wrote last; empty: nothing that can be read. Blocks."""
    try:
        found = json.loads((data / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
