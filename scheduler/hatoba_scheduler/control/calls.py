"""The bulkhead of one backend instance: how much is called at once, for how long, and how it went.

Each operation has its own lane, so that launches that hang hold up no stop, and its own breaker.
Nothing here is shared between instances.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from hatoba_plugins.backend import Clock
from hatoba_plugins.errors import BackendError, Retry
from hatoba_scheduler.control.breaker import Breaker, BreakerRules, BreakerState

T = TypeVar("T")
LANES = {
    "launch": 4,
    "find": 2,
    "observe": 2,
    "stop": 2,
    "release": 2,
    "health": 1,
    "list": 1,
}
"""Operations, and how many calls of each may be under way at once."""
DEADLINE = 30.0
"""Seconds after which a call is given up, when nothing else is configured."""
LISTING = 4.0
"""So many times as long may a listing of everything take."""
KEPT = 100


class Timing(NamedTuple):
    """How long a call took in seconds, and whether it got an answer."""

    seconds: float
    good: bool


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How an instance is called: `deadline` in seconds."""

    deadline: float = DEADLINE
    breaker: BreakerRules = BreakerRules()


class Operation:
    """One lane of calls to one backend."""

    def __init__(self, clock: Clock, limit: int, deadline: float, rules: BreakerRules) -> None:
        self._clock = clock
        self._deadline = deadline
        self._lane = asyncio.Semaphore(limit)
        self._breaker = Breaker(rules)
        self._changed = asyncio.Event()
        self.limit = limit
        self.under_way = 0
        self.timings: deque[Timing] = deque(maxlen=KEPT)

    @property
    def state(self) -> BreakerState:
        """Whether calls are let through now."""
        return self._breaker.state(self._clock.monotonic())

    async def until_open(self) -> None:
        """Return when a call would be let through."""
        while wait := self._breaker.wait(self._clock.monotonic()):
            await self._rest(wait)

    async def call(
        self, made: Callable[[], Awaitable[T]], good: Callable[[T], bool] = lambda _: True
    ) -> T:
        """Call as soon as lane and breaker allow it; TimeoutError after the deadline.

        Whatever is raised comes through. `good` says whether an answer counts as one.
        """
        async with self._lane:
            while not self._breaker.admit(self._clock.monotonic()):
                await self._rest(self._breaker.wait(self._clock.monotonic()))
            self.under_way += 1
            try:
                return await self._timed(made, good)
            finally:
                self.under_way -= 1
                self._changed.set()
                self._changed = asyncio.Event()

    async def _timed(self, made: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> T:
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._deadline):
                answer = await made()
        except asyncio.CancelledError:
            self._breaker.let_go()
            raise
        except Exception as error:
            self._note(began, good=_says_something(error))
            raise
        self._note(began, good=good(answer))
        return answer

    def _note(self, began: float, *, good: bool) -> None:
        now = self._clock.monotonic()
        self.timings.append(Timing(now - began, good))
        if good:
            self._breaker.succeeded()
        else:
            self._breaker.failed(now)

    async def _rest(self, seconds: float) -> None:
        """Until so long has passed; for ever means until the call that tries has ended."""
        if math.isinf(seconds):
            await self._changed.wait()
        else:
            await self._clock.sleep(seconds)

    def text(self) -> str:
        """Mean and longest time of the last calls, and how many of them failed."""
        if not self.timings:
            return "not called"
        times = [one.seconds for one in self.timings]
        failed = sum(not one.good for one in self.timings)
        mean, longest = 1000 * sum(times) / len(times), 1000 * max(times)
        return f"{mean:.3g} ms, {longest:.3g} ms; {failed} of {len(times)} failed"


def _says_something(error: Exception) -> bool:
    """Whether it is an answer: one that refuses, and not one that says that nothing works."""
    return isinstance(error, BackendError) and not isinstance(error, Retry)


class Calls:
    """All lanes of one instance."""

    def __init__(self, clock: Clock, settings: CallSettings = CallSettings()) -> None:
        self._operations = {
            name: Operation(
                clock,
                limit,
                settings.deadline * (LISTING if name == "list" else 1.0),
                settings.breaker,
            )
            for name, limit in LANES.items()
        }

    def __getitem__(self, name: str) -> Operation:
        return self._operations[name]

    @property
    def under_way(self) -> int:
        """Calls that have not been answered yet."""
        return sum(one.under_way for one in self._operations.values())

    @property
    def limit(self) -> int:
        """How many calls may be under way."""
        return sum(one.limit for one in self._operations.values())

    @property
    def state(self) -> BreakerState:
        """The worst of all lanes'."""
        states = {one.state for one in self._operations.values()}
        order = (BreakerState.OPEN, BreakerState.HALF_OPEN)
        return next((state for state in order if state in states), BreakerState.CLOSED)

    def texts(self) -> dict[str, str]:
        """By operation that was called: see `Operation.text`."""
        return {name: one.text() for name, one in self._operations.items() if one.timings}
