"""The conformance kit on `ecs`: ministack's ECS, which runs every task in a real container.

Between them stands a proxy that breaks what the kit wants broken. ministack does not know client
tokens, so that a doubled RunTask really starts two tasks, of which one claims.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ecs_harness import EcsJobHarness, EcsReplicaHarness, credentials, ecs_image
from testbed_fixtures import AwsEmulator, DockerEngine

from hatoba_plugins.conformance import (
    DeploymentConformance,
    DeploymentHarness,
    JobConformance,
    JobHarness,
)

__all__ = ["credentials", "ecs_image"]


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("credentials")
class TestEcsJobs(JobConformance):
    """Tasks with a runner in the image."""

    @pytest.fixture
    async def harness(
        self, ministack: AwsEmulator, docker_engine: DockerEngine, ecs_image: str
    ) -> AsyncIterator[JobHarness]:
        made = await asyncio.to_thread(EcsJobHarness, ministack, docker_engine, ecs_image)
        yield made
        await made.close()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("credentials")
async def test_without_a_runner_logs_come_from_cloudwatch(
    ministack: AwsEmulator, docker_engine: DockerEngine, ecs_image: str
) -> None:
    harness = await asyncio.to_thread(EcsJobHarness, ministack, docker_engine, ecs_image, "none")
    try:
        await JobConformance().test_logs_or_a_refusal(harness)
        await JobConformance().test_exit_codes_are_true(harness)
    finally:
        await harness.close()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("credentials")
class TestEcsDeployments(DeploymentConformance):
    """Services, routed by us."""

    @pytest.fixture
    async def harness(
        self, ministack: AwsEmulator, docker_engine: DockerEngine, ecs_image: str
    ) -> AsyncIterator[DeploymentHarness]:
        made = await asyncio.to_thread(EcsReplicaHarness, ministack, docker_engine, ecs_image)
        yield made
        await made.close()
