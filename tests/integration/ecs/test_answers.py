"""What is known of a task while ECS answers late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ecs_harness import EcsJobHarness
from testbed_fixtures import AwsEmulator, DockerEngine

from hatoba_plugins.conformance import Command
from hatoba_plugins.conformance.attempts import opened
from hatoba_plugins.values import Unsure

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("credentials")]


LAG = 4.0
"""Seconds by which look-ups may lag behind; a busy machine asks within them."""


class _Lagging(EcsJobHarness):
    def _options(self, endpoint: str) -> dict[str, object]:
        return super()._options(endpoint) | {"find_settles_after": LAG}


@pytest.fixture
async def jobs(
    ministack: AwsEmulator, docker_engine: DockerEngine, ecs_image: str
) -> AsyncIterator[EcsJobHarness]:
    """A harness of a test's own."""
    made = await asyncio.to_thread(_Lagging, ministack, docker_engine, ecs_image)
    yield made
    await made.close()


@pytest.mark.asyncio
async def test_what_was_begun_late_may_be_seen_late(jobs: EcsJobHarness) -> None:
    """RunTask took longer than look-ups lag behind: its task is not absent when it answers."""
    async with opened(jobs) as kit:
        jobs.proxy.delay_reply("runtask", LAG + 0.2)
        jobs.curtain.hide_new_for(60.0)
        ref = await kit.launched(Command.SUCCEEDS)
        (outcome,) = await kit.backend.find([ref])
        assert isinstance(outcome, Unsure), outcome
