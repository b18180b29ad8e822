"""A submit whose reply is lost, and one that Batch carries out twice: the user's code runs once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aws_proxy import AwsProxy
from batch_house import PATIENCE, Batch, attempts_of, submit
from start_gate import StartGate
from testbed_fixtures import DockerEngine
from waiting import until

from hatoba.aio import AsyncClient, AsyncJob
from hatoba_plugins.conformance.proxy import Call
from hatoba_plugins.runner import CLAIM_REFUSED

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def gate(docker_engine: DockerEngine) -> AsyncIterator[StartGate]:
    async with StartGate.running(docker_engine.gateway) as running:
        yield running


async def ended_once(job: AsyncJob, gate: StartGate, root: Path) -> None:
    await job.wait(PATIENCE)
    assert job.state == "SUCCEEDED", job.record
    assert gate.starts == 1
    (_only,) = await attempts_of(job)
    made = await job.outputs(root / "outputs")
    assert await asyncio.to_thread((made / "made").read_text) == "out"


def codes(jobs: list[dict[str, Any]]) -> dict[str, int | None]:
    """By job id, the exit code of its container; None where moto has none, which is for 0."""
    return {job["jobId"]: (job.get("container") or {}).get("exitCode") for job in jobs}


async def test_a_lost_reply_of_a_submit_runs_once(
    client: AsyncClient, batch: Batch, gate: StartGate, tmp_path: Path
) -> None:
    gate.open()
    batch.proxy.lose_reply("submitjob")
    job = await submit(client, batch, tmp_path, gate.program)
    await ended_once(job, gate, tmp_path)
    assert batch.proxy.counts["submitjob"] == 1
    assert len(await asyncio.to_thread(batch.jobs)) == 1


class LoserFirst:
    """Carries a submit out twice, and answers with the run whose claim will be refused."""

    def __init__(self, proxy: AwsProxy, gate: StartGate) -> None:
        self._proxy = proxy
        self._gate = gate

    async def __call__(self, request: web.Request, call: Call) -> web.StreamResponse:
        await self._proxy.forward(call)
        await self._gate.until_started()
        return await self._proxy.forward(call)


async def test_of_a_doubled_run_the_winner_decides_and_the_loser_is_seen_first(
    client: AsyncClient, batch: Batch, gate: StartGate, tmp_path: Path
) -> None:
    batch.proxy.order("submitjob", LoserFirst(batch.proxy, gate))
    job = await submit(client, batch, tmp_path, gate.program)
    await until(lambda: CLAIM_REFUSED in codes(batch.jobs()).values(), PATIENCE)
    async with asyncio.timeout(PATIENCE):
        await gate.until_started()
    await job.refresh()
    assert job.state in ("STARTING", "RUNNING"), job.record
    gate.open()
    await ended_once(job, gate, tmp_path)
    assert sorted(map(str, codes(await asyncio.to_thread(batch.jobs)).values())) == ["83", "None"]
