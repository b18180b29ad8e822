"""`batch-spot`: the outside is moto's Batch, which runs jobs in real containers."""

from __future__ import annotations

import asyncio
from typing import Any

from aws_proxy import AwsProxy
from batch_yard import REGION, aws, exit_codes, make_queue
from fault_real import Real, instance
from testbed_fixtures import DockerEngine

from hatoba.v1 import job_pb2

BARE, FENCED = "batch", "fenced"
UNDER_WAY = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")
OVER = ("SUCCEEDED", "FAILED")


class Batch(Real):
    """Two queues: one for jobs without our runner, one for those whose image has it."""

    instance = BARE
    components = ("docker", "moto")
    modules = ("aioboto3", "hatoba_plugins.backends.batch_spot.backend")
    _engine: DockerEngine
    _batch: Any

    async def prepare(self, engine: DockerEngine) -> None:
        """See Outside."""
        self._engine = engine
        emulator = await asyncio.to_thread(self.bed.aws, "moto")
        self.environ = emulator.credentials
        self.runtime_image = (await asyncio.to_thread(self.bed.facts, "images"))["runtime"]
        self._batch = await asyncio.to_thread(aws, emulator, "batch")
        self._queues = {
            name: await asyncio.to_thread(make_queue, emulator, 64) for name in (BARE, FENCED)
        }
        self._proxy = await self.open.enter_async_context(AwsProxy.before(emulator.endpoint))
        self._proxy.rewrite.append(exit_codes)

    def configuration(self) -> str:
        """See Outside."""
        told = f'region = "{REGION}"\nendpoint = "{self._proxy.endpoint}"\n'
        told += "sweep_every = 0.3\nsettles_after = 1.0\nmemory_mib = 64\nrunner = "
        made = f'{self.listening()}[defaults]\ntrain = "{BARE}"\n'
        for name, runner in ((BARE, "none"), (FENCED, "image")):
            queue = f'queues.spot.queue = "{self._queues[name]}"'
            made += instance(name, "batch-spot", f'{told}"{runner}"\n{queue}')
        return made

    def with_runner(self, spec: job_pb2.JobSpec) -> None:
        """See Outside."""
        super().with_runner(spec)
        spec.backend = FENCED
        spec.resources.memory_bytes = 512 << 20

    def left(self) -> list[str]:
        """See Outside."""
        here = self._engine.docker("ps", "-a", "--format", "{{.Names}}").split()
        ours = tuple(job["jobId"] for job in self._jobs(*UNDER_WAY, *OVER))
        containers = [name for name in here if ours and name.endswith(ours)]
        return [*(job["jobName"] for job in self._jobs(*UNDER_WAY)), *containers]

    def _jobs(self, *states: str) -> list[dict[str, Any]]:
        pages = self._batch.get_paginator("list_jobs")
        return [
            job
            for queue in self._queues.values()
            for state in states
            for page in pages.paginate(jobQueue=queue, jobStatus=state)
            for job in page["jobSummaryList"]
        ]

    def clear(self) -> None:
        """See Outside."""
        for job in self._jobs(*UNDER_WAY):
            self._batch.terminate_job(jobId=job["jobId"], reason="the round is over")
