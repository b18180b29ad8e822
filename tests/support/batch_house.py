"""A real server whose backend is moto's Batch, with real containers of the runtime image."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aws_proxy import AwsProxy
from batch_yard import REGION, Reclaimer, aws, exit_codes, make_queue
from server_process import ColdLauncher, HatobaServer, configured, running_server
from testbed_fixtures import AwsEmulator, DockerEngine

from hatoba.aio import AsyncClient, AsyncJob
from hatoba.v1 import job_pb2
from hatoba_plugins.conformance.proxy import Json

CONFIG = """
[server]
listen = "{gateway}:0"

[backends.batch]
type = "batch-spot"

[backends.batch.options]
region = "{region}"
endpoint = "{endpoint}"
sweep_every = 0.5
settles_after = 2.0

[backends.batch.options.queues.spot]
queue = "{queue}"
"""
PATIENCE = 240.0
"""Seconds: containers start slowly on a machine that does much else."""


class Batch:
    """The queue of a test, its proxy, and the provider who takes capacity back."""

    def __init__(self, proxy: AwsProxy, queue: str, image: str, reclaimer: Reclaimer) -> None:
        self.proxy = proxy
        self.queue = queue
        self.image = image
        self.reclaimer = reclaimer

    def jobs(self) -> list[Json]:
        """What Batch has ever run of it; blocks."""
        return self.reclaimer.jobs()


@pytest.fixture
async def batch(
    moto: AwsEmulator, docker_engine: DockerEngine, runtime_image: str
) -> AsyncIterator[Batch]:
    queue = await asyncio.to_thread(make_queue, moto)
    async with AwsProxy.before(moto.endpoint) as proxy:
        proxy.rewrite.append(exit_codes)
        reclaimer = Reclaimer(aws(moto, "batch"), docker_engine, queue)
        yield Batch(proxy, queue, runtime_image, reclaimer)
        await asyncio.to_thread(reclaimer.end_all)


@pytest.fixture
async def server(
    batch: Batch,
    moto: AwsEmulator,
    docker_engine: DockerEngine,
    tmp_path: Path,
) -> AsyncIterator[HatobaServer]:
    config = CONFIG.format(
        gateway=docker_engine.gateway,
        region=REGION,
        endpoint=batch.proxy.endpoint,
        queue=batch.queue,
    )
    data = await asyncio.to_thread(configured, tmp_path / "data", config)
    launcher = ColdLauncher()
    launcher.environ.update(moto.credentials)
    try:
        async with running_server(data, worker=False, launcher=launcher) as running:
            yield running
    finally:
        await asyncio.to_thread(launcher.close)


@pytest.fixture
async def client(server: HatobaServer) -> AsyncIterator[AsyncClient]:
    token, authority = str(server.data / "admin.token"), str(server.ready["ca_file"])
    async with AsyncClient(server.address, token_file=token, ca_file=authority) as one:
        yield one


async def submit(
    client: AsyncClient, batch: Batch, root: Path, script: str, shards: int = 1
) -> AsyncJob:
    code = root / "code"
    await asyncio.to_thread(code.mkdir, exist_ok=True)
    await asyncio.to_thread((code / "main.py").write_text, script)
    return await client.submit(
        ["python3", "main.py"],
        backend="batch",
        image=batch.image,
        code=str(code),
        name="shards",
        array=shards,
    )


async def attempts_of(job: AsyncJob) -> list[job_pb2.Attempt]:
    request = job_pb2.ListAttemptsRequest(job=job.record.name)
    return list((await job.client.call(request, job_pb2.ListAttemptsResponse)).attempts)
