"""Brings what devices kept from a backend that carries it to the desk that stores it."""

from __future__ import annotations

from typing import Protocol

import structlog

from hatoba.v1 import device_pb2
from hatoba_plugins.backend import BringsRecords, Clock
from hatoba_plugins.errors import BackendError
from hatoba_scheduler.control.forever import forever

log = structlog.get_logger(__name__)


class Keeps(Protocol):
    """Has records durable."""

    async def keep(self, name: str, told: device_pb2.DeviceRecords) -> int:
        """See `DeviceRecordDesk.keep`."""
        ...


class KeptLoop:
    """Of one backend. What a failure costs comes again from the device."""

    def __init__(self, name: str, backend: BringsRecords, desk: Keeps, clock: Clock) -> None:
        self.name = name
        self._backend = backend
        self._desk = desk
        self._clock = clock

    async def run(self) -> None:
        """Bring it, until cancelled."""
        await forever(self._bring, self._clock, "device.records", self.name)

    async def _bring(self) -> None:
        async for kept in self._backend.records():
            position = await self._desk.keep(kept.device, kept.records)
            try:
                await self._backend.stored(kept.device, position)
            except BackendError as error:
                log.warning("device.not_told", device=kept.device, error=str(error))
