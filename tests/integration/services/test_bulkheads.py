"""Backends that hang, throttle or fail, beside one that is well; cordons of backends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from server_process import HatobaServer, Launcher, configured, running_server
from waiting import eventually
from wire import TERMINAL, Wire

from hatoba.v1 import admin_pb2, common_pb2, job_pb2
from tests.integration.services.conftest import cancel, refused, submit

CONFIG = """
[defaults]
train = "well"

[backends.well]
type = "null"
cost_per_hour = 0.25

[backends.hung]
type = "mock"
deadline = 0.5
options = { trouble = "hangs" }

[backends.busy]
type = "mock"
options = { trouble = "throttles", trouble_every = 2 }

[backends.flaky]
type = "mock"
options = { trouble = "fails", trouble_every = 2 }
"""
JOBS = 40


@pytest.fixture
async def house(tmp_path: Path, launcher: Launcher) -> AsyncIterator[HatobaServer]:
    """A server of one good backend and three bad ones."""
    data = configured(tmp_path / "data", CONFIG)
    async with running_server(data, worker=False, launcher=launcher) as one:
        yield one


@pytest.fixture
async def calls(house: HatobaServer) -> AsyncIterator[Wire]:
    """Calls to it."""
    async with Wire(house) as one:
        yield one


def job_on(backend: str) -> job_pb2.JobSpec:
    """A job that does nothing there."""
    return job_pb2.JobSpec(name=backend, command=["true"], backend=backend)


async def backend(calls: Wire, name: str) -> admin_pb2.BackendInfo:
    """What an operator is shown of one backend."""
    reply = await calls.call(admin_pb2.ListBackendsRequest(), admin_pb2.ListBackendsResponse)
    return next(one for one in reply.backends if one.name == name)


async def cordon(calls: Wire, name: str, **words: object) -> admin_pb2.BackendInfo:
    """Cordon a backend, or let it go on."""
    request = admin_pb2.CordonBackendRequest(name=name, **words)  # type: ignore[arg-type]
    return await calls.call(request, admin_pb2.BackendInfo)


async def now(calls: Wire, job: job_pb2.Job) -> job_pb2.Job:
    """The job as it is now."""
    return await calls.call(job_pb2.GetJobRequest(name=job.name), job_pb2.Job)


async def until_ended(calls: Wire, jobs: list[job_pb2.Job]) -> set[common_pb2.JobState.ValueType]:
    """The states of jobs once all are over."""
    for job in jobs:
        await eventually(lambda job=job: over(calls, job))  # type: ignore[misc]
    return {(await now(calls, job)).state for job in jobs}


async def over(calls: Wire, job: job_pb2.Job) -> bool:
    """Whether a job has ended."""
    return (await now(calls, job)).state in TERMINAL


async def until_in(calls: Wire, job: job_pb2.Job, state: common_pb2.JobState.ValueType) -> None:
    """Wait until a job is in a state."""

    async def there() -> bool:
        return (await now(calls, job)).state == state

    await eventually(there)


async def test_what_is_wrong_with_others_holds_up_nothing_of_a_good_backend(calls: Wire) -> None:
    hung = [await submit(calls, job_on("hung")) for _ in range(JOBS)]
    slow = [await submit(calls, job_on(name)) for name in ("busy", "flaky") for _ in range(5)]
    good = [await submit(calls, job_on("well")) for _ in range(JOBS)]
    assert await until_ended(calls, good) == {common_pb2.JOB_STATE_SUCCEEDED}
    assert await until_ended(calls, slow) == {common_pb2.JOB_STATE_SUCCEEDED}
    assert not any([await over(calls, job) for job in hung])


async def test_a_breaker_that_opens_is_shown(calls: Wire) -> None:
    for _ in range(5):
        await submit(calls, job_on("hung"))

    async def opened() -> bool:
        return (await backend(calls, "hung")).breaker != "closed"

    await eventually(opened)
    shown = await backend(calls, "hung")
    assert shown.breaker in ("open", "half-open")
    assert shown.operations["find"].endswith("failed")
    assert 0 <= shown.calls <= shown.calls_limit
    assert (await backend(calls, "well")).breaker == "closed"


async def test_a_job_on_a_backend_that_hangs_can_be_cancelled_at_any_time(calls: Wire) -> None:
    job = await submit(calls, job_on("hung"))
    async with asyncio.timeout(5.0):
        (result,) = await cancel(calls, job.name)
    assert result.outcome != job_pb2.CANCEL_OUTCOME_ALREADY_TERMINAL
    assert (await now(calls, job)).state in (
        common_pb2.JOB_STATE_STOPPING,
        common_pb2.JOB_STATE_CANCELLED,
    )


async def test_a_cordoned_backend_launches_nothing_until_it_may_over_a_restart_too(
    house: HatobaServer, calls: Wire
) -> None:
    shown = await cordon(calls, "well", cordoned=True, reason="new disks")
    assert (shown.cordoned, shown.cordon_reason) == (True, "new disks")
    assert shown.cost_per_hour == 0.25
    job = await submit(calls, job_on("well"))
    await house.restart()

    async def waits() -> bool:
        return "new disks" in (await now(calls, job)).waiting_reason

    await eventually(waits)
    assert (await backend(calls, "well")).cordoned
    shown = await cordon(calls, "well", cordoned=False)
    assert (shown.cordoned, shown.cordon_reason) == (False, "")
    assert await until_ended(calls, [job]) == {common_pb2.JOB_STATE_SUCCEEDED}


async def test_a_drained_backend_gives_back_what_ran_there_at_nobodys_charge(calls: Wire) -> None:
    spec = job_on("well")
    spec.backend_options.update({"null": {"delay": 60}})
    spec.retries.infrastructure = 0
    spec.retries.preemption = 0
    spec.stop_grace.FromMilliseconds(100)
    job = await submit(calls, spec)
    await until_in(calls, job, common_pb2.JOB_STATE_RUNNING)
    await cordon(calls, "well", cordoned=True, drain=True, reason="new disks")
    await until_in(calls, job, common_pb2.JOB_STATE_QUEUED)
    assert (await backend(calls, "well")).draining
    assert not (await cordon(calls, "well", cordoned=False)).draining


async def test_a_backend_that_goes_on_is_not_drained(calls: Wire) -> None:
    request = admin_pb2.CordonBackendRequest(name="well", drain=True)
    refusal = await refused(calls.once(request, admin_pb2.BackendInfo))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["drain"])
    assert "set `cordoned` too" in refusal.message
    assert not (await backend(calls, "well")).draining


async def test_what_is_no_backend_cannot_be_cordoned(calls: Wire) -> None:
    request = admin_pb2.CordonBackendRequest(name="nowhere", cordoned=True)
    refusal = await refused(calls.once(request, admin_pb2.BackendInfo))
    assert refusal.code == grpc.StatusCode.NOT_FOUND
