"""The conformance kit of jobs on `iot-edge-arm`: the server's port for devices with mTLS, and an
agent's tunnel, worker and keeper with real processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_jobs import EdgeJobsHarness

from hatoba_plugins.conformance import JobConformance, JobHarness


class TestIotEdgeJobs(JobConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Iterator[JobHarness]:
        harness = EdgeJobsHarness(tmp_path)
        yield harness
        harness.free()
