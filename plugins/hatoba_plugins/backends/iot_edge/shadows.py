"""Devices that dial AWS IoT: what is wanted of them, and what they say, in their shadows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

from hatoba.v1 import device_pb2
from hatoba_plugins.aws import Unanswered
from hatoba_plugins.backends.iot_edge.calls import AT_ONCE, IotCalls
from hatoba_plugins.backends.iot_edge.listening import Listener
from hatoba_plugins.backends.iot_edge.things import AGAIN, Things
from hatoba_plugins.backends.iot_edge.wishing import Wishes
from hatoba_plugins.errors import BackendError, Retry, Throttled
from hatoba_plugins.lanes import Lanes
from hatoba_plugins.values import (
    DeviceKept,
    DeviceNews,
    DeviceWish,
    Health,
    HealthStatus,
    NotYet,
    ReleaseOutcome,
    WishOutcome,
)


class AwsIotDevices:
    """A DeviceBackend. What is wanted is kept for who is away, by AWS; `things` makes devices."""

    def __init__(self, calls: IotCalls, things: Things, wishes: Wishes, listener: Listener) -> None:
        self.things = things
        self._calls = calls
        self._wishes = wishes
        self._listener = listener
        self._lanes = Lanes(AT_ONCE)
        self._enrolling: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def desire(self, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        """See DeviceBackend. Raises Unanswered where it is not known what became of a wish."""
        return await self._wishes.desire(wishes)

    def reports(self) -> AsyncIterator[DeviceNews]:
        """See DeviceBackend."""
        return self._listener.reports()

    def records(self) -> AsyncIterator[DeviceKept]:
        """See BringsRecords: nothing comes without a queue."""
        return self._listener.records()

    async def stored(self, device: str, position: int) -> None:
        """See BringsRecords. Raises a BackendError."""
        await self._listener.stored(device, position)

    async def forget(self, devices: Sequence[str]) -> list[ReleaseOutcome]:
        """See DeviceBackend: their certificates, shadows and things are deleted. Raises a
        BackendError where the server may not do that."""
        return await self._lanes.each(list(devices), self._forget, "forget")

    async def _forget(self, device: str) -> ReleaseOutcome:
        self.things.leaving.add(device)
        self._listener.drop(device)
        try:
            await self._wishes.forget(device)
        except (Retry, Throttled, Unanswered) as error:
            return NotYet(device, getattr(error, "after", None) or AGAIN)
        return await self.things.forget(device)

    async def check_free(self, device: str) -> None:
        """See SignsDevices. Raises a BackendError."""
        with _to_be_asked_again():
            await self.things.check_free(device)

    async def enroll(self, device: str, csr: str) -> device_pb2.DeviceIdentity:
        """See SignsDevices. Raises a BackendError."""
        lock = self._enrolling.setdefault(device, asyncio.Lock())
        async with lock:
            with _to_be_asked_again():
                identity = await self.things.certified(device, csr)
                if identity is None:
                    self._listener.drop(device)
                    try:
                        identity = await self.things.enroll(device, csr)
                    finally:
                        await self._wishes.look_again(device)
                return await self.things.told(identity)

    async def revoke(self, device: str) -> None:
        """See SignsDevices. Raises a BackendError."""
        with _to_be_asked_again():
            await self.things.revoke(device)

    async def health(self) -> Health:
        """Whether AWS IoT answers, and devices are heard."""
        try:
            await self._calls.endpoint()
        except (BackendError, Unanswered) as error:
            return Health(HealthStatus.UNHEALTHY, str(error))
        if trouble := self._listener.trouble:
            return Health(HealthStatus.UNHEALTHY, trouble)
        return Health(HealthStatus.HEALTHY)


@contextmanager
def _to_be_asked_again() -> Iterator[None]:
    """Raises Retry in place of Unanswered: what was done perhaps may be done again."""
    try:
        yield
    except Unanswered as error:
        raise Retry(str(error), after=AGAIN) from error
