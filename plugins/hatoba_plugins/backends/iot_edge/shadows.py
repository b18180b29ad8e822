"""Devices that dial AWS IoT: what is wanted of them, and what they say, in their shadows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

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

    async def health(self) -> Health:
        """Whether AWS IoT answers, and devices are heard."""
        try:
            await self._calls.answers()
        except (BackendError, Unanswered) as error:
            return Health(HealthStatus.UNHEALTHY, str(error))
        if trouble := self._listener.trouble:
            return Health(HealthStatus.UNHEALTHY, trouble)
        return Health(HealthStatus.HEALTHY)
