"""WatchJobs: every event once and in order, whatever breaks in between, and a named end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import grpc
import pytest
from server_process import HatobaServer
from waiting import PATIENCE
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2

from .conftest import cancel, events_of, held, refused, running, spec, submit, watch

Message = job_pb2.WatchJobsResponse


def kinds(messages: list[Message]) -> list[str | None]:
    return [message.WhichOneof("kind") for message in messages]


async def until_event(
    stream: AsyncIterator[Message], job: str, reason: str
) -> tuple[list[common_pb2.Event], str]:
    """Events up to one of this job with this reason, and the cursor after it."""
    seen = []
    async with asyncio.timeout(PATIENCE):
        async for message in stream:
            if message.HasField("event"):
                seen.append(message.event)
                if (message.event.job, message.event.reason) == (job, reason):
                    return seen, message.cursor
    raise AssertionError(f"the stream ended before {reason} of {job}")


async def test_a_jobs_life_is_told_once_and_in_order(wire: Wire, project: str) -> None:
    job = await submit(wire, spec("life", run_for=0.02), project)
    messages = await watch(wire, jobs=[job.name], cursor="0")
    events = events_of(messages)
    assert kinds(messages)[-1] == "end"
    assert messages[-1].end.reason == "terminal"
    assert [event.job_seq for event in events] == list(range(1, len(events) + 1))
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert events[0].reason == "submit"
    assert events[0].actor == "admin"
    assert {event.job for event in events} == {job.name}
    assert {event.trace_id for event in events} == {job.trace_id}
    assert [event.job_terminal for event in events] == [False] * (len(events) - 1) + [True]
    last = events[-1]
    assert (last.index, last.attempt, last.terminal) == (0, 1, True)
    assert last.to == common_pb2.JOB_STATE_SUCCEEDED
    for before, after in itertools.pairwise(events):
        assert after.job_from == before.job_to
    ended = await wire.job(job.name)
    assert ended.version == last.job_seq


async def test_an_ended_job_ends_the_stream_wherever_it_begins(wire: Wire, project: str) -> None:
    job = await submit(wire, spec("over"), project)
    await wire.ended(job.name)
    everything = await watch(wire, jobs=[job.name], cursor="0")
    for number, message in enumerate(everything):
        rest = await watch(wire, jobs=[job.uid], cursor=message.cursor)
        assert events_of(rest) == events_of(everything[number + 1 :])
        assert rest[-1].end.reason == "terminal"
    from_now = await watch(wire, jobs=[job.name])
    assert kinds(from_now) == ["heartbeat", "end"]


async def test_a_stream_of_several_jobs_ends_with_the_last(wire: Wire, project: str) -> None:
    jobs = [await submit(wire, running(), project) for _ in range(3)]
    names = [job.name for job in jobs]
    stream = wire.stream(job_pb2.WatchJobsRequest(jobs=names, cursor="0"), Message)
    for job in jobs:
        await until_event(stream, job.name, "run") if job is jobs[0] else None
    await cancel(wire, *names)
    async with asyncio.timeout(PATIENCE):
        rest = [message async for message in stream]
    assert rest[-1].end.reason == "terminal"
    assert {e.job for e in events_of(rest) if e.job_terminal} == set(names)


async def test_an_empty_cursor_begins_now_and_says_where(wire: Wire, project: str) -> None:
    await submit(wire, held("before"), project)
    stream = wire.stream(job_pb2.WatchJobsRequest(project=project), Message)
    first = await anext(stream)
    assert first.WhichOneof("kind") == "heartbeat"
    job = await submit(wire, held("after"), project)
    seen, _ = await until_event(stream, job.name, "submit")
    assert [event.job for event in seen] == [job.name]
    again = wire.stream(job_pb2.WatchJobsRequest(project=project, cursor=first.cursor), Message)
    assert (await anext(again)).event == seen[0]


async def test_a_job_that_ends_as_its_watch_begins_ends_it(wire: Wire, project: str) -> None:
    """Its end may come between reading the job and reading the log; many names make that long."""
    job = await submit(wire, held(), project)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(wire, jobs=[job.name] * 1000), name="watch")
        for _ in range(3):
            await wire.job(job.name)
        await cancel(wire, job.name)
    messages = watching.result()
    assert messages[-1].end.reason == "terminal"
    assert [event.reason for event in events_of(messages)] in (["cancel"], [])


async def test_jobs_only_tells_what_moved_the_job(wire: Wire, project: str) -> None:
    wanted = spec("array")
    wanted.array.size = 5
    job = await submit(wire, wanted, project)
    await wire.ended(job.name)
    events = events_of(await watch(wire, jobs=[job.name], cursor="0", jobs_only=True))
    assert events[0].reason == "submit"
    assert all(event.job_from != event.job_to for event in events[1:])
    assert events[-1].job_terminal
    assert len(events) < len(events_of(await watch(wire, jobs=[job.name], cursor="0")))


async def test_other_projects_are_not_told_of(wire: Wire, project: str) -> None:
    stream = wire.stream(job_pb2.WatchJobsRequest(project=project), Message)
    await anext(stream)
    await submit(wire, held("elsewhere"))
    job = await submit(wire, held("here"), project)
    seen, _ = await until_event(stream, job.name, "submit")
    assert [event.job for event in seen] == [job.name]


@pytest.mark.parametrize("cursor", ["x", "1", "1.", ".1", "1.x", "-1.5", "1.99999999999", "²"])
async def test_a_foreign_cursor_is_refused(wire: Wire, cursor: str) -> None:
    refusal = await refused(watch(wire, cursor=cursor))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CURSOR")


@pytest.mark.parametrize("cursor", ["0.5", "7.1", "99.99999999999"])
async def test_a_cursor_of_another_epoch_is_told_to_read_anew(wire: Wire, cursor: str) -> None:
    (message,) = await watch(wire, cursor=cursor)
    assert message.WhichOneof("kind") == "resync"
    assert message.cursor == message.resync.oldest_cursor
    stream = wire.stream(job_pb2.WatchJobsRequest(cursor=message.cursor), Message)
    assert (await anext(stream)).WhichOneof("kind") in ("event", "heartbeat")


async def test_an_unknown_job_is_not_watched(wire: Wire) -> None:
    assert (await refused(watch(wire, jobs=["ghost-1"]))).code is grpc.StatusCode.NOT_FOUND


async def test_the_cursor_is_good_for_the_next_server(
    own_server: HatobaServer, own_wire: Wire
) -> None:
    """Killed and terminated, at random places in the stream: no gap, nothing twice."""
    job = await submit(own_wire, held("first"))
    stream = own_wire.stream(job_pb2.WatchJobsRequest(cursor="0"), Message)
    seen, cursor = await until_event(stream, job.name, "submit")
    await own_server.kill()
    await own_server.start()
    job = await submit(own_wire, held("second"))
    stream = own_wire.stream(job_pb2.WatchJobsRequest(cursor=cursor), Message)
    more, cursor = await until_event(stream, job.name, "submit")
    seen += more
    async with asyncio.TaskGroup() as group:
        group.create_task(own_server.terminate(), name="stop")
        rest = [message async for message in stream]
    assert rest[-1].end.reason == "shutdown"
    await own_server.start()
    await cancel(own_wire, "first-1", "second-1")
    stream = own_wire.stream(job_pb2.WatchJobsRequest(cursor=rest[-1].cursor), Message)
    more, cursor = await until_event(stream, job.name, "cancel")
    seen += more
    assert [event.seq for event in seen] == [1, 2, 3, 4]
    assert [event.reason for event in seen] == ["submit", "submit", "cancel", "cancel"]
    assert cursor.endswith(".4")
