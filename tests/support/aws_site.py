"""A server for containers, with AWS Batch (moto) and ECS (ministack) as its backends.

Both run real containers in the testbed's engine, which reach the server over TLS at the bridge.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aws_proxy import AwsProxy
from batch_yard import REGION, Reclaimer, aws, exit_codes, make_queue
from command_line import CommandLine, Done
from ecs_yard import EcsProxy, clear, ecs
from server_process import ColdLauncher, HatobaServer, configured, running_server
from testbed_fixtures import AwsEmulator, DockerEngine, fresh_name

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "digits"
PATIENCE = 480.0
"""Seconds for a container on a machine that does much else."""
CONFIG = """
[server]
listen = "{gateway}:0"

[defaults]
train = "batch"
serves = "ecs"

[backends.local]
type = "hosts"

[backends.batch]
type = "batch-spot"

[backends.batch.options]
region = "{region}"
endpoint = "{batch}"
runner = "{runner}"
sweep_every = 0.5
settles_after = 2.0
memory_mib = 512

[backends.batch.options.queues.spot]
queue = "{queue}"

[backends.ecs]
type = "ecs"

[backends.ecs.options]
region = "{region}"
endpoint = "{ecs}"
runner = "{runner}"
cluster = "{cluster}"
subnets = ["subnet-1"]
readiness = "probe"
poll_every = 0.5
find_settles_after = 2.0
"""


@dataclass
class AwsSite:
    """The server, the command line, and what stands behind it."""

    server: HatobaServer
    type: CommandLine
    reclaimer: Reclaimer
    batch: AwsProxy
    ecs: AwsProxy
    cluster: str

    async def done(self, *arguments: str) -> Done:
        """Run a command that has to end well."""
        done = await self.type(*arguments)
        assert done.code == 0, f"{arguments}:\n{done.out}\n{done.err}"
        return done

    async def told(self, *arguments: str) -> Any:
        """What a command that has to end well says as JSON."""
        return json.loads((await self.done(*arguments, "-o", "json")).out)


@asynccontextmanager
async def aws_site(
    moto: AwsEmulator,
    ministack: AwsEmulator,
    engine: DockerEngine,
    home: Path,
    *,
    runner: str = "image",
) -> AsyncIterator[AwsSite]:
    """One whose queue, cluster and directory are its own; nothing of it is left."""
    queue = await asyncio.to_thread(make_queue, moto)
    cluster = fresh_name("site")
    await asyncio.to_thread(ecs(ministack).create_cluster, clusterName=cluster)
    async with AwsProxy.before(moto.endpoint) as batch, EcsProxy.before(ministack.endpoint) as of:
        batch.rewrite.append(exit_codes)
        config = CONFIG.format(
            gateway=engine.gateway,
            region=REGION,
            batch=batch.endpoint,
            ecs=of.endpoint,
            queue=queue,
            cluster=cluster,
            runner=runner,
        )
        reclaimer = Reclaimer(aws(moto, "batch"), engine, queue)
        try:
            async with _served(home, config, moto.credentials) as server:
                words = CommandLine(server, home, PATIENCE)
                yield AwsSite(server, words, reclaimer, batch, of, cluster)
        finally:
            await asyncio.to_thread(reclaimer.end_all)
            await asyncio.to_thread(clear, ministack, cluster)


@asynccontextmanager
async def _served(
    home: Path, config: str, credentials: dict[str, str]
) -> AsyncIterator[HatobaServer]:
    data = await asyncio.to_thread(configured, home / "data", config)
    launcher = ColdLauncher()
    launcher.environ.update(credentials)
    try:
        async with running_server(data, launcher=launcher) as server:
            yield server
    finally:
        await asyncio.to_thread(launcher.close)


@pytest.fixture
async def site(
    moto: AwsEmulator, ministack: AwsEmulator, docker_engine: DockerEngine, tmp_path: Path
) -> AsyncIterator[AwsSite]:
    """A server of a test's own, with runners in its images."""
    async with aws_site(moto, ministack, docker_engine, tmp_path) as made:
        yield made
