"""What containers wrote to CloudWatch, on ministack, which forwards it as the driver does."""

from __future__ import annotations

import asyncio

import pytest
from ecs_harness import EcsReplicaHarness
from ecs_yard import ecs

from hatoba_plugins.conformance.fleets import Fleet, Wish, deployed
from hatoba_plugins.errors import Invalid

pytestmark = pytest.mark.timeout(300)
LINE = b"serves as ready\n"


async def _log(fleet: Fleet, replica: str, stream: str = "stderr", lines: int = 100) -> bytes:
    chunks = fleet.role.replica_logs(replica, stream, lines)
    return b"".join([chunk.data async for chunk in chunks])


async def _until_begun(fleet: Fleet, replica: str, times: int) -> None:
    async with asyncio.timeout(60.0):
        while (await _log(fleet, replica)).count(LINE) < times:  # noqa: ASYNC110 - ministack sets no event
            await asyncio.sleep(0.1)


async def test_a_replicas_last_lines_also_after_it_was_started_again(
    harness: EcsReplicaHarness,
) -> None:
    async with deployed(harness) as fleet:
        (name,) = await fleet.settle(Wish().target(1, fleet.revision(1, 1)))
        await _until_begun(fleet, name, 1)
        assert await _log(fleet, name, "stdout") == LINE
        assert await _log(fleet, name, "build") == b""
        await asyncio.to_thread(_kill, harness)
        await _until_begun(fleet, name, 2)
        assert await _log(fleet, name, lines=1) == LINE


async def test_what_is_no_replica_has_no_log(harness: EcsReplicaHarness) -> None:
    async with deployed(harness) as fleet:
        for name in ("r-nothing", f"r-{'0' * 32}-1-00000000"):
            with pytest.raises(Invalid, match=name):
                await _log(fleet, name)


def _kill(harness: EcsReplicaHarness) -> None:
    client, cluster = ecs(harness.emulator), harness.cluster
    for arn in client.list_tasks(cluster=cluster)["taskArns"]:
        client.stop_task(cluster=cluster, task=arn, reason="by an operator")
