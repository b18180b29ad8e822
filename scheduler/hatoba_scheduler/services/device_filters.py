"""Which devices a list is asked for."""

from __future__ import annotations

from typing import NamedTuple

from hatoba.v1 import device_pb2
from hatoba_scheduler.convert import requirements_of
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.devices import Device, DeviceState, matches
from hatoba_scheduler.domain.records import LabelRequirement, Micros

NO_AGENT = "none"
"""Asks for devices that never said what agent they have."""


class DeviceFilter(NamedTuple):
    """What all of must hold; empty or None: whatever it is."""

    selector: tuple[LabelRequirement, ...] = ()
    away: Micros | None = None
    """Out of reach for at least so long."""
    behind: bool = False
    states: frozenset[DeviceState] = frozenset()
    platform: str = ""
    agent: str = ""

    def fits(self, device: Device, silent: Micros | None) -> bool:
        """Whether a device is listed, who may not have anything any more included. `silent`: for
        how long nothing was heard of it; None: it is connected."""
        return (
            matches(changed(device, state=DeviceState.ENROLLED), self.selector)
            and (not self.states or device.state in self.states)
            and (self.away is None or (silent is not None and silent >= self.away))
            and (not self.behind or device.behind)
            and (not self.platform or self._made_for(device))
            and (not self.agent or self.agent == (device.agent or NO_AGENT))
        )

    def _made_for(self, device: Device) -> bool:
        return self.platform in (str(device.platform), device.platform.architecture)


def filter_of(request: device_pb2.ListDevicesRequest) -> DeviceFilter:
    """What a request asks for."""
    return DeviceFilter(
        requirements_of(request.selector),
        request.away.ToMicroseconds() if request.HasField("away") else None,
        request.behind,
        frozenset(map(DeviceState, request.states)),
        request.platform,
        request.agent,
    )
