"""When a worker ends that somebody else started."""

from __future__ import annotations

from hatoba_plugins.clock import FakeClock
from hatoba_worker.watched import LOOK, idle


class Held:
    """What a worker holds, looked at from time to time; and the time."""

    def __init__(self, *held: bool) -> None:
        self.clock = FakeClock()
        self._held = list(held)
        self.looked = 0

    async def sleep(self, seconds: float) -> None:
        """Time goes by at once."""
        await self.clock.advance(seconds)

    def holds(self) -> bool:
        """What it held at that look; after the last, nothing."""
        self.looked += 1
        return self._held.pop(0) if self._held else False


async def ended_after(held: Held, seconds: float) -> float:
    """Seconds until it ends."""
    await idle(held.holds, seconds, held.sleep, held.clock.monotonic)
    return held.clock.monotonic()


async def test_it_ends_after_so_long_without_a_job() -> None:
    held = Held()
    began = held.clock.monotonic()
    assert await ended_after(held, 5.0) - began == 5.0


async def test_time_counts_from_the_last_job_on() -> None:
    held = Held(False, True, True, False)
    began = held.clock.monotonic()
    assert await ended_after(held, 5.0) - began == 5.0 + 3 * LOOK
