"""The public conformance kit: what the core relies on, as tests that any backend can run.

A backend's author writes, in a test module of their own, with pytest and pytest-asyncio installed:

    from hatoba_plugins.conformance import JobConformance, JobHarness, ShellHarness

    class TestMyBackend(JobConformance):
        @pytest.fixture
        def harness(self, tmp_path: Path) -> JobHarness:
            return ShellHarness(MyType(), {"option": "value"}, marks=tmp_path / "marks")

`ShellHarness` serves a backend whose commands run on this machine; for another one, derive from
`BackendHarness` and say which specification succeeds, fails, goes on until it is stopped. With a
`FaultInjector` the tests of faults run too; those it does not know are skipped, with their names.
`DeploymentConformance` does the same for a deployment role: derive from `ReplicaHarness` and say
what replicas are made from. `DeviceConformance` does it for a device role: derive from `FarHarness`
and play devices at the far end. Each test's docstring is a rule of the contract.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "hatoba_plugins.conformance.jobs",
    "hatoba_plugins.conformance.deployments",
    "hatoba_plugins.conformance.fleets",
    "hatoba_plugins.conformance.devices",
    "hatoba_plugins.conformance.sites",
)

from hatoba_plugins.conformance.deployments import (  # noqa: E402 - the rewriting must come first
    DeploymentConformance,
)
from hatoba_plugins.conformance.devices import DeviceConformance  # noqa: E402
from hatoba_plugins.conformance.far import (  # noqa: E402
    Ability,
    DeviceFaults,
    DeviceHarness,
    FarDevice,
    FarHarness,
)
from hatoba_plugins.conformance.harness import (  # noqa: E402
    BackendHarness,
    Command,
    DeploymentHarness,
    FaultInjector,
    GatedBudget,
    JobHarness,
    Life,
    NoWorkers,
    ReplicaHarness,
    ShellHarness,
)
from hatoba_plugins.conformance.jobs import JobConformance  # noqa: E402

__all__ = [
    "Ability",
    "BackendHarness",
    "Command",
    "DeploymentConformance",
    "DeploymentHarness",
    "DeviceConformance",
    "DeviceFaults",
    "DeviceHarness",
    "FarDevice",
    "FarHarness",
    "FaultInjector",
    "GatedBudget",
    "JobConformance",
    "JobHarness",
    "Life",
    "NoWorkers",
    "ReplicaHarness",
    "ShellHarness",
]
