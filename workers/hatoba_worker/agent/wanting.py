"""What the server wants, on its way to the conductor: of all that came only the newest counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import structlog

from hatoba.v1 import device_pb2, worker_pb2
from hatoba_worker.agent.names import slot_name
from hatoba_worker.agent.slots import Release, Slots, Wanted
from hatoba_worker.agent.watchdog import Beat

log = structlog.get_logger(__name__)

AGAIN = 30.0
"""Seconds until what a full disk did not take is tried again."""


class Offers(Protocol):
    """Keeps specifications."""

    async def offer(self, spec: worker_pb2.ReplicaSpec) -> str:
        """Keep one that may be wanted; its digest. Raises OSError."""
        ...


class Wants(Protocol):
    """Who brings it about."""

    slots: Slots

    async def want(self, generation: int, wanted: Mapping[str, Wanted]) -> bool:
        """See `Conductor.want`."""
        ...


class Wanting:
    """Takes in what is wanted, one after the other. `taken` hears of each that was, or was not."""

    def __init__(
        self,
        offers: Offers,
        wants: Wants,
        taken: Callable[[], None],
        beat: Beat,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._offers = offers
        self._wants = wants
        self._taken = taken
        self._beat = beat
        self._sleep = sleep
        self._newest: device_pb2.DeviceDesired | None = None
        self._came = asyncio.Event()
        self.problem = ""
        """Why the newest could not be taken in yet; empty: it was."""

    def take(self, desired: device_pb2.DeviceDesired) -> None:
        """The server wants this; what waits and is older is forgotten."""
        if self._newest is None or desired.generation > self._newest.generation:
            self._newest = desired
            self._came.set()

    async def run(self) -> None:
        """Take in what comes, until cancelled."""
        while True:
            self._beat.rest()
            await self._came.wait()
            self._came.clear()
            self._beat()
            desired, self._newest = self._newest, None
            if desired is None or desired.generation <= self._wants.slots.generation:
                continue
            try:
                await self._wants.want(desired.generation, await self._offered(desired))
                self.problem = ""
                self._taken()
            except OSError as error:
                log.error("agent.not_taken", generation=desired.generation, error=str(error))
                self.problem = f"generation {desired.generation} cannot be kept: {error}"
                self._taken()
                await self._again(desired)

    async def _offered(self, desired: device_pb2.DeviceDesired) -> dict[str, Wanted]:
        wanted = {}
        for want in desired.wants:
            try:
                name = slot_name(want.deployment)
            except ValueError as error:
                # One that cannot be must not keep the others from coming.
                log.error("agent.not_wanted", error=str(error))
                continue
            digest = await self._offers.offer(want.spec)
            release = Release(want.revision, want.tries, digest)
            wanted[name] = Wanted(release, want.bake.ToTimedelta().total_seconds())
        return wanted

    async def _again(self, desired: device_pb2.DeviceDesired) -> None:
        self._beat.rest()
        await self._sleep(AGAIN)
        self.take(desired)
