"""The conformance kit on `iot-edge-arm` over AWS IoT: ministack's registry, shadows, rules, queue
and broker, with devices that are MQTT clients of it. Between backend and ministack stands a proxy
that breaks what the kit wants broken.
"""

from __future__ import annotations

import pytest
from iot_yard import IotHarness, IotYard, iot_credentials, iot_yard

from hatoba_plugins.conformance import DeviceConformance, DeviceHarness

__all__ = ["iot_credentials", "iot_yard"]


@pytest.mark.usefixtures("iot_credentials")
class TestIotEdgeOnAws(DeviceConformance):
    @pytest.fixture
    def harness(self, iot_yard: IotYard) -> DeviceHarness:
        return IotHarness(iot_yard)
