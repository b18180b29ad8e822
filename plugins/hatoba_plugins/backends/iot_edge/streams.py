"""Devices that dial us: one stream each, by the core's hub."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from hatoba_plugins.backend import DeviceHub
from hatoba_plugins.values import (
    Accepted,
    Away,
    DeviceNews,
    DeviceWish,
    Released,
    ReleaseOutcome,
    Superseded,
    WishOutcome,
)


class StreamDevices:
    """A DeviceBackend. Nothing is kept here for who is away: the core wishes it again when a
    device comes.
    """

    def __init__(self, hub: DeviceHub) -> None:
        self._hub = hub
        self._newest: dict[str, int] = {}

    async def desire(self, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        """See DeviceBackend."""
        return [self._desire(wish) for wish in wishes]

    def _desire(self, wish: DeviceWish) -> WishOutcome:
        newest = self._newest.get(wish.device, 0)
        if wish.desired.generation < newest:
            return Superseded(wish.device, newest)
        self._newest[wish.device] = wish.desired.generation
        sent = self._hub.send(wish.device, wish.desired)
        return Accepted(wish.device) if sent else Away(wish.device)

    def reports(self) -> AsyncIterator[DeviceNews]:
        """See DeviceBackend."""
        return self._hub.watch()

    async def forget(self, devices: Sequence[str]) -> list[ReleaseOutcome]:
        """See DeviceBackend: their streams end."""
        for device in devices:
            self._newest.pop(device, None)
            self._hub.end(device, f"device {device!r} was decommissioned")
        return [Released(device) for device in devices]
