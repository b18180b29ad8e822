"""The conformance kit on `hosts`, in containers: a real worker, and a real Docker engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosts_house import HostsHarness, ReplicasHarness
from testbed_fixtures import DockerEngine

from hatoba.v1 import job_pb2, worker_pb2
from hatoba_plugins.conformance import (
    Command,
    DeploymentConformance,
    DeploymentHarness,
    JobConformance,
    JobHarness,
    Life,
)


class ContainersHarness(HostsHarness):
    """Every command runs in a container, and leaves its mark in a directory that all of them see."""

    def __init__(self, directory: Path, engine: DockerEngine) -> None:
        marks = directory / "marks"
        super().__init__(directory, "--engine", engine.socket, "--mount", str(marks))
        marks.chmod(0o777)
        self._image = engine.busybox

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        spec = super().command(kind, name)
        spec.environment.image = self._image
        return spec


class TestHostsContainers(JobConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path, docker_engine: DockerEngine) -> JobHarness:
        return ContainersHarness(tmp_path, docker_engine)


class ContainedReplicasHarness(ReplicasHarness):
    """Real model servers, each in a container."""

    def __init__(self, directory: Path, engine: DockerEngine, image: str) -> None:
        super().__init__(directory, "--engine", engine.socket)
        self._image = image

    def template(self, life: Life) -> worker_pb2.ReplicaSpec:
        spec = super().template(life)
        spec.serving.environment.Clear()
        spec.serving.environment.image = self._image
        return spec


class TestHostsContainedDeployments(DeploymentConformance):
    @pytest.fixture
    def harness(
        self, tmp_path: Path, docker_engine: DockerEngine, runtime_image: str
    ) -> DeploymentHarness:
        return ContainedReplicasHarness(tmp_path, docker_engine, runtime_image)
