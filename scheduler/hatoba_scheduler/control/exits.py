"""How attempts' containers ended, as their backends saw it, for runners that cannot see it.

In memory alone: after a restart every backend tells of what it has once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.domain.causes import Ending
from hatoba_scheduler.domain.records import Event

LONGEST = 30.0
"""Seconds for which one question waits."""


class Told(NamedTuple):
    """An ending, and when it was first told of (microseconds since 1970); 0: just now."""

    ending: Ending
    time: int


class Exits:
    """Endings by attempt, from the first word of one until the attempt is over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: dict[str, Told] = {}
        self._foreseen: dict[str, Told] = {}
        self._asked: dict[str, list[asyncio.Future[None]]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._told.keys() | self._foreseen.keys())

    def known(self, name: str) -> Told | None:
        """What was told of an attempt."""
        return self._told.get(name)

    def leaves(self, name: str) -> bool:
        """Whether a backend is ending an attempt, and nothing of it stays once its runner ends."""
        return name in self._foreseen

    def tell(self, name: str, ending: Ending, time: int) -> None:
        """A backend saw an attempt's container end. What it said first counts."""
        if name not in self._told:
            self._told[name] = Told(ending, time)
            self._wake(name)

    def foresee(self, name: str, ending: Ending) -> None:
        """A backend ends an attempt's container, and will not be seen to have: this is for who
        knows that nothing of it runs any more. What it said last counts.
        """
        self._foreseen[name] = Told(ending, 0)
        self._wake(name)

    def forget(self, name: str) -> None:
        """The attempt is over: nobody needs to be told any more, and who waits is let go."""
        self._told.pop(name, None)
        self._foreseen.pop(name, None)
        self._wake(name)

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Forget what is over; a listener of the ledger."""
        del events
        for commit in commits:
            for attempt, _ in commit.change.attempts:
                if attempt.state.terminal:
                    self.forget(attempt.name)

    def close(self) -> None:
        """Answer all who wait, and whoever asks from now on, at once: the server is to stop."""
        self._closed = True
        for name in list(self._asked):
            self._wake(name)

    async def wait(self, name: str, live: Callable[[], bool], *, gone: bool = False) -> Told | None:
        """How an attempt's container ended; None: not known in time, or not `live` any more.

        With `gone` it has certainly ended, so that what was foreseen is true.
        """
        until = self._clock.monotonic() + LONGEST
        while not (told := self._of(name, gone)) and live() and not self._closed:
            if (left := until - self._clock.monotonic()) <= 0:
                break
            await self._rest(name, left)
        return told

    def _of(self, name: str, gone: bool) -> Told | None:
        return self._told.get(name) or (self._foreseen.get(name) if gone else None)

    def _wake(self, name: str) -> None:
        for future in self._asked.pop(name, ()):
            if not future.done():
                future.set_result(None)

    async def _rest(self, name: str, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(name, []).append(future)
        try:
            async with asyncio.TaskGroup() as group:
                timer = group.create_task(self._ring(future, seconds), name=f"await-exit:{name}")
                await future
                timer.cancel()
        finally:
            self._withdraw(name, future)

    async def _ring(self, future: asyncio.Future[None], seconds: float) -> None:
        await self._clock.sleep(seconds)
        if not future.done():
            future.set_result(None)

    def _withdraw(self, name: str, future: asyncio.Future[None]) -> None:
        waiting = self._asked.get(name)
        if waiting is None:
            return
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            del self._asked[name]
