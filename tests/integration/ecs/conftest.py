"""A fleet of replicas on ministack's ECS, closed after each test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ecs_harness import EcsReplicaHarness, credentials, ecs_image
from testbed_fixtures import AwsEmulator, DockerEngine

__all__ = ["credentials", "ecs_image"]


@pytest.fixture
def harness_type() -> type[EcsReplicaHarness]:
    """What is opened; a module may have another."""
    return EcsReplicaHarness


@pytest.fixture
async def harness(
    harness_type: type[EcsReplicaHarness],
    ministack: AwsEmulator,
    docker_engine: DockerEngine,
    ecs_image: str,
    credentials: None,
) -> AsyncIterator[EcsReplicaHarness]:
    """One of a test's own."""
    made = await asyncio.to_thread(harness_type, ministack, docker_engine, ecs_image)
    yield made
    await made.close()
