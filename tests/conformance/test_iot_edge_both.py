"""The conformance kit on `iot-edge-arm` with devices of both kinds, those of AWS IoT being asked:
what is told of them comes through the role that is of both.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from iot_yard import IotHarness, IotYard, iot_credentials, iot_yard

from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.iot_edge.backend import EdgeBackend
from hatoba_plugins.backends.iot_edge.both import BothDevices
from hatoba_plugins.backends.iot_edge.shadows import AwsIotDevices
from hatoba_plugins.clock import SystemClock
from hatoba_plugins.conformance import DeviceConformance, DeviceHarness
from hatoba_scheduler.control.device_hub import DeviceHub

__all__ = ["iot_credentials", "iot_yard"]


class BothHarness(IotHarness):
    """Nobody dials the server."""

    def context(self) -> BackendContext:
        return replace(super().context(), devices=DeviceHub(SystemClock(), alive_every=10.0))

    @property
    def devices(self) -> AwsIotDevices:
        assert isinstance(self.backend, EdgeBackend)
        assert isinstance(self.backend.devices, BothDevices)
        assert isinstance(self.backend.devices.far, AwsIotDevices)
        return self.backend.devices.far


@pytest.mark.usefixtures("iot_credentials")
class TestIotEdgeOfBoth(DeviceConformance):
    @pytest.fixture
    def harness(self, iot_yard: IotYard) -> DeviceHarness:
        return BothHarness(iot_yard, transport="both")
