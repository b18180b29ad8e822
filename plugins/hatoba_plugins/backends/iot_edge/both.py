"""Devices of both kinds behind one role: those that dial us, and those that dial AWS IoT.

Who was enrolled to dial us is heard there alone: whoever may make things at AWS IoT cannot take its
name. Everybody else is AWS IoT's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar, cast

from hatoba.v1 import device_pb2
from hatoba_plugins.aws import Unanswered
from hatoba_plugins.backend import BringsRecords, Clock, DeviceBackend, SignsDevices
from hatoba_plugins.errors import BackendError, Retry
from hatoba_plugins.values import (
    DeviceKept,
    DeviceNews,
    DeviceWish,
    Gap,
    Health,
    HealthStatus,
    NotYet,
    RefusedWish,
    ReleaseOutcome,
    Synced,
    WishOutcome,
)

WAITING = 100
"""News that wait here for who reads; what comes faster waits in the half that tells it."""
AGAIN = 1.0
PATIENCE = 15.0
"""Seconds for which devices that dial us wait for AWS IoT: of one loop, both are told in turn."""
PAUSE = 30.0
"""Seconds for which AWS IoT is asked nothing after that."""

T = TypeVar("T")
Dials = Callable[[str], bool]


class FarHalf(DeviceBackend, BringsRecords, SignsDevices, Protocol):
    """The role as AWS IoT plays it."""

    async def health(self) -> Health:
        """How it is now."""
        ...


class _Ended(Exception):
    """A half tells no more."""


class _Turn:
    """Has one half not hold up the other."""

    def __init__(self, clock: Clock, patience: float) -> None:
        self._clock = clock
        self._patience = patience
        self._again_at = 0.0

    async def answer(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """The answer; None: there is none in time, or was none a moment ago."""
        if self._clock.monotonic() < self._again_at:
            return None
        try:
            async with asyncio.timeout(self._patience):
                return await ask()
        except TimeoutError:
            self._again_at = self._clock.monotonic() + PAUSE
            return None


class BothDevices:
    """A DeviceBackend of two. `dials` says of a device whether it dials us."""

    def __init__(
        self,
        streams: DeviceBackend,
        far: FarHalf,
        dials: Dials,
        clock: Clock,
        patience: float = PATIENCE,
    ) -> None:
        self._streams = streams
        self.far = far
        self._dials = dials
        self._turn = _Turn(clock, patience)

    # -- telling --------------------------------------------------------------------------------

    async def desire(self, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        """See DeviceBackend. What fails in one half is refused there, and decided in the other."""
        dialling = [self._dials(wish.device) for wish in wishes]
        here = [wish for wish, dials in zip(wishes, dialling, strict=True) if dials]
        there = [wish for wish, dials in zip(wishes, dialling, strict=True) if not dials]
        answered = iter(await _desire(self._streams, here))
        far = iter(await self._turn.answer(lambda: _desire(self.far, there)) or _unheard(there))
        return [next(answered if dials else far) for dials in dialling]

    async def forget(self, devices: Sequence[str]) -> list[ReleaseOutcome]:
        """See DeviceBackend: both forget each. Raises a BackendError as either half does."""
        here = await self._streams.forget(devices)
        asked = await self._turn.answer(lambda: self.far.forget(devices))
        there = asked or [NotYet(device, AGAIN) for device in devices]
        return [
            one if isinstance(one, NotYet) else other
            for one, other in zip(here, there, strict=True)
        ]

    # -- hearing --------------------------------------------------------------------------------

    async def reports(self) -> AsyncIterator[DeviceNews]:
        """See DeviceBackend. It ends with either half, and after a Gap of either: the next one
        tells everything of both again.
        """
        heard: asyncio.Queue[DeviceNews | Exception] = asyncio.Queue(WAITING)
        halves = (("streams", self._streams.reports()), ("far", self._of_far()))
        tellers = [
            # A TaskGroup would wrap what ends a generator; these are waited for below.
            asyncio.create_task(_tell(news, heard), name=f"iot-edge:{name}")  # noqa: TID251
            for name, news in halves
        ]
        try:
            async for one in _merged(heard, len(tellers)):
                yield one
        finally:
            for teller in tellers:
                teller.cancel()
            await asyncio.wait(tellers)

    async def _of_far(self) -> AsyncIterator[DeviceNews]:
        told = cast("AsyncGenerator[DeviceNews, None]", self.far.reports())
        async with aclosing(told) as news:
            async for one in news:
                if isinstance(one, Synced | Gap) or not self._dials(one.device):
                    yield one

    async def records(self) -> AsyncIterator[DeviceKept]:
        """See BringsRecords: who dials us sends them there."""
        async for kept in self.far.records():
            if not self._dials(kept.device):
                yield kept

    async def stored(self, device: str, position: int) -> None:
        """See BringsRecords. Raises a BackendError."""
        await self.far.stored(device, position)

    # -- becoming one of AWS IoT's --------------------------------------------------------------

    async def check_free(self, device: str) -> None:
        """See SignsDevices. Raises a BackendError."""
        await self.far.check_free(device)

    async def enroll(self, device: str, csr: str) -> device_pb2.DeviceIdentity:
        """See SignsDevices. Raises a BackendError."""
        return await self.far.enroll(device, csr)

    async def revoke(self, device: str) -> None:
        """See SignsDevices. Raises a BackendError."""
        await self.far.revoke(device)

    async def health(self) -> Health:
        """Degraded while AWS IoT is not well: devices that dial us are served all the same."""
        far = await self.far.health()
        if far.status is HealthStatus.HEALTHY:
            return far
        message = f"AWS IoT: {far.message}; devices that dial this server are served"
        return Health(HealthStatus.DEGRADED, message)


async def _desire(half: DeviceBackend, wishes: Sequence[DeviceWish]) -> Sequence[WishOutcome]:
    """What a half makes of its share. Where it is not known what became of it, it is to be wished
    again, which is the same."""
    try:
        return await half.desire(wishes) if wishes else ()
    except BackendError as error:
        refusal = error
    except Unanswered as error:
        refusal = Retry(str(error), after=AGAIN)
    return [RefusedWish(wish.device, refusal) for wish in wishes]


def _unheard(wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
    refusal = Retry("AWS IoT does not answer", after=AGAIN)
    return [RefusedWish(wish.device, refusal) for wish in wishes]


async def _tell(
    told: AsyncIterator[DeviceNews], heard: asyncio.Queue[DeviceNews | Exception]
) -> None:
    """Pass on what one half tells, and last why it ended."""
    try:
        async with aclosing(cast("AsyncGenerator[DeviceNews, None]", told)) as news:
            async for one in news:
                await heard.put(one)
    except Exception as error:  # noqa: BLE001 - it is raised to who reads
        await heard.put(error)
    else:
        await heard.put(_Ended())


async def _merged(
    heard: asyncio.Queue[DeviceNews | Exception], halves: int
) -> AsyncIterator[DeviceNews]:
    """What both tell, with the Synced of the last that is; raises what either raised."""
    unsynced = halves
    while True:
        one = await heard.get()
        if isinstance(one, _Ended):
            return
        if isinstance(one, Exception):
            raise one
        if isinstance(one, Synced):
            unsynced -= 1
            if unsynced:
                continue
        yield one
        if isinstance(one, Gap):
            return
