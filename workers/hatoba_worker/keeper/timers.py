"""Things to do later, for a loop of one thread."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Timer:
    """One thing to do at `due` (seconds of the owner's clock), unless cancelled before."""

    __slots__ = ("action", "cancelled", "due")

    def __init__(self, due: float, action: Callable[[], None]) -> None:
        self.due = due
        self.action = action
        self.cancelled = False

    def cancel(self) -> None:
        """Do not run it; harmless when it ran already."""
        self.cancelled = True


class Timers:
    """A heap of timers over an injected monotonic clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0

    def after(self, delay: float, action: Callable[[], None]) -> Timer:
        """Run `action` once, `delay` seconds from now."""
        timer = Timer(self.clock() + delay, action)
        self._count += 1
        heapq.heappush(self._heap, (timer.due, self._count, timer))
        return timer

    def wait(self) -> float | None:
        """Return the seconds until the next timer is due (0 when one is), or None without any."""
        while self._heap and self._heap[0][2].cancelled:
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        return max(0.0, self._heap[0][0] - self.clock())

    def run_due(self) -> None:
        """Run what is due now; a timer set meanwhile waits for the next call."""
        now = self.clock()
        due: list[Timer] = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for timer in due:
            if not timer.cancelled:
                timer.action()
