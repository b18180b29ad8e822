"""GetOverview and the metrics page: what operators see of a server that works."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from server_process import HatobaServer, running_server
from waiting import eventually
from wire import Wire

from hatoba.v1 import admin_pb2, common_pb2, job_pb2

from .conftest import cancel, configure, held, running, spec, submit
from .test_queue_tree import cordon
from .test_queues import create, in_queue


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """A server for one test alone, with the backends of this suite and no worker."""
    async with running_server(configure(tmp_path / "data"), worker=False) as one:
        yield one


async def overview(wire: Wire) -> admin_pb2.Overview:
    return await wire.once(admin_pb2.GetOverviewRequest(), admin_pb2.Overview)


async def page(house: HatobaServer) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{house.ready['http']}/metrics") as reply,
    ):
        assert reply.status == 200
        return await reply.text()


async def test_it_says_what_is_there(house: HatobaServer) -> None:
    async with Wire(house) as wire:
        await create(wire, "default", "gpu")
        await cordon(wire, "gpu", cordoned=True, reason="new cards")
        waits = await submit(wire, in_queue(spec(), "gpu"))
        await submit(wire, held())
        runs = await submit(wire, running())

        async def is_running() -> bool:
            return (await wire.job(runs.name)).state == common_pb2.JOB_STATE_RUNNING

        await eventually(is_running)
        await wire.ended((await submit(wire, spec())).name)
        found = await overview(wire)
        assert found.server.phase == "serving"
        assert {one.name for one in found.backends} >= {"mock"}
        assert "lost" in [one.name for one in found.failures]
        owners = {one.queue: (one.created_by, one.waiting, one.running) for one in found.owners}
        assert owners == {"gpu": ("admin", 1, 0), "default": ("admin", 1, 1)}
        assert [one.job for one in found.oldest_waiting] == [waits.name]
        assert found.oldest_waiting[0].message
        assert list(found.queues) == ["gpu: cordoned (new cards)"]
        assert found.submit_rate > 0
        assert found.start_rate > 0
        assert found.end_rate > 0
        assert found.commit_max >= found.commit_mean > 0
        assert found.planner_max >= found.planner_mean > 0
        await cancel(wire, runs.name)


async def test_where_nothing_is_unfinished_nothing_is_shown(house: HatobaServer) -> None:
    async with Wire(house) as wire:
        found = await overview(wire)
    assert not found.owners
    assert not found.oldest_waiting
    assert not found.overdue
    assert not found.unknown
    assert not found.releasing
    assert not found.queues


async def test_the_metrics_page_has_the_operators_numbers(house: HatobaServer) -> None:
    async with Wire(house) as wire:
        await wire.ended((await submit(wire, spec())).name)
        await submit(wire, held())
        stream = wire.stream(job_pb2.WatchJobsRequest(), job_pb2.WatchJobsResponse)
        await anext(stream)
        text = await page(house)
    for line in (
        'hatoba_queue_jobs{project="default",queue="default",state="HELD"} 1.0',
        'hatoba_jobs_submitted_total{project="default",queue="default"} 2.0',
        'hatoba_tasks_started_total{project="default",queue="default"} 1.0',
        'hatoba_tasks_ended_total{project="default",queue="default"} 1.0',
        'hatoba_transitions_total{cause="",from="RUNNING",to="SUCCEEDED"} 1.0',
        'hatoba_backend_breaker{backend="mock"} 0.0',
        'hatoba_attempts{state="UNKNOWN"} 0.0',
        "hatoba_webhooks_failing 0.0",
        "hatoba_preemptions_total 0.0",
    ):
        assert line in text
    for name in ("hatoba_planner_round_seconds_count", "hatoba_store_commit_seconds_count"):
        (count,) = [line for line in text.splitlines() if line.startswith(name)]
        assert float(count.split()[-1]) > 0
    assert "hatoba_watchers 1.0" in text
    assert 'hatoba_queue_share{kind="fair",project="default",queue="default"}' in text
