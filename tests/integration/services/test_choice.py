"""Jobs that name no backend run on the cheapest that can and has room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from server_process import Launcher, configured, running_server
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2

from .conftest import cancel, refused, running, spec, submit

CONFIG = """
[backends.dear]
type = "mock"
cost_per_hour = 3.0
options = { lacks = ["pretends"] }

[backends.cheap]
type = "mock"
cost_per_hour = 0.5
options = { capacity = 1, lacks = ["pretends", "memory_limit"] }

[backends.null]
type = "null"
"""


@pytest.fixture
async def wire(tmp_path: Path, launcher: Launcher) -> AsyncIterator[Wire]:
    """Calls to a server with a cheap, a dear and a pretended backend."""
    data = configured(tmp_path / "data", CONFIG)
    async with (
        running_server(data, worker=False, launcher=launcher) as server,
        Wire(server) as one,
    ):
        yield one


def anywhere(made: job_pb2.JobSpec) -> job_pb2.JobSpec:
    made.ClearField("backend")
    return made


async def test_the_cheapest_with_room_gets_it(wire: Wire) -> None:
    first = await submit(wire, anywhere(running("a")))
    assert list(first.backends) == ["cheap", "dear"]
    await wire.in_state(first.name, common_pb2.JOB_STATE_RUNNING)
    second = await submit(wire, anywhere(running("b")))
    await wire.in_state(second.name, common_pb2.JOB_STATE_RUNNING)
    places = [(await wire.attempts(job.name))[0].backend for job in (first, second)]
    assert places == ["cheap", "dear"]
    await cancel(wire, first.name, second.name)


async def test_what_only_one_can_run_has_no_choice(wire: Wire) -> None:
    wanted = anywhere(spec())
    wanted.resources.memory_bytes = 1 << 30
    job = await submit(wire, wanted)
    assert (job.spec.backend, list(job.backends)) == ("dear", [])
    assert (await wire.attempts((await wire.ended(job.name)).name))[0].backend == "dear"


async def test_what_none_can_run_is_refused_with_the_cheapest_s_reason(wire: Wire) -> None:
    wanted = anywhere(spec())
    wanted.environment.image = "python:3"
    refusal = await refused(submit(wire, wanted))
    assert refusal.fields == ["spec.environment.image"]


async def test_a_rerun_may_choose_again(wire: Wire) -> None:
    old = await submit(wire, anywhere(spec()))
    await wire.ended(old.name)
    new = await wire.once(job_pb2.RerunJobRequest(job=old.name), job_pb2.Job)
    assert list(new.backends) == ["cheap", "dear"]
    request = job_pb2.RerunJobRequest(job=old.name)
    request.overrides.backend = "null"
    request.override_mask.paths.append("backend")
    named = await wire.once(request, job_pb2.Job)
    assert (named.spec.backend, list(named.backends)) == ("null", [])
