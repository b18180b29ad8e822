"""What the planner decides, on a running server: with hosts played by hand, and on `null`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from server_process import HatobaServer, Launcher, configured, running_server
from waiting import eventually
from wire import Wire

from hatoba.v1 import admin_pb2, common_pb2, job_pb2, queue_pb2, worker_pb2
from tests.integration.services.conftest import (
    Host,
    cancel,
    connected,
    state,
    submit,
)

RESERVED_AFTER = 2.5
"""Seconds, more than what a head waits before room is kept for it."""
AT_ONCE = 1_100
"""More launches than are under way at once: what was decided on before goes out first."""
CONFIG = """
[defaults]
train = "hosts"

[backends.null]
type = "null"
options = { slots = 50, delay = 0.05 }

[backends.hosts]
type = "hosts"
"""


@pytest.fixture
async def house(tmp_path: Path, launcher: Launcher) -> AsyncIterator[HatobaServer]:
    """A server of `hosts` and `null` for one test alone."""
    data = configured(tmp_path / "data", CONFIG)
    async with running_server(data, worker=False, launcher=launcher) as one:
        yield one


@pytest.fixture
async def calls(house: HatobaServer) -> AsyncIterator[Wire]:
    """Calls to it."""
    async with Wire(house) as one:
        yield one


def wants(cpus: float, name: str = "job", **fields: object) -> job_pb2.JobSpec:
    """A job that needs so many cores."""
    spec = job_pb2.JobSpec(name=name, command=["true"], backend="hosts", **fields)  # type: ignore[arg-type]
    spec.resources.cpus = cpus
    return spec


async def explained(wire: Wire, job: job_pb2.Job) -> job_pb2.Explanation:
    """Why a job waits."""
    request = job_pb2.ExplainJobRequest(name=job.name)
    return await wire.once(request, job_pb2.Explanation)


async def got(wire: Wire, job: job_pb2.Job) -> job_pb2.Job:
    """A job as it is now."""
    return await wire.once(job_pb2.GetJobRequest(name=job.name), job_pb2.Job)


async def waits_for(wire: Wire, job: job_pb2.Job, *reasons: int) -> job_pb2.Explanation:
    """Its explanation, once it waits for one of these reasons."""
    found = job_pb2.Explanation()

    async def holds() -> bool:
        nonlocal found
        found = await explained(wire, job)
        return found.reason in reasons

    await eventually(holds)
    return found


async def test_backfill_goes_before_the_head_only_where_it_does_not_delay_it(calls: Wire) -> None:
    """A short job with a limit takes the free core; one without a limit leaves it free."""
    async with connected(calls, "a", cpus=4.0, slots=8) as host:
        long = wants(3.0, "long")
        long.timeout.FromTimedelta(timedelta(hours=1))
        await submit(calls, long)
        await host.started(await host.launched())
        head = await submit(calls, wants(4.0, "head"))
        await waits_for(calls, head, job_pb2.WAIT_REASON_NO_ROOM)
        await _waited(calls, head, RESERVED_AFTER)
        endless = await submit(calls, wants(1.0, "endless"))
        await waits_for(calls, endless, job_pb2.WAIT_REASON_RESERVED)
        short = wants(1.0, "short")
        short.timeout.FromTimedelta(timedelta(minutes=10))
        await submit(calls, short)
        launch = await host.launched()
        assert "/short-" in launch.job
        told = await explained(calls, head)
        assert told.HasField("estimated_start")
        assert told.position == 1


async def test_a_higher_job_takes_a_place_after_time_to_save(calls: Wire) -> None:
    """The lower one is asked for a checkpoint, then stopped, and goes on from there."""
    async with connected(calls, "a", cpus=2.0, slots=8) as host:
        low = wants(2.0, "low")
        low.preemption.grace.FromTimedelta(timedelta(seconds=1))
        first = await submit(calls, low)
        launch = await host.launched()
        await host.started(launch)
        await host.checkpoint(launch, 7)
        high = wants(2.0, "high")
        high.priority = 100
        await submit(calls, high)
        order = await host.hears("order")
        assert order.attempt == launch.attempt
        await host.hears("stop")
        await host.commit(launch, kind=_stopped())
        second = await host.launched()
        assert "/high-" in second.job
        await host.started(second)
        await host.commit(second)
        again = await host.launched()
        assert "/low-" in again.job
        claim = await host.claim(again)
        assert claim.checkpoint.step == 7
        await host.commit(again)
        done = await got(calls, first)
        assert state(done) == "SUCCEEDED"
        notes = [event async for event in _events(calls, first)]
        assert any(event.reason == "preempt" and "high" in event.note for event in notes)


def _stopped() -> int:
    from hatoba.v1 import runner_pb2

    return int(runner_pb2.EXIT_KIND_STOPPED)


async def _events(wire: Wire, job: job_pb2.Job) -> AsyncIterator[common_pb2.Event]:
    request = job_pb2.WatchJobsRequest(jobs=[job.name], cursor="0")
    async for message in wire.stream(request, job_pb2.WatchJobsResponse):
        if message.HasField("event"):
            yield message.event


async def test_a_gang_waits_until_all_have_claimed(calls: Wire) -> None:
    """Seven find a place, none is launched; with the eighth all are, and begin as one."""
    async with connected(calls, "a", cpus=7.0, slots=16) as first:
        gang = wants(1.0, "gang")
        gang.replicas = 8
        job = await submit(calls, gang)
        why = await waits_for(
            calls, job, job_pb2.WAIT_REASON_GANG_INCOMPLETE, job_pb2.WAIT_REASON_NEVER_FITS
        )
        assert "8" in why.message
        async with connected(calls, "b", cpus=1.0, slots=16) as second:
            launches = [(first, await first.launched()) for _ in range(7)]
            launches.append((second, await second.launched()))
            assert {launch.gang_size for _, launch in launches} == {8}
            for host, launch in launches[:-1]:
                assert (await host.claim(launch)).verdict == _wait()
            host, launch = launches[-1]
            assert len((await host.claim(launch)).members) == 8
            for host, launch in launches:
                await host.started(launch)
            for host, launch in launches:
                await host.commit(launch)
            done = await got(calls, job)
            assert (state(done), done.generation) == ("SUCCEEDED", 1)


def _wait() -> int:
    from hatoba.v1 import runner_pb2

    return int(runner_pb2.CLAIM_VERDICT_WAIT)


async def test_a_host_is_drained(calls: Wire) -> None:
    """What runs there gives way, at nobody's charge, and goes elsewhere."""
    async with connected(calls, "a", cpus=1.0, slots=2) as first:
        job = await submit(calls, wants(1.0))
        launch = await first.launched()
        await first.started(launch)
        async with connected(calls, "b", cpus=1.0, slots=2) as second:
            request = worker_pb2.CordonHostRequest(
                name="a", cordoned=True, drain=True, reason="fan"
            )
            host = await calls.once(request, worker_pb2.Host)
            assert host.draining
            await first.hears("stop")
            await first.commit(launch, kind=_stopped())
            again = await second.launched()
            assert again.job == launch.job
            await second.started(again)
            await second.commit(again)
            assert state(await got(calls, job)) == "SUCCEEDED"


