"""The conformance kit on `iot-edge-arm` over AWS IoT where each device is the agent's own link:
MQTT over TLS with its certificate, before ministack's registry, shadows, rules, queue and broker.
"""

from __future__ import annotations

import pytest
from agent_things import AgentIotHarness
from iot_yard import IotYard, iot_credentials, iot_yard

from hatoba_plugins.conformance import DeviceConformance, DeviceHarness

__all__ = ["iot_credentials", "iot_yard"]


@pytest.mark.usefixtures("iot_credentials")
class TestAgentsOnAws(DeviceConformance):
    @pytest.fixture
    def harness(self, iot_yard: IotYard) -> DeviceHarness:
        return AgentIotHarness(iot_yard)
