"""What ended and is not gone: it holds its room and nothing else. What comes back too late."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from server_process import HatobaServer, Launcher, configured, running_server
from waiting import eventually
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, worker_pb2

from .conftest import Host, connected, fresh, job_on, spec, state, submit

NEVER = 1_000_000
CORES = 4.0
CONFIG = f"""
[defaults]
train = "mock"

[backends.mock]
type = "mock"
options = {{ cpus = {CORES} }}
"""
NO_ROOM = job_pb2.WAIT_REASON_NO_ROOM
Item = worker_pb2.WorkerItem


@pytest.fixture
async def small(tmp_path: Path, launcher: Launcher) -> AsyncIterator[HatobaServer]:
    """A server of a backend with four cores."""
    data = configured(tmp_path / "data", CONFIG)
    async with running_server(data, worker=False, launcher=launcher) as one:
        yield one


def on_cores(cores: float, name: str, **script: Any) -> job_pb2.JobSpec:
    made = spec(name, **script)
    made.resources.cpus = cores
    return made


async def release(wire: Wire, job: job_pb2.Job) -> common_pb2.Release.ValueType:
    return (await wire.attempts(job.name))[-1].release


async def test_a_release_that_never_comes_holds_up_no_finished_job_and_keeps_its_room(
    small: HatobaServer,
) -> None:
    async with Wire(small) as wire:
        clings = await submit(wire, on_cores(3, "clings", release_not_yet=NEVER))
        waits_for_it = on_cores(1, "after")
        waits_for_it.after_ok.append(clings.name)
        after = await submit(wire, waits_for_it)
        assert state(await wire.ended(clings.name)) == "SUCCEEDED"
        assert state(await wire.ended(after.name)) == "SUCCEEDED"
        assert await release(wire, clings) == common_pb2.RELEASE_RELEASING

        large = await submit(wire, on_cores(2, "large"))
        beside = await submit(wire, on_cores(1, "beside"))
        assert state(await wire.ended(beside.name)) == "SUCCEEDED"

        async def explained() -> bool:
            request = job_pb2.ExplainJobRequest(name=large.name)
            why = await wire.call(request, job_pb2.Explanation)
            assert (why.state, why.reason) == (common_pb2.JOB_STATE_QUEUED, NO_ROOM)
            return "1 of 4 cpus" in why.message

        # All but the room of what clings comes back.
        await eventually(explained)

        # What this world remembers ends with its server: then the release comes, and the room.
        await small.restart()
        assert state(await wire.job(clings.name)) == "SUCCEEDED"
        assert state(await wire.ended(large.name)) == "SUCCEEDED"
        assert await release(wire, clings) == common_pb2.RELEASE_RELEASED


def lost_after(seconds: int, secret: str) -> job_pb2.JobSpec:
    wanted = job_on(secret)
    wanted.disconnect.stop_after.FromMilliseconds(500)
    wanted.disconnect.lost_after.FromSeconds(seconds)
    return wanted


def held_by(host: Host, launch: worker_pb2.LaunchAttempt) -> list[worker_pb2.WorkerItem]:
    """What a worker says that has an attempt running still."""
    held = worker_pb2.HeldAttempt(
        attempt=launch.attempt,
        fence=launch.fence,
        claimed=True,
        started=True,
        job_uid=launch.job_uid,
        number=launch.number,
    )
    return [Item(held=held), Item(inventory_complete=worker_pb2.InventoryComplete())]


@pytest.mark.timeout(120)
async def test_what_was_taken_for_lost_is_ended_when_it_comes_back_and_decides_nothing(
    wire: Wire,
) -> None:
    """The shortest `lost_after` there may be is half a minute: it is waited for."""
    secret = fresh("alpha")
    first, second = fresh("h"), fresh("h")
    async with connected(wire, first, secrets=[secret]) as host:
        job = await submit(wire, lost_after(31, secret))
        launch = await host.launched()
        await host.started(launch)
        await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    async with connected(wire, second, secrets=[secret]) as other:
        again = await other.launched(patience=60)
        assert (again.job, again.number) == (job.name, 2)
        (lost, _) = await wire.attempts(job.name)
        assert lost.state == common_pb2.ATTEMPT_STATE_LOST
        assert lost.cause.code == common_pb2.CAUSE_CODE_DISCONNECTED
        assert lost.release == common_pb2.RELEASE_RELEASED
        await other.started(again)

        async with connected(wire, first, secrets=[secret], complete=False) as late:
            await late.say(*held_by(late, launch))
            assert (await late.hears("drop")).attempt == launch.attempt
            assert not (await late.commit(launch, exit_code=9)).accepted
            assert state(await wire.job(job.name)) == "RUNNING"
            assert (await other.commit(again)).accepted
        assert state(await wire.ended(job.name)) == "SUCCEEDED"

    assert len(await wire.attempts(job.name)) == 2
    events = await wire.events(job.name)
    assert sum(event.job_terminal for event in events) == 1
