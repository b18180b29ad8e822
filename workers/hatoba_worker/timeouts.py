"""Wall-clock limits of running attempts, counted from the start whatever happens to the worker."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from hatoba_worker.attempts import Attempt, Why

_TICKS = os.sysconf("SC_CLK_TCK")
# The loop's clock stands still while the machine sleeps: look again at least so often.
_LOOK = 60.0

Stop = Callable[[Attempt, Why, float], None]


class Timeouts:
    """Stops each watched attempt when its time is over."""

    def __init__(self, boottime: Callable[[], float] | None = None) -> None:
        self._boottime = boottime or _boottime
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def watch(self, attempt: Attempt, stop: Stop) -> None:
        """Call `stop` once the attempt has run for as long as it may."""
        if not attempt.launch.HasField("timeout"):
            return
        limit = attempt.launch.timeout.ToTimedelta().total_seconds()
        if limit > 0 and not attempt.why:
            self._look(attempt, self._deadline(attempt, limit), stop)

    def forget(self, name: str) -> None:
        """The attempt has ended."""
        handle = self._handles.pop(name, None)
        if handle:
            handle.cancel()

    def _deadline(self, attempt: Attempt, limit: float) -> float:
        begun = attempt.begun
        if begun is None or not begun.ticks:
            # It had ended before the keeper could read its start.
            return self._boottime() + limit
        # It began somewhere in that tick; nobody is stopped too early.
        return (begun.ticks + 1) / _TICKS + limit

    def _look(self, attempt: Attempt, deadline: float, stop: Stop) -> None:
        left = deadline - self._boottime()
        if left <= 0:
            self._handles.pop(attempt.name, None)
            stop(attempt, "timeout", attempt.launch.stop_grace.ToTimedelta().total_seconds())
            return
        loop = asyncio.get_running_loop()
        self._handles[attempt.name] = loop.call_later(
            min(left, _LOOK), self._look, attempt, deadline, stop
        )


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