async def test_a_million_tasks_are_one_row_until_they_start(calls: Wire) -> None:
    """Some thousand run, ten at once; then the rest is cancelled in a moment."""
    spec = job_pb2.JobSpec(name="big", command=["true"], backend="null")
    spec.array.size, spec.array.max_parallel = 1_000_000, 10
    job = await submit(calls, spec)

    async def hundreds_ran() -> bool:
        counts = dict((await got(calls, job)).counts.by_state)
        assert sum(counts.get(name, 0) for name in ("LAUNCHING", "STARTING", "RUNNING")) <= 10
        return counts.get("SUCCEEDED", 0) >= 300

    await eventually(hundreds_ran)
    tasks = await calls.once(
        job_pb2.ListTasksRequest(job=job.name, page_size=1_000), job_pb2.ListTasksResponse
    )
    assert len(tasks.tasks) == 1_000
    await cancel(calls, job.name)

    async def over() -> bool:
        return state(await got(calls, job)) == "CANCELLED"

    await eventually(over)
    assert (await got(calls, job)).counts.total == 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(1_200)
async def test_a_flood_keeps_no_other_user_waiting(calls: Wire, full_round: bool) -> None:
    """A million jobs of one queue wait, 20,000 in a short round; the first of another is started
    at once. Nothing runs while they come: it would take a quarter of an hour.
    """
    for name in ("flood", "calm"):
        request = queue_pb2.CreateQueueRequest(queue_id=name, queue=queue_pb2.Queue(weight=1.0))
        await calls.once(request, queue_pb2.Queue)
    spec = job_pb2.JobSpec(name="flood", command=["true"], backend="null", queue="flood")
    items = [job_pb2.SubmitJobsItem(spec=spec)] * 1_000
    await _cordon_null(calls, True)
    for _ in range(1_000 if full_round else 20):
        batch = job_pb2.SubmitJobsRequest(items=items)
        await calls.once(batch, job_pb2.SubmitJobsResponse, timeout=60)
    await _cordon_null(calls, False)
    await eventually(lambda: _ended_of_flood(calls))
    waiting = job_pb2.CountJobsRequest(filter="queue = flood AND state = QUEUED")
    waited = (await calls.once(waiting, job_pb2.CountJobsResponse)).total
    assert waited > 3 * AT_ONCE
    calm = job_pb2.JobSpec(name="calm", command=["true"], backend="null", queue="calm")
    cursor = await _newest(calls)
    job = await submit(calls, calm)
    before = await _launched_before(calls, job, cursor)
    print(f"{waited} waited; {before} of them were launched before another user's first job")
    assert before < AT_ONCE


