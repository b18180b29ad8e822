"""Gangs of eight on a real server, keeper and worker: what ran when say the jobs' own files."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from server_process import HatobaServer, kill9, running_server, until
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, worker_pb2

SIZE = 8
SCRIPT = Path(__file__).with_name("member.py")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """One with a host of eight places."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "worker.json").write_text(json.dumps({"cpus": SIZE, "slots": 4, "name": "host-1"}))
    async with running_server(data) as one:
        yield one


@pytest.fixture
async def wire(server: HatobaServer) -> AsyncIterator[Wire]:
    async with Wire(server) as one:
        yield one


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """Where jobs leave word."""
    made = tmp_path / "marks"
    made.mkdir()
    return made


def spec(marks: Path, mode: str, **fields: object) -> job_pb2.JobSpec:
    made = job_pb2.JobSpec(
        name=mode,
        command=[sys.executable, str(SCRIPT), str(marks), mode],
        **fields,  # type: ignore[arg-type]
    )
    made.resources.cpus = 1
    made.environment.caller_interpreter = sys.executable
    made.stop_grace.FromSeconds(5)
    return made


def gang(marks: Path, mode: str) -> job_pb2.JobSpec:
    made = spec(marks, mode, replicas=SIZE)
    made.gang.policy = job_pb2.GANG_POLICY_RESTART
    made.retries.user = 1
    made.retries.backoff.SetInParent()
    return made


async def seen(marks: Path, pattern: str, count: int) -> list[Path]:
    """The files of that name, once there are so many."""
    await until(lambda: len(list(marks.glob(pattern))) >= count)
    return await found(marks, pattern)


async def found(marks: Path, pattern: str) -> list[Path]:
    return await asyncio.to_thread(lambda: sorted(marks.glob(pattern)))


async def explained(wire: Wire, name: str) -> job_pb2.Explanation:
    return await wire.call(job_pb2.ExplainJobRequest(name=name), job_pb2.Explanation)


async def test_a_gang_whose_eighth_member_finds_no_place_does_not_begin(
    wire: Wire, marks: Path
) -> None:
    blocker = await wire.submit(spec(marks, "block"))
    await seen(marks, "block", 1)
    job = await wire.submit(gang(marks, "end"))
    small = await wire.submit(spec(marks, "small"))
    await wire.ended(small.name)
    why = await explained(wire, job.name)
    assert why.state == common_pb2.JOB_STATE_QUEUED
    assert why.reason in (job_pb2.WAIT_REASON_NO_ROOM, job_pb2.WAIT_REASON_GANG_INCOMPLETE)
    assert await found(marks, "began-*") == []
    (marks / "go").touch()
    await wire.ended(blocker.name)
    ended = await wire.ended(job.name)
    assert dict(ended.counts.by_state) == {"SUCCEEDED": SIZE}
    began = await seen(marks, "began-1-*", SIZE)
    places = [json.loads(path.read_text()) for path in began]
    assert {place["rank"] for place in places} == set(range(SIZE))
    assert {place["size"] for place in places} == {SIZE}
    assert len({tuple(place["addresses"]) for place in places}) == 1
    assert len(set(places[0]["addresses"])) == SIZE
    assert {place["master"] for place in places} == {places[0]["addresses"][0]}
    assert (await wire.job(job.name)).generation == 1


async def test_when_one_is_killed_the_next_generation_waits_until_all_are_gone(
    wire: Wire, marks: Path
) -> None:
    job = await wire.submit(gang(marks, "linger"))
    began = await seen(marks, "began-1-*", SIZE)
    pids = {json.loads(path.read_text())["pid"] for path in began}
    assert await asyncio.to_thread(kill9, min(pids))
    ended = await wire.ended(job.name)
    assert dict(ended.counts.by_state) == {"SUCCEEDED": SIZE}
    assert ended.generation == 2
    assert len(await seen(marks, "began-2-*", SIZE)) == SIZE
    assert await found(marks, "overlap-*") == []
    # Those that were stopped took their second, and the next generation waited for it.
    assert len(await found(marks, "lingered-1-*")) == SIZE - 1
    attempts = await wire.attempts(job.name)
    assert sorted((one.index, one.generation) for one in attempts) == sorted(
        (index, generation) for index in range(SIZE) for generation in (1, 2)
    )
    reasons = {event.reason for event in await wire.events(job.name) if event.note}
    assert {"stop", "retry"} <= reasons


async def test_a_server_killed_at_the_barrier_lets_each_member_run_once(
    server: HatobaServer, wire: Wire, marks: Path
) -> None:
    job = await wire.submit(gang(marks, "end"), "gang-1")
    await server.restart()
    ended = await wire.ended(job.name)
    assert dict(ended.counts.by_state) == {"SUCCEEDED": SIZE}
    began = await seen(marks, "began-*", SIZE)
    assert len(began) == SIZE * ended.generation


async def test_a_drained_host_gives_its_jobs_back(wire: Wire, marks: Path) -> None:
    job = await wire.submit(spec(marks, "saves"))
    await seen(marks, "began-*", 1)
    request = worker_pb2.CordonHostRequest(
        name="host-1", cordoned=True, drain=True, reason="new fans"
    )
    host = await wire.call(request, worker_pb2.Host)
    assert (host.cordoned, host.draining, host.cordon_reason) == (True, True, "new fans")
    await seen(marks, "saved", 1)
    await wire.in_state(job.name, common_pb2.JOB_STATE_QUEUED)
    waits = await explained(wire, job.name)
    assert waits.reason != job_pb2.WAIT_REASON_UNSPECIFIED
    assert await found(marks, "alive-*") == []
    await wire.call(worker_pb2.CordonHostRequest(name="host-1"), worker_pb2.Host)
    ended = await wire.ended(job.name)
    assert dict(ended.counts.by_state) == {"SUCCEEDED": 1}
    (task,) = (await wire.tasks(job.name))[:1]
    assert task.preemptions == 0
    notes = [event.note for event in await wire.events(job.name) if event.reason == "drain"]
    assert len(notes) == 1
    assert notes[0].startswith("Host 'host-1' was drained by ")
    assert "new fans; it has 5 s to save a checkpoint." in notes[0]
    assert await found(marks, "went-on")
