"""The conformance kit on `mock`, with every fault that the kit knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from hatoba.v1 import job_pb2, worker_pb2
from hatoba_plugins.backends.mock import Fault, FaultKind, FirstClaimWins, MockType, MockWorld
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance import (
    BackendHarness,
    Command,
    DeploymentConformance,
    DeploymentHarness,
    FaultInjector,
    JobConformance,
    JobHarness,
    Life,
    ReplicaHarness,
)
from hatoba_plugins.errors import BackendError, Denied, Retry

SCRIPTS: dict[Command, dict[str, Any]] = {
    Command.SUCCEEDS: {"run_for": 1.0},
    Command.FAILS: {"run_for": 1.0, "exit_code": 3},
    Command.RUNS: {"run_for": 10_000.0},
    Command.IGNORES_STOP: {"run_for": 10_000.0, "on_stop": "ignore"},
    Command.PRINTS: {},
}


class MockFaults(FaultInjector):
    """Everything the kit can ask for, the world can do."""

    def __init__(self, world: MockWorld, operation: str = "create") -> None:
        self.world = world
        self.operation = operation

    async def reply_lost_after_effect(self) -> None:
        self.world.lose_reply(self.operation)

    async def delay_reply(self, seconds: float) -> None:
        self.world.delay_reply(seconds, self.operation)

    async def double_reply(self) -> None:
        self.world.double_reply(self.operation)

    async def land_late(self, seconds: float) -> None:
        self.world.land_late(seconds, self.operation)

    async def conflict(self, name: str) -> None:
        self.world.plant_foreign(name)

    async def hide_for(self, seconds: float) -> None:
        self.world.hide_launches(seconds)

    async def throttle(self) -> None:
        self.world.throttle()

    async def overload(self) -> None:
        self.world.refuse_launch(Retry("it has too much to do", after=1.0))

    async def disguise_denial(self) -> None:
        for _ in ("find", "observe"):
            self._refuse("describe", Denied("nobody may ask"))

    async def expire_pages(self) -> None:
        self._refuse("list", Retry("the page has expired", after=1.0))

    def _refuse(self, operation: str, error: BackendError) -> None:
        self.world.faults.add(operation, Fault(FaultKind.REFUSED, error=error))

    async def unreachable_for(self, seconds: float) -> None:
        self.world.cut(seconds)

    async def delete_behind(self, name: str) -> None:
        self.world.delete_behind(name)

    async def double_run(self) -> None:
        self.world.double_run()

    async def gap(self) -> None:
        self.world.gap()

    async def end_watches(self) -> None:
        self.world.end_watches()


class MockHarness(BackendHarness):
    """The ledger is the oracle of starts."""

    def __init__(self, world: MockWorld, options: dict[str, object]) -> None:
        super().__init__(MockType(world), options, clock=FakeClock(), faults=MockFaults(world))
        self.world = world

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        spec = job_pb2.JobSpec(name="conformance", command=["true"])
        return json_format.ParseDict({"backend_options": {"mock": SCRIPTS[kind]}}, spec)

    async def starts(self, name: str) -> int | None:
        return self.world.count("start", name)


class TestMock(JobConformance):
    """With a ledger file: opening it again rebuilds the world from it."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> JobHarness:
        world = MockWorld(tmp_path / "ledger.jsonl", runner=FirstClaimWins())
        return MockHarness(world, {"gpus": 2})


class TestMockInMemory(JobConformance):
    """Without a file, and with less ability."""

    @pytest.fixture
    def harness(self) -> JobHarness:
        lacks: list[object] = ["native_arrays", "requirements", "inputs", "memory_limit"]
        return MockHarness(MockWorld(runner=FirstClaimWins()), {"lacks": lacks, "elastic": True})


LIVES: dict[Life, str] = {
    Life.READY: '{"starts_in": 1, "drains_for": 1}',
    Life.NEVER_READY: '{"never_ready": true}',
    Life.CRASHES: '{"crash_after": 5, "crashes": 2}',
}


class ReplicaFaults(MockFaults):
    """The same, with replicas."""

    async def delete_behind(self, name: str) -> None:
        self.world.delete_replica(name)


class MockReplicas(ReplicaHarness):
    """Replicas that live by their templates' scripts."""

    def __init__(self, world: MockWorld, options: dict[str, object]) -> None:
        faults = ReplicaFaults(world, "apply")
        super().__init__(MockType(world), options, clock=FakeClock(), faults=faults)

    def template(self, life: Life) -> worker_pb2.ReplicaSpec:
        return worker_pb2.ReplicaSpec(env={"MOCK_REPLICA": LIVES[life]})


class TestMockDeployments(DeploymentConformance):
    """With a ledger file: opening it again rebuilds deployments and replicas from it."""

    @pytest.fixture
    def harness(self, tmp_path: Path) -> DeploymentHarness:
        return MockReplicas(MockWorld(tmp_path / "ledger.jsonl"), {})


class TestMockDeploymentsInMemory(DeploymentConformance):
    """Without a file, and without shares of the traffic."""

    @pytest.fixture
    def harness(self) -> DeploymentHarness:
        return MockReplicas(MockWorld(), {"lacks": ["canary"]})
