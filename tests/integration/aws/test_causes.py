"""How tasks end on AWS Batch and ECS, and what is said of it: real containers of both.

What neither emulator can produce (no capacity, a missing image on Batch) stands in the corpus.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from aws_site import PATIENCE, AwsSite, aws_site
from ecs_yard import ecs
from testbed_fixtures import AwsEmulator, DockerEngine
from wire import Wire, shell

from hatoba.v1 import common_pb2, job_pb2

pytestmark = pytest.mark.timeout(1500)
BACKENDS = ("batch", "ecs")
LIMIT = 256
"""MiB that a container gets while it runs."""
EATS = f"""
import pathlib, time
group = pathlib.Path("/sys/fs/cgroup")
files = group / "memory.max", group / "memory/memory.limit_in_bytes"
(file,) = [one for one in files if one.exists()]
while not (told := file.read_text().strip()).isdigit() or int(told) > {LIMIT} << 20:
    time.sleep(0.1)
bytearray({2 * LIMIT} << 20)
"""


class Desk:
    """Jobs of one server whose containers are real ones."""

    def __init__(self, site: AwsSite, wire: Wire, image: str, registry: str) -> None:
        self.site = site
        self.wire = wire
        self.image = image
        self._registry = registry

    def without_image(self, spec: job_pb2.JobSpec) -> None:
        """An image that its registry does not have."""
        spec.environment.image = f"{self._registry}/none:1"

    async def submit(
        self,
        backend: str,
        command: Sequence[str],
        tell: Callable[[job_pb2.JobSpec], None] | None = None,
    ) -> str:
        """Submit a job; its name."""
        spec = job_pb2.JobSpec(name="ends", backend=backend, command=command)
        spec.environment.image = self.image
        if tell is not None:
            tell(spec)
        return (await self.wire.submit(spec)).name

    async def end(self, job: str) -> tuple[str, str, common_pb2.Cause]:
        """State and cause of a job that has ended; tried again only where the emulator failed."""
        found = await self.wire.ended(job, PATIENCE)
        tried = await self.wire.attempts(job)
        earlier = [one.cause for one in tried[:-1]]
        assert all(one.origin == common_pb2.ORIGIN_INFRASTRUCTURE for one in earlier), earlier
        return (
            common_pb2.JobState.Name(found.state).removeprefix("JOB_STATE_"),
            common_pb2.CauseCode.Name(found.cause.code).removeprefix("CAUSE_CODE_"),
            found.cause,
        )

    async def running(self, job: str) -> str:
        """The external name of its attempt, once its code runs."""
        await self.wire.in_state(job, common_pb2.JOB_STATE_RUNNING, patience=PATIENCE)
        (only,) = await self.wire.attempts(job)
        return only.external_name


@asynccontextmanager
async def desk(
    runner: str,
    image: str,
    registry: str,
    emulators: tuple[AwsEmulator, AwsEmulator],
    engine: DockerEngine,
    home: Path,
) -> AsyncIterator[Desk]:
    """One that is open, at a server of its own."""
    async with aws_site(*emulators, engine, home, runner=runner) as site:
        authority = await asyncio.to_thread(Path(site.server.ready["ca_file"]).read_bytes)
        credentials = grpc.ssl_channel_credentials(authority)
        async with Wire(site.server, credentials=credentials) as wire:
            yield Desk(site, wire, image, registry)


def short(spec: job_pb2.JobSpec) -> None:
    """It may run for three seconds."""
    spec.timeout.seconds = 3
    spec.stop_grace.seconds = 1


def overdue(spec: job_pb2.JobSpec) -> None:
    """Somebody wants it done soon."""
    spec.deadline.FromSeconds(int(time.time()) + 20)
    spec.stop_grace.seconds = 1


async def _common_ends(at: Desk, short_on: Sequence[str]) -> None:
    """What all backends know, whoever runs the command; `short_on` these runs may be that short."""
    told = {
        "exits": [await at.submit(one, shell("exit 3").command) for one in BACKENDS],
        "stays": [await at.submit(one, ["sleep", "600"]) for one in BACKENDS],
        "times": [await at.submit(one, ["sleep", "600"], short) for one in short_on],
    }
    due = [await at.submit(one, ["sleep", "600"], overdue) for one in BACKENDS]
    no_image = await at.submit("ecs", ["true"], at.without_image)
    for job in told["exits"]:
        state, code, cause = await at.end(job)
        assert (state, code, cause.exit_code) == ("FAILED", "EXIT_CODE", 3), cause
        assert cause.origin == common_pb2.ORIGIN_USER
    for job in told["stays"]:
        await at.running(job)
        await at.wire.cancel(job)
        state, code, cause = await at.end(job)
        assert (state, code) == ("CANCELLED", "CANCELLED"), cause
    for job in told["times"]:
        state, code, cause = await at.end(job)
        assert (state, code) == ("TIMED_OUT", "RUN_TIMEOUT"), cause
    for job in due:
        state, code, cause = await at.end(job)
        assert (state, code) == ("TIMED_OUT", "DEADLINE"), cause
    state, code, cause = await at.end(no_image)
    assert (state, code) == ("FAILED", "IMAGE_MISSING"), cause
    assert "none" in cause.message, cause


async def test_ends_with_our_runner(
    moto: AwsEmulator,
    ministack: AwsEmulator,
    docker_engine: DockerEngine,
    runtime_image: str,
    registry: str,
    tmp_path: Path,
) -> None:
    async with desk(
        "image", runtime_image, registry, (moto, ministack), docker_engine, tmp_path
    ) as at:
        eating = {one: await at.submit(one, ["python3", "-c", EATS]) for one in BACKENDS}
        await _common_ends(at, BACKENDS)
        for backend, job in eating.items():
            await _squeeze(at, docker_engine, ministack, backend, await at.running(job))
        for job in eating.values():
            state, code, cause = await at.end(job)
            assert (state, code) == ("FAILED", "OUT_OF_MEMORY"), cause
            assert cause.origin == common_pb2.ORIGIN_USER


async def test_ends_without_our_runner(
    moto: AwsEmulator,
    ministack: AwsEmulator,
    docker_engine: DockerEngine,
    registry: str,
    tmp_path: Path,
) -> None:
    image = docker_engine.busybox
    async with desk("none", image, registry, (moto, ministack), docker_engine, tmp_path) as at:
        # Batch itself ends nothing within a minute.
        await _common_ends(at, ["ecs"])


async def _squeeze(
    at: Desk, engine: DockerEngine, ministack: AwsEmulator, backend: str, name: str
) -> None:
    """Give an attempt's container the limit that neither emulator gives it."""
    wanted = f"name={name}"
    if backend == "ecs":
        listed = await asyncio.to_thread(
            lambda: ecs(ministack).list_tasks(cluster=at.site.cluster, startedBy=name)
        )
        wanted = f"label=com.amazonaws.ecs.task-arn={listed['taskArns'][0]}"
    container = await asyncio.to_thread(engine.docker, "ps", "--quiet", "--filter", wanted)
    most = ["--memory", f"{LIMIT}m", "--memory-swap", f"{LIMIT}m"]
    await asyncio.to_thread(engine.docker, "update", *most, container.strip())
