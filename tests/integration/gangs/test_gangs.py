"""Gangs of eight on a real server, keeper and worker: what ran when say the jobs' own files."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from server_process import HatobaServer, kill9
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2

from .conftest import SIZE, explained, found, gang, seen, spec


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
