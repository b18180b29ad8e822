"""The conformance kit on `hosts`, in containers: a real worker, and a real Docker engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType

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
from hatoba_worker.executors.containers.choosing import key_of


class Contained(HostsHarness):
    """Leaves nothing in the engine: no server of the kit ever says that all is stored."""

    _engine: DockerEngine

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        await asyncio.to_thread(self._clear)

    def _clear(self) -> None:
        label = f"label=hatoba.dev/host={key_of('kit', self._data)}"
        for name in self._engine.docker("ps", "-aq", "--filter", label).split():
            self._engine.docker("rm", "-f", "-v", name)


class ContainersHarness(Contained):
    """Every command runs in a container, and leaves its mark where all of them see it."""

    def __init__(self, directory: Path, engine: DockerEngine) -> None:
        marks = directory / "marks"
        super().__init__(directory, "--engine", engine.socket, "--mount", str(marks))
        self._engine = engine
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


class ContainedReplicasHarness(Contained, ReplicasHarness):
    """Real model servers, each in a container."""

    def __init__(self, directory: Path, engine: DockerEngine, image: str) -> None:
        super().__init__(directory, "--engine", engine.socket)
        self._image = image
        self._engine = engine

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
