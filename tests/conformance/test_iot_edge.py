"""The conformance kit on `iot-edge-arm` over gRPC: the server's port for devices with mTLS, its
hub, service and store, and devices that are clients of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_site import EdgeHarness

from hatoba_plugins.conformance import DeviceConformance, DeviceHarness


class TestIotEdge(DeviceConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[DeviceHarness]:
        harness = EdgeHarness(tmp_path)
        yield harness
        harness.free()
