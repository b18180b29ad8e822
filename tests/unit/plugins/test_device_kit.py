"""The kit of devices."""
from __future__ import annotations
import pytest
from far_service import ServiceHarness
from hatoba_plugins.conformance import DeviceConformance, DeviceHarness

class TestKeeps(DeviceConformance):
    @pytest.fixture
    def harness(self) -> DeviceHarness:
        return ServiceHarness()

class TestPasses(DeviceConformance):
    @pytest.fixture
    def harness(self) -> DeviceHarness:
        return ServiceHarness(keeps=False)
