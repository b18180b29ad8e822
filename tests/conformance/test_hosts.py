"""The conformance kit on `hosts`: the real hub, a real worker and keeper, real processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosts_house import HostsHarness, ReplicasHarness

from hatoba_plugins.conformance import (
    DeploymentConformance,
    DeploymentHarness,
    JobConformance,
    JobHarness,
)


class TestHosts(JobConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> JobHarness:
        return HostsHarness(tmp_path)


# Longer than the kit's own patience, which says what it waited for in vain.
@pytest.mark.timeout(300)
class TestHostsDeployments(DeploymentConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> DeploymentHarness:
        return ReplicasHarness(tmp_path)
