"""Harnesses of `ecs` on ministack: what the kit and the tests of its roll-outs share."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Self

import pytest
from aws_proxy import AwsProxy
from batch_yard import ClaimDesk
from ecs_yard import REGION, Curtain, clear, ecs, kit_image, make_log_group
from testbed_fixtures import AwsEmulator, DockerEngine, fresh_name

from hatoba.v1 import job_pb2, worker_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.ecs import EcsType
from hatoba_plugins.conformance import (
    BackendHarness,
    Command,
    FaultInjector,
    Life,
    ReplicaHarness,
)
from hatoba_plugins.conformance.harness import PATIENCE, OpenHarness
from hatoba_plugins.values import Phase, Ref

OUTLASTS_RETRIES = 3.0
"""Seconds after which a question that nobody answers is given up."""
SCRIPTS = {
    Command.SUCCEEDS: "exit 0",
    Command.FAILS: "exit 3",
    Command.RUNS: "exec sleep 1000",
    Command.IGNORES_STOP: "trap '' TERM; exec sleep 1000",
    Command.PRINTS: "echo hello from the kit",
}


class EcsOutside(OpenHarness):
    """ministack behind a proxy, a cluster of its own, and a desk at which runners claim."""

    def __init__(self, emulator: AwsEmulator, engine: DockerEngine, image: str) -> None:
        super().__init__(EcsType(), {})
        self.curtain = Curtain()
        self.emulator = emulator
        self.image = image
        self.cluster = fresh_name("kit")
        self.log_group = make_log_group(emulator, f"/hatoba/{self.cluster}")
        self._engine = engine
        self._outside = AsyncExitStack()
        self.options = self._options("http://127.0.0.1:9")
        ecs(emulator).create_cluster(clusterName=self.cluster)

    def _options(self, endpoint: str) -> dict[str, object]:
        return {
            "region": REGION,
            "endpoint": endpoint,
            "cluster": self.cluster,
            "subnets": ["subnet-1"],
            "log_group": self.log_group,
            "readiness": "probe",
            "poll_every": 0.2,
            "find_settles_after": 1.0,
        }

    def context(self) -> BackendContext:
        return replace(super().context(), advertise=self.desk.address)

    async def __aenter__(self) -> Self:
        if not hasattr(self, "proxy"):
            running = AwsProxy.before(self.emulator.endpoint)
            self.proxy = await self._outside.enter_async_context(running)
            self.proxy.rewrite.append(self.curtain)
            desk = ClaimDesk.open(self._engine.gateway)
            self.desk = await self._outside.enter_async_context(desk)
            self.options = self._options(self.proxy.endpoint)
        return await super().__aenter__()

    async def close(self) -> None:
        """End proxy and desk, and what is left in the cluster."""
        await self._outside.aclose()
        await asyncio.to_thread(clear, self.emulator, self.cluster)


class EcsFaults(FaultInjector):
    """What the proxy can do to the call that makes something."""

    def __init__(self, harness: EcsOutside, operation: str) -> None:
        self._harness = harness
        self._operation = operation

    async def reply_lost_after_effect(self) -> None:
        self._harness.proxy.lose_reply(self._operation)

    async def delay_reply(self, seconds: float) -> None:
        self._harness.proxy.delay_reply(self._operation, seconds)

    async def double_reply(self) -> None:
        self._harness.proxy.double(self._operation)

    async def land_late(self, seconds: float) -> None:
        self._harness.proxy.land_late(self._operation, seconds)

    async def until_called(self) -> None:
        await self._harness.proxy.met.wait()

    async def throttle(self) -> None:
        self._harness.proxy.throttle(self._operation)

    async def gap(self) -> None:
        pytest.skip("ECS has no watches")

    async def end_watches(self) -> None:
        pytest.skip("ECS has no watches")

    async def unreachable_for(self, seconds: float) -> None:
        # A question is asked four times before it is given up, and a short cut is got over.
        proxy = self._harness.proxy
        proxy.cut = True
        loop = asyncio.get_running_loop()
        loop.call_later(max(seconds, OUTLASTS_RETRIES), setattr, proxy, "cut", False)


class JobFaults(EcsFaults):
    """And what happens to tasks."""

    async def overload(self) -> None:
        self._harness.proxy.overload(self._operation, after=1)

    async def disguise_denial(self) -> None:
        self._harness.proxy.disguise_denial("listtasks")
        self._harness.proxy.disguise_denial("describetasks")

    async def expire_pages(self) -> None:
        self._harness.proxy.page_size = 1
        self._harness.proxy.expire_page("listtasks")

    async def double_run(self) -> None:
        self._harness.proxy.double(self._operation)

    async def hide_for(self, seconds: float) -> None:
        self._harness.curtain.hide_new_for(seconds)

    async def delete_behind(self, name: str) -> None:
        self._harness.curtain.names.add(name)

    async def conflict(self, name: str) -> None:
        await asyncio.to_thread(self._run_foreign, name)

    def _run_foreign(self, name: str) -> None:
        client = ecs(self._harness.emulator)
        container = {"name": "other", "image": self._harness.image, "command": ["serve"]}
        made = client.register_task_definition(
            family=fresh_name("foreign"), containerDefinitions=[container]
        )
        definition = made["taskDefinition"]["taskDefinitionArn"]
        client.run_task(cluster=self._harness.cluster, taskDefinition=definition, startedBy=name)


class EcsJobHarness(EcsOutside, BackendHarness):
    """Jobs whose image has a runner, or `none`."""

    def __init__(
        self, emulator: AwsEmulator, engine: DockerEngine, image: str, runner: str = "image"
    ) -> None:
        self._runner = runner
        super().__init__(emulator, engine, image)
        self.faults = JobFaults(self, "runtask")

    def _options(self, endpoint: str) -> dict[str, object]:
        return super()._options(endpoint) | {"runner": self._runner}

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        spec = job_pb2.JobSpec(name="conformance", command=["/bin/sh", "-c", SCRIPTS[kind]])
        spec.environment.image = self.image
        return spec

    async def starts(self, name: str) -> int | None:
        return self.desk.starts[name]

    async def until_started(self, ref: Ref) -> None:
        await self.wait(ref, Phase.RUNNING)
        async with asyncio.timeout(PATIENCE):
            await self.desk.until_started(ref.name)


class ReplicaFaults(EcsFaults):
    """And what happens to replicas."""

    async def delete_behind(self, name: str) -> None:
        await asyncio.to_thread(self._stop, name)

    def _stop(self, name: str) -> None:
        client, cluster = ecs(self._harness.emulator), self._harness.cluster
        for arn in client.list_tasks(cluster=cluster)["taskArns"]:
            if arn.rsplit("/", 1)[-1].startswith(name.rsplit("-", 1)[-1]):
                client.stop_task(cluster=cluster, task=arn, reason="by an operator")


class EcsReplicaHarness(EcsOutside, ReplicaHarness):
    """Replicas whose image has a model server."""

    def __init__(self, emulator: AwsEmulator, engine: DockerEngine, image: str) -> None:
        super().__init__(emulator, engine, image)
        self.faults = ReplicaFaults(self, "createservice")

    def template(self, life: Life) -> worker_pb2.ReplicaSpec:
        made = worker_pb2.ReplicaSpec(env={"KIT_LIFE": life.value})
        made.serving.environment.image = self.image
        made.serving.handler = "kit:Model"
        return made


@pytest.fixture
def credentials(ministack: AwsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """ministack's, in the environment of a test."""
    for key, text in ministack.credentials.items():
        monkeypatch.setenv(key, text)


@pytest.fixture(scope="session")
def ecs_image(
    docker_engine: DockerEngine, registry: str, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return kit_image(docker_engine, registry, tmp_path_factory.mktemp("ecs-image"))
