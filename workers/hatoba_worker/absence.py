"""How long the server was not heard, and who may not go on without it.

Counted by a clock that neither stands still while the machine sleeps nor is ever set. It is written
down now and then, so that a worker's death does not begin the time anew.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from hatoba_worker import tinyfiles
from hatoba_worker.attempts import Attempt, Why

FILE = "server-heard.json"
BEATS = 3
"""So many signs of life are asked of the server within the shortest time without it."""
_LOOK = 60.0

Stop = Callable[[Attempt, Why, float], None]
log = structlog.get_logger(__name__)


class Absence:
    """Stops attempts that were without the server for as long as they may be."""

    def __init__(self, data: Path, boot: str, clock: Callable[[], float] | None = None) -> None:
        self._path = str(data / FILE)
        self._boot = boot
        self._clock = clock or _boottime
        self._heard = self._clock()
        self._handles: dict[str, asyncio.TimerHandle] = {}
        self._limits: dict[str, float] = {}
        self._needed = asyncio.Event()

    def load(self) -> None:
        """Go on from what a former worker wrote down; blocks."""
        try:
            told = json.loads(Path(self._path).read_text(encoding="utf-8"))
            if told["boot"] == self._boot:
                self._heard = min(self._heard, float(told["heard"]))
        except (OSError, ValueError, KeyError, TypeError):
            return

    def heard(self) -> None:
        """The server said something just now."""
        self._heard = self._clock()
        if self._limits:
            self._note()

    def _note(self) -> None:
        body = json.dumps({"boot": self._boot, "heard": self._heard}).encode()
        try:
            tinyfiles.swap(self._path, body)
        except OSError as error:
            log.warning("absence.not_noted", error=str(error))

    async def next_beat(self) -> tuple[list[str], float]:
        """Attempts for which the server is to be asked for a sign of life, once there are any, and
        the seconds until it is to be asked again."""
        await self._needed.wait()
        return list(self._limits), min(self._limits.values()) / BEATS

    def watch(self, attempt: Attempt, stop: Stop) -> None:
        """Call `stop` once the server was not heard for as long as the attempt may be without."""
        if not attempt.launch.HasField("stop_after"):
            return
        limit = attempt.launch.stop_after.ToTimedelta().total_seconds()
        if limit > 0 and not attempt.why:
            self._limits[attempt.name] = limit
            self._needed.set()
            self._note()
            self._look(attempt, limit, stop)

    def forget(self, name: str) -> None:
        """The attempt has ended."""
        self._limits.pop(name, None)
        if not self._limits:
            self._needed.clear()
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.cancel()

    def _look(self, attempt: Attempt, limit: float, stop: Stop) -> None:
        left = self._heard + limit - self._clock()
        if left <= 0:
            self._handles.pop(attempt.name, None)
            log.warning("attempt.without_server", attempt=attempt.name, seconds=limit)
            stop(attempt, "away", attempt.launch.stop_grace.ToTimedelta().total_seconds())
            return
        self._handles[attempt.name] = asyncio.get_running_loop().call_later(
            min(left, _LOOK), self._look, attempt, limit, stop
        )


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
