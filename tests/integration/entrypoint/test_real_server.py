"""A real server, and containers that are processes: credentials, claims and commits as they are."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import process_images
import pytest
from runner_house import free_port
from server_process import ColdLauncher, HatobaServer, configured, running_server
from waiting import PATIENCE, eventually, until

from hatoba.aio import AsyncClient, AsyncJob
from hatoba.v1 import common_pb2, job_pb2

CONFIG = """
[backends.images]
type = "process-images"
options = {{ directory = "{directory}" }}
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """A server whose one backend brings its runner in the image."""
    plugins = tmp_path / "plugins"
    await asyncio.to_thread(process_images.install, plugins)
    config = CONFIG.format(directory=tmp_path / "containers")
    data = await asyncio.to_thread(configured, tmp_path / "data", config)
    launcher = ColdLauncher()
    launcher.environ["PYTHONPATH"] = str(plugins)
    try:
        # Containers know one address: the next server has to be there too.
        options = ("--listen", f"127.0.0.1:{free_port()}")
        async with running_server(
            data, worker=False, options=options, launcher=launcher
        ) as running:
            yield running
    finally:
        await asyncio.to_thread(launcher.close)
        await until(lambda: process_images.end_all(tmp_path / "containers"))


@pytest.fixture
async def client(server: HatobaServer) -> AsyncIterator[AsyncClient]:
    """The SDK, as the server's administrator."""
    token = str(server.data / "admin.token")
    async with AsyncClient(server.address, token_file=token) as one:
        yield one


TRAIN = """
from hatoba import current_job
job = current_job()
job.log_metrics({"loss": 0.25}, step=1)
(job.outputs / "made").write_text("out")
print("trained with", job.params["lr"], flush=True)
"""
RESUMES = """
import time
from hatoba import current_job
job = current_job()
print("from", job.latest_checkpoint and job.latest_checkpoint.name, flush=True)
if job.latest_checkpoint is None:
    with job.checkpoint(3) as directory:
        (directory / "w").write_text("3")
    time.sleep(60)
"""


async def submit(client: AsyncClient, root: Path, program: str, *more: str) -> AsyncJob:
    """Submit a program to the backend whose containers are processes."""
    code = root / "code"
    await asyncio.to_thread(code.mkdir)
    await asyncio.to_thread((code / "job.py").write_text, program)
    command = [sys.executable, "job.py", *more]
    return await client.submit(
        command,
        backend="images",
        image="runtime:1",
        code=str(code),
        params={"lr": 0.5},
        name="train",
    )


async def log_of(job: AsyncJob) -> str:
    """What a job has written to stdout."""
    return b"".join([piece.data async for piece in job.logs(stream="stdout")]).decode()


async def attempts_of(job: AsyncJob) -> list[job_pb2.Attempt]:
    """Its attempts, in order."""
    request = job_pb2.ListAttemptsRequest(job=job.record.name)
    found = (await job.client.call(request, job_pb2.ListAttemptsResponse)).attempts
    return sorted(found, key=lambda attempt: attempt.number)


async def test_a_job_goes_all_the_way_with_a_runner_in_its_image(
    client: AsyncClient, tmp_path: Path
) -> None:
    job = await submit(client, tmp_path, TRAIN)
    await job.wait(PATIENCE)
    assert job.state == "SUCCEEDED"
    assert "trained with 0.5" in await log_of(job)
    assert dict(await job.metrics()) == {"loss": [(1, 0.25)]}
    made = await job.outputs(tmp_path / "outputs")
    assert await asyncio.to_thread((made / "made").read_text) == "out"


async def test_a_server_that_dies_meanwhile_misses_nothing(
    server: HatobaServer, client: AsyncClient, tmp_path: Path
) -> None:
    await asyncio.to_thread(os.mkfifo, tmp_path / "go")
    job = await submit(client, tmp_path, f"open({str(tmp_path / 'go')!r}).read()\n{TRAIN}")
    await until(lambda: list(tmp_path.glob("containers/*/runner/attempts/*/stdout.log")))
    await server.kill()
    await asyncio.to_thread((tmp_path / "go").write_text, "go")
    await server.start()
    await job.wait(PATIENCE)
    assert (job.state, len(await attempts_of(job))) == ("SUCCEEDED", 1)


async def test_what_its_platform_takes_away_goes_on_from_its_checkpoint(
    client: AsyncClient, tmp_path: Path
) -> None:
    job = await submit(client, tmp_path, RESUMES)

    async def saved() -> bool:
        return any(one.HasField("checkpoint") for one in await attempts_of(job))

    await eventually(saved)
    (pid,) = await asyncio.to_thread(lambda: list(tmp_path.glob("containers/*/pid")))
    os.kill(int(await asyncio.to_thread(pid.read_text)), signal.SIGTERM)
    await job.wait(PATIENCE)
    first, _ = await attempts_of(job)
    assert (first.cause.code, job.state) == (common_pb2.CAUSE_CODE_PREEMPTED, "SUCCEEDED")
    assert "from step-3" in await log_of(job)


async def test_a_cancelled_job_ends_with_its_container(client: AsyncClient, tmp_path: Path) -> None:
    job = await submit(client, tmp_path, "import time; time.sleep(60)")
    await until(lambda: list(tmp_path.glob("containers/*/runner/attempts/*/stdout.log")))
    await job.cancel()
    await job.wait(PATIENCE)
    assert job.state == "CANCELLED"
