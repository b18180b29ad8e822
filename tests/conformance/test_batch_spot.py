"""The conformance kit on `batch-spot`: moto's Batch, which runs every job in a real container.

Between them stands a proxy that breaks what the kit wants broken and adds the exit codes that moto
leaves out of details. In the image a shell script claims like the runner does, at a desk that
grants each attempt once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Self

import pytest
from aws_proxy import AwsProxy
from batch_yard import REGION, ClaimDesk, Curtain, aws, exit_codes, kit_image, make_queue
from testbed_fixtures import AwsEmulator, DockerEngine

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.batch_spot import BatchType
from hatoba_plugins.conformance import (
    BackendHarness,
    Command,
    FaultInjector,
    JobConformance,
    JobHarness,
)
from hatoba_plugins.conformance.harness import PATIENCE
from hatoba_plugins.values import Phase, Ref

OUTLASTS_RETRIES = 2.0
SCRIPTS = {
    Command.SUCCEEDS: "exit 0",
    Command.FAILS: "exit 3",
    Command.RUNS: "exec sleep 1000",
    Command.IGNORES_STOP: "trap '' TERM; exec sleep 1000",
    Command.PRINTS: "echo hello from the kit",
}


class BatchFaults(FaultInjector):
    """What the proxy can do. Batch has no watches and moto no pages, so there are none to break."""

    def __init__(self, harness: BatchHarness) -> None:
        self._harness = harness

    @property
    def proxy(self) -> AwsProxy:
        return self._harness.proxy

    async def reply_lost_after_effect(self) -> None:
        self.proxy.lose_reply("submitjob")

    async def delay_reply(self, seconds: float) -> None:
        self.proxy.delay_reply("submitjob", seconds)

    async def double_reply(self) -> None:
        self.proxy.double("submitjob")

    async def double_run(self) -> None:
        self.proxy.double("submitjob")

    async def land_late(self, seconds: float) -> None:
        self.proxy.land_late("submitjob", seconds)

    async def until_called(self) -> None:
        await self.proxy.met.wait()

    async def throttle(self) -> None:
        self.proxy.throttle("submitjob")

    async def overload(self) -> None:
        self.proxy.overload("submitjob", after=1)

    async def disguise_denial(self) -> None:
        self.proxy.disguise_denial("listjobs")
        self.proxy.disguise_denial("describejobs")

    async def gap(self) -> None:
        pytest.skip("Batch has no watches")

    async def end_watches(self) -> None:
        pytest.skip("Batch has no watches")

    async def expire_pages(self) -> None:
        pytest.skip("moto lists without pages; tests/integration/batch_spot has them")

    async def hide_for(self, seconds: float) -> None:
        self._harness.curtain.hide_new_for(seconds)

    async def delete_behind(self, name: str) -> None:
        self._harness.curtain.names.add(name)

    async def conflict(self, name: str) -> None:
        await asyncio.to_thread(self._harness.submit_foreign, name)

    async def unreachable_for(self, seconds: float) -> None:
        # A question is asked four times before it is given up, and a short cut is got over.
        self.proxy.cut = True
        loop = asyncio.get_running_loop()
        loop.call_later(max(seconds, OUTLASTS_RETRIES), setattr, self.proxy, "cut", False)


class BatchHarness(BackendHarness):
    """A queue of its own for each test."""

    def __init__(
        self, emulator: AwsEmulator, engine: DockerEngine, image: str, runner: str = "image"
    ) -> None:
        super().__init__(BatchType(), {})
        self.faults = BatchFaults(self)
        self.curtain = Curtain()
        self._emulator = emulator
        self._engine = engine
        self._image = image
        self._runner = runner
        self._queue = make_queue(emulator)
        self._outside = AsyncExitStack()
        self.options = self._options("http://127.0.0.1:9")

    def _options(self, endpoint: str) -> dict[str, object]:
        return {
            "region": REGION,
            "endpoint": endpoint,
            "queues": {"spot": {"queue": self._queue}},
            "sweep_every": 0.3,
            "settles_after": 1.0,
            "runner": self._runner,
        }

    def context(self) -> BackendContext:
        return replace(super().context(), advertise=self.desk.address)

    async def __aenter__(self) -> Self:
        if not hasattr(self, "proxy"):
            running = AwsProxy.before(self._emulator.endpoint)
            self.proxy = await self._outside.enter_async_context(running)
            self.proxy.rewrite += [exit_codes, self.curtain]
            self.desk = await self._outside.enter_async_context(
                ClaimDesk.open(self._engine.gateway)
            )
            self.options = self._options(self.proxy.endpoint)
        return await super().__aenter__()

    async def close(self) -> None:
        """End proxy and desk."""
        await self._outside.aclose()

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        spec = job_pb2.JobSpec(name="conformance", command=["/bin/sh", "-c", SCRIPTS[kind]])
        spec.environment.image = self._image
        return spec

    async def starts(self, name: str) -> int | None:
        return self.desk.starts[name]

    async def until_started(self, ref: Ref) -> None:
        await self.wait(ref, Phase.RUNNING)
        async with asyncio.timeout(PATIENCE):
            await self.desk.until_started(ref.name)

    def submit_foreign(self, name: str) -> None:
        """A job of this name that somebody else has."""
        batch = aws(self._emulator, "batch")
        definition = batch.register_job_definition(
            jobDefinitionName=f"foreign-{name}"[:128],
            type="container",
            containerProperties={
                "image": self._image,
                "vcpus": 1,
                "memory": 64,
                "command": ["true"],
            },
        )
        batch.submit_job(
            jobName=name, jobQueue=self._queue, jobDefinition=definition["jobDefinitionArn"]
        )


@pytest.fixture(scope="session")
def batch_image(docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> str:
    return kit_image(docker_engine, tmp_path_factory.mktemp("kit-image"))


@pytest.mark.timeout(300)
class TestBatchSpot(JobConformance):
    """With a runner in the image."""

    @pytest.fixture
    async def harness(
        self,
        moto: AwsEmulator,
        docker_engine: DockerEngine,
        batch_image: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> AsyncIterator[JobHarness]:
        for key, text in moto.credentials.items():
            monkeypatch.setenv(key, text)
        made = await asyncio.to_thread(BatchHarness, moto, docker_engine, batch_image)
        yield made
        await made.close()


@pytest.mark.timeout(300)
async def test_without_a_runner_logs_come_from_cloudwatch(
    moto: AwsEmulator,
    docker_engine: DockerEngine,
    batch_image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, text in moto.credentials.items():
        monkeypatch.setenv(key, text)
    harness = await asyncio.to_thread(BatchHarness, moto, docker_engine, batch_image, "none")
    try:
        await JobConformance().test_logs_or_a_refusal(harness)
        await JobConformance().test_exit_codes_are_true(harness)
    finally:
        await harness.close()
