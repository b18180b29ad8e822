"""What every link to the server has in common: it is dialled again for ever, with pauses."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from hatoba.v1 import device_pb2
from hatoba_worker.agent.calls import Broken, typed
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.identity import NotEnrolled
from hatoba_worker.agent.library import Way
from hatoba_worker.agent.records import Records
from hatoba_worker.agent.renewing import Shown
from hatoba_worker.agent.settings import BadSettings
from hatoba_worker.agent.tunnel import Tunnel
from hatoba_worker.agent.watchdog import Beat

log = structlog.get_logger(__name__)

FIRST_WAIT, SPREAD, LONGEST_WAIT = 0.5, 8.0, 60.0
"""Seconds: at least, at most after a link that was good, at most after any number of tries."""
GOOD_AFTER = 30.0
"""Seconds of a stream after which it counts as one that was good."""
NOT_ENROLLED = 30.0
HAND_SHAKE = 6 << 10
"""Bytes that a connection costs before anything is said, about."""
PROTOCOL = 1


class Listener(Protocol):
    """Who answers the server."""

    async def hello(self) -> device_pb2.DeviceHello:
        """What a stream begins with."""
        ...

    def linked(self, *, up: bool) -> None:
        """The server has welcomed us, or the link is gone; also when there is another reason why
        there is none.
        """
        ...

    def desired(self, desired: device_pb2.DeviceDesired) -> None:
        """The server wants this."""
        ...

    def work(self) -> None:
        """There are jobs for this device."""
        ...


class Affords(Protocol):
    """What records may cost."""

    def affords(self, size: int) -> bool:
        """Whether so many bytes may be sent at once."""
        ...

    async def pay(self, size: int) -> None:
        """They are sent."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What a link works with. `wake` is set by who has something to send; `before_dial` waits until
    another connection may be made.
    """

    tunnel: Tunnel
    shown: Shown
    clock: FloorClock
    records: Records
    budget: Affords
    before_dial: Callable[[int], Awaitable[None]]
    listener: Listener
    wake: asyncio.Event
    beat: Beat


@dataclass(frozen=True, slots=True)
class End:
    """How a try ended. `pause`: seconds that are waited at least; None: none, dial again."""

    why: str
    unknown: bool = False
    pause: float | None = 0.0


class Backoff:
    """Waits with jitter, longer from try to try."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._most = SPREAD

    def reset(self) -> None:
        """The link was good."""
        self._most = SPREAD

    def next(self) -> float:
        """Seconds to wait now."""
        wait = self._rng.uniform(FIRST_WAIT, self._most)
        self._most = min(2 * self._most, LONGEST_WAIT)
        return wait


class Redialled(ABC):
    """A link that is dialled again whenever it ends. Nobody who has something to tell waits for
    it.
    """

    def __init__(
        self,
        parts: Parts,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = parts
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._monotonic = monotonic
        self._backoff = Backoff(self._rng)
        self._way: Way | None = None
        self._report: device_pb2.DeviceReport | None = None
        self._told = False
        self._since = 0.0
        self.connected = False
        self.last_contact = 0.0
        """When the server was heard last, Unix seconds as the device knows them; 0: never."""
        self.problem = ""
        """Why there is no link, or was none last."""

    def tell(self, report: device_pb2.DeviceReport) -> None:
        """How the device is: sent on the link that there is and at the beginning of each."""
        self._report, self._told = report, False
        self._parts.wake.set()

    def way(self) -> Way | None:
        """How to fetch what is large; None while there is no link."""
        return self._way

    def _lose_way(self) -> None:
        if self._way is not None:
            self._way.close()
            self._way = None

    @abstractmethod
    async def _dialled(self) -> End:
        """One connection, for as long as it lasts. Raises Broken, OSError."""

    def _heard_now(self) -> None:
        self.last_contact = self._parts.clock.now()

    async def run(self) -> None:
        """Stay connected, until cancelled."""
        while True:
            self._parts.beat()
            try:
                await self._parts.shown.choose()
            except (NotEnrolled, BadSettings, OSError) as error:
                self._say(str(error))
                await self._rest(NOT_ENROLLED)
                continue
            end = await self._try()
            if end.pause is not None:
                await self._rest(end.pause + self._backoff.next())

    async def _rest(self, seconds: float) -> None:
        self._parts.beat.rest()
        await self._sleep(seconds)

    async def _try(self) -> End:
        """One connection, for as long as it lasts."""
        parts = self._parts
        parts.beat.rest()
        await parts.before_dial(HAND_SHAKE)
        parts.beat()
        try:
            with typed():
                end = await self._dialled()
        except Broken as error:
            end = End(str(error), error.unknown)
        except OSError as error:
            end = End(f"the disk: {error}")
        finally:
            welcomed, self.connected = self.connected, False
            self._lose_way()
        if welcomed and self._monotonic() - self._since >= GOOD_AFTER:
            self._backoff.reset()
        if not welcomed and end.pause is not None:
            parts.shown.failed(unknown=end.unknown, silent=parts.tunnel.silent)
        if self._say(parts.tunnel.problem or end.why) or welcomed:
            parts.listener.linked(up=False)
        return end

    def _say(self, problem: str) -> bool:
        """Whether it is another problem than before."""
        other = problem != self.problem
        if other:
            log.info("link.ended", reason=problem)
        self.problem = problem
        return other
