"""The conformance kit on `null`."""

from __future__ import annotations

import pytest
from google.protobuf import json_format

from hatoba.v1 import job_pb2, worker_pb2
from hatoba_plugins.backends.null import NullType
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance import (
    BackendHarness,
    Command,
    DeploymentConformance,
    DeploymentHarness,
    JobConformance,
    JobHarness,
    Life,
    ReplicaHarness,
)

LONG = 10_000.0
OPTIONS: dict[Command, dict[str, float]] = {
    Command.SUCCEEDS: {},
    Command.FAILS: {"exit_code": 3},
    Command.RUNS: {"delay": LONG},
    Command.IGNORES_STOP: {"delay": LONG},
    Command.PRINTS: {},
}


class NullHarness(BackendHarness):
    """What it is asked to run says only when and how it ends."""

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        spec = job_pb2.JobSpec(name="conformance", command=["true"])
        return json_format.ParseDict({"backend_options": {"null": OPTIONS[kind]}}, spec)


class TestNull(JobConformance):
    @pytest.fixture
    def harness(self) -> JobHarness:
        return NullHarness(NullType(), clock=FakeClock())


class TestNullWithDelay(JobConformance):
    @pytest.fixture
    def harness(self) -> JobHarness:
        return NullHarness(NullType(), {"delay": 1.0}, clock=FakeClock())


class NullReplicas(ReplicaHarness):
    """All that it can do is be ready."""

    def template(self, life: Life) -> worker_pb2.ReplicaSpec:
        if life is not Life.READY:
            pytest.skip(f"null has no replica that is {life.name}")
        return worker_pb2.ReplicaSpec()


class TestNullDeployments(DeploymentConformance):
    @pytest.fixture
    def harness(self) -> DeploymentHarness:
        return NullReplicas(NullType(), clock=FakeClock())
