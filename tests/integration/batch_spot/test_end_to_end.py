"""A real server, moto's Batch, and real containers of the runtime image with the real runner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aws_proxy import AwsProxy
from batch_yard import REGION, Reclaimer, aws, exit_codes, make_queue
from server_process import ColdLauncher, HatobaServer, configured, running_server
from testbed_fixtures import AwsEmulator, DockerEngine
from waiting import eventually, until

from hatoba.aio import AsyncClient, AsyncJob
from hatoba.v1 import common_pb2, job_pb2

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
PATIENCE = 120.0
SHARDS = 8

pytestmark = pytest.mark.timeout(300)


class Batch:
    """The queue of a test, its proxy, and the provider who takes capacity back."""

    def __init__(self, proxy: AwsProxy, queue: str, image: str, reclaimer: Reclaimer) -> None:
        self.proxy = proxy
        self.queue = queue
        self.image = image
        self.reclaimer = reclaimer


@pytest.fixture
async def batch(
    moto: AwsEmulator, docker_engine: DockerEngine, runtime_image: str
) -> AsyncIterator[Batch]:
    queue = await asyncio.to_thread(make_queue, moto)
    async with AwsProxy.before(moto.endpoint) as proxy:
        proxy.rewrite.append(exit_codes)
        yield Batch(
            proxy, queue, runtime_image, Reclaimer(aws(moto, "batch"), docker_engine, queue)
        )


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


async def two_with_checkpoints(job: AsyncJob) -> list[str]:
    """Names of two attempts that have something to go on from; empty: there are none yet."""
    attempts = [one for one in await attempts_of(job) if one.checkpoint.step]
    return [one.external_name for one in attempts[:2]] if len(attempts) >= 2 else []


MAKES = """
from hatoba import current_job
job = current_job()
(job.outputs / "made").write_text("out")
print("made it", flush=True)
"""

SHARD = """
import os, time
from hatoba import current_job
job = current_job()
begun = int((job.latest_checkpoint / "at").read_text()) if job.latest_checkpoint else 0
print("from", begun, flush=True)
for step in range(begun + 1, 17):
    time.sleep(0.5)
    with job.checkpoint(step) as directory:
        (directory / "at").write_text(str(step))
(job.outputs / "shard").write_text(os.environ["HATOBA_INDEX"])
"""


async def test_a_job_goes_all_the_way_in_a_container(
    client: AsyncClient, batch: Batch, tmp_path: Path
) -> None:
    job = await submit(client, batch, tmp_path, MAKES)
    await job.wait(PATIENCE)
    assert job.state == "SUCCEEDED", job.record
    assert batch.proxy.counts["submitjob"] == 1
    assert b"made it" in b"".join([piece.data async for piece in job.logs(stream="stdout")])
    made = await job.outputs(tmp_path / "outputs")
    assert await asyncio.to_thread((made / "made").read_text) == "out"


async def test_exit_codes_and_stops_are_told_as_they_are(
    client: AsyncClient, batch: Batch, tmp_path: Path
) -> None:
    failed = await submit(client, batch, tmp_path, "raise SystemExit(3)")
    await failed.wait(PATIENCE)
    assert failed.state == "FAILED"
    (only,) = await attempts_of(failed)
    assert only.cause.code == common_pb2.CAUSE_CODE_EXIT_CODE
    assert "3" in only.cause.message
    cancelled = await submit(client, batch, tmp_path, "import time; time.sleep(600)")
    await until(lambda: batch.reclaimer.running(), patience=60.0)
    await cancelled.cancel()
    await cancelled.wait(PATIENCE)
    assert cancelled.state == "CANCELLED"


async def test_shards_that_lose_their_hosts_go_on_from_their_checkpoints(
    client: AsyncClient, batch: Batch, tmp_path: Path
) -> None:
    job = await submit(client, batch, tmp_path, SHARD, SHARDS)
    warned, taken = await eventually(lambda: two_with_checkpoints(job), PATIENCE)
    await asyncio.to_thread(batch.reclaimer.warn, warned)
    await asyncio.to_thread(batch.reclaimer.take, taken)
    await job.wait(PATIENCE)
    assert job.state == "SUCCEEDED", job.record
    attempts = await attempts_of(job)
    causes = {one.external_name: one.cause.code for one in attempts if one.cause.code}
    assert causes == {  # the runner of the warned one told so itself
        warned: common_pb2.CAUSE_CODE_SPOT_RECLAIMED,
        taken: common_pb2.CAUSE_CODE_SPOT_RECLAIMED,
    }
    assert len(attempts) == SHARDS + 2
    made = [await job.outputs(tmp_path / f"{n}", index=n) for n in range(SHARDS)]
    read = [await asyncio.to_thread((one / "shard").read_text) for one in made]
    assert read == [str(n) for n in range(SHARDS)]
