"""Too much by one principal: refused at once and with a delay, and nobody else feels it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from waiting import until

from hatoba.v1 import job_pb2
from hatoba_scheduler.auth import Role
from hatoba_scheduler.interceptors import CallLimits, PrincipalLimits
from hatoba_scheduler.interceptors.principals import AHEAD_SECONDS

from .conftest import Failure, Harness, failing, good_submit, serving

LIMITS = PrincipalLimits(5, 2, 20.0, 30.0, 100, 100)


@pytest.fixture
async def tight(logged: io.StringIO) -> AsyncIterator[Harness]:
    """A server of which nobody may ask much."""
    async with serving(CallLimits(principals=LIMITS)) as harness:
        yield harness


def delay(failure: Failure) -> float:
    told = failure.find(error_details_pb2.RetryInfo).retry_delay
    return float(told.ToNanoseconds()) / 1e9


async def test_calls_under_way_are_bounded_for_each_and_others_come_in(tight: Harness) -> None:
    go = asyncio.Event()

    async def wait(request: Any, context: Any) -> job_pb2.Job:
        await go.wait()
        return job_pb2.Job(name="waited")

    tight.script.unary = wait
    async with asyncio.TaskGroup() as group:
        held = [group.create_task(tight.submit(Role.USER)) for _ in range(LIMITS.calls)]
        await until(lambda: len(tight.script.seen) >= LIMITS.calls)
        loop = asyncio.get_running_loop()
        began = loop.time()
        failure = await failing(tight.submit(Role.USER))
        took = loop.time() - began
        tight.script.unary = None
        other = await tight.submit(Role.ADMIN)
        go.set()
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_CALLS",
    )
    assert delay(failure) > 0
    assert took < 0.5
    assert other.name == "digits"
    assert {task.result().name for task in held} == {"waited"}
    assert (await tight.submit(Role.USER)).name == "digits"


async def test_streams_under_way_are_bounded_for_each(tight: Harness) -> None:
    async def quiet(request: Any, context: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None

    async def cursor(stream: Any) -> str:
        return str((await stream.read()).cursor)

    tight.script.stream = quiet
    request = job_pb2.WatchJobsRequest()
    streams = [
        tight.jobs.WatchJobs(request, metadata=tight.metadata(Role.USER))
        for _ in range(LIMITS.streams)
    ]
    for stream in streams:
        await stream.read()
    more = tight.jobs.WatchJobs(request, metadata=tight.metadata(Role.USER))
    assert (await failing(more.read())).reason == "TOO_MANY_CALLS"
    other = tight.jobs.WatchJobs(request, metadata=tight.metadata(Role.VIEWER))
    assert await cursor(other) == "1"
    for stream in (*streams, other):
        stream.cancel()


async def submitting(tight: Harness, times: int) -> None:
    """Submits one after the other."""
    for _ in range(times):
        await tight.submit(Role.USER)


async def test_changes_in_a_second_are_bounded_for_each_and_reads_are_not(tight: Harness) -> None:
    failure = await failing(submitting(tight, 1_000))
    assert failure.reason == "RATE_LIMITED"
    assert len(tight.script.seen) >= round(AHEAD_SECONDS * LIMITS.changes_per_second)
    assert 0 < delay(failure) < 1

    async def told(request: Any, context: Any) -> job_pb2.Job:
        return job_pb2.Job(name="read")

    tight.script.unary = told
    read = job_pb2.GetJobRequest(name="a-1")
    assert (await tight.jobs.GetJob(read, metadata=tight.metadata(Role.USER))).name == "read"
    tight.script.unary = None
    assert (await tight.submit(Role.ADMIN)).name == "digits"


async def test_a_batch_counts_as_its_jobs(tight: Harness) -> None:
    items = [job_pb2.SubmitJobsItem(spec=good_submit().spec) for _ in range(200)]
    batch = job_pb2.SubmitJobsRequest(items=items)
    await tight.jobs.SubmitJobs(batch, metadata=tight.metadata(Role.USER))
    failure = await failing(tight.submit(Role.USER))
    assert (failure.reason, round(delay(failure))) == ("RATE_LIMITED", 5)
