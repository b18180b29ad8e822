"""The conformance kit on `hosts`, in containers: a real worker, and a real Docker engine."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from hosts_house import HostsHarness, ReplicasHarness
from testbed_fixtures import DockerEngine

from hatoba.v1 import job_pb2, worker_pb2
from hatoba_plugins.conformance import (
    Command,
    DeploymentConformance,
    DeploymentHarness,
    FaultInjector,
    JobConformance,
    JobHarness,
    Life,
)
from hatoba_plugins.conformance.proxy import Docker, FaultProxy
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


class EngineFaults(FaultInjector):
    """What happens between the worker and its engine, to both calls that a launch makes there."""

    CALLS = ("create containers", "start containers")

    def __init__(self, harness: ContainersHarness) -> None:
        self._harness = harness

    async def reply_lost_after_effect(self) -> None:
        for call in self.CALLS:
            self._harness.proxy.lose_reply(call)

    async def delay_reply(self, seconds: float) -> None:
        for call in self.CALLS:
            self._harness.proxy.delay_reply(call, min(seconds, 2.0))

    async def double_reply(self) -> None:
        # To start what has ended is to run it again: nobody repeats that on an engine's socket.
        self._harness.proxy.double("create containers")


class ContainersHarness(Contained):
    """Every command runs in a container, and leaves its mark where all of them see it."""

    proxy: FaultProxy

    def __init__(self, directory: Path, engine: DockerEngine, short: str) -> None:
        """`short` is a directory for a socket, whose path must be short."""
        marks = directory / "marks"
        self._socket = f"{short}/engine.sock"
        super().__init__(directory, "--engine", self._socket, "--mount", str(marks))
        self.faults = EngineFaults(self)
        self._engine = engine
        marks.chmod(0o777)
        self._image = engine.busybox

    async def __aenter__(self) -> Self:
        running = FaultProxy.running(self._engine.host, Docker(), at=f"unix://{self._socket}")
        self.proxy = await self._world.enter_async_context(running)
        return await super().__aenter__()

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        spec = super().command(kind, name)
        spec.environment.image = self._image
        return spec


class TestHostsContainers(JobConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path, docker_engine: DockerEngine) -> Iterator[JobHarness]:
        with tempfile.TemporaryDirectory(prefix="hatoba-kit-") as short:
            yield ContainersHarness(tmp_path, docker_engine, short)


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