async def _cordon_null(wire: Wire, cordoned: bool) -> None:
    request = admin_pb2.CordonBackendRequest(name="null", cordoned=cordoned)
    await wire.once(request, admin_pb2.BackendInfo)


async def _ended_of_flood(wire: Wire) -> bool:
    ended = job_pb2.CountJobsRequest(filter="queue = flood AND state = SUCCEEDED")
    return (await wire.once(ended, job_pb2.CountJobsResponse)).total > 0


async def _newest(wire: Wire) -> str:
    """The cursor of now."""
    async for message in wire.stream(job_pb2.WatchJobsRequest(), job_pb2.WatchJobsResponse):
        return message.cursor
    raise AssertionError("the watch said nothing")


async def _launched_before(wire: Wire, job: job_pb2.Job, cursor: str) -> int:
    """How many others were launched between a job's submit and its launch."""
    count, submitted = 0, False
    request = job_pb2.WatchJobsRequest(cursor=cursor, reasons=["submit", "launch"])
    async for message in wire.stream(request, job_pb2.WatchJobsResponse):
        event = message.event
        if event.job == job.name and event.reason == "launch":
            break
        submitted = submitted or event.job == job.name
        count += submitted and event.reason == "launch"
    return count


async def _waited(wire: Wire, job: job_pb2.Job, seconds: float) -> None:
    """Return once a job has waited so long by the server's clock."""

    async def holds() -> bool:
        overview = await wire.once(admin_pb2.GetOverviewRequest(), admin_pb2.Overview)
        waits = [one.since for one in overview.oldest_waiting if one.job == job.name]
        return bool(waits) and time.time() - waits[0].ToNanoseconds() / 1e9 > seconds

    await eventually(holds)


async def test_a_job_that_never_fits_is_told_at_submit(calls: Wire) -> None:
    """It is accepted, with a reason that names what the largest host has."""
    async with connected(calls, "a", cpus=4.0, slots=8) as host:
        assert isinstance(host, Host)
        plan = await calls.once(job_pb2.PlanJobRequest(spec=wants(64.0)), job_pb2.Explanation)
        assert plan.reason == job_pb2.WAIT_REASON_NEVER_FITS
        assert plan.warnings
        job = await submit(calls, wants(64.0))
        assert "64" in job.waiting_reason
        fits = await calls.once(job_pb2.PlanJobRequest(spec=wants(4.0)), job_pb2.Explanation)
        assert [place.pool for place in fits.places] == ["a"]
        await asyncio.gather(cancel(calls, job.name))
