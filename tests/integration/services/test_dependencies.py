"""Jobs that wait for others: all to succeed, one to succeed, all to end; long chains, wide fans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import grpc
import pytest
from server_process import HatobaServer
from waiting import eventually
from wire import Wire

from hatoba.v1 import job_pb2

from .conftest import cancel, events_of, held, refused, spec, state, submit, watch

FAILING: dict[str, Any] = {"exit_code": 3}


def after(job_name: str = "after", /, **waits: Any) -> job_pb2.JobSpec:
    """A job that waits for others."""
    wanted = spec(job_name)
    wanted.MergeFrom(job_pb2.JobSpec(**waits))
    return wanted


async def release(wire: Wire, name: str) -> None:
    request = job_pb2.UpdateJobRequest(name=name)
    request.update_mask.paths.append("hold")
    await wire.once(request, job_pb2.Job)


async def ended(wire: Wire, project: str, wanted: job_pb2.JobSpec) -> job_pb2.Job:
    return await wire.ended((await submit(wire, wanted, project)).name)


async def test_one_of_several_is_enough(wire: Wire, project: str) -> None:
    bad, good = await submit(wire, held("bad"), project), await submit(wire, held("good"), project)
    job = await submit(wire, after(after_any=[bad.name, good.name]), project)
    assert state(job) == "BLOCKED"
    await cancel(wire, bad.name)

    async def waits_for_one() -> bool:
        reason = (await wire.job(job.name)).waiting_reason
        return reason == "Waits for good-1 to succeed."

    await eventually(waits_for_one)
    await release(wire, good.name)
    assert state(await wire.ended(job.name)) == "SUCCEEDED"


async def test_none_of_several_is_too_few(wire: Wire, project: str) -> None:
    first, second = [await submit(wire, held(name), project) for name in ("a", "b")]
    job = await submit(wire, after(after_any=[first.name, second.name]), project)
    assert (await wire.job(job.name)).waiting_reason == "Waits for one of a-1 and b-1 to succeed."
    await cancel(wire, first.name, second.name)
    over = await wire.ended(job.name)
    assert state(over) == "UPSTREAM_FAILED"
    assert over.cause.message.startswith("None of the jobs of which one had to succeed did; ")


async def test_an_end_is_an_end(wire: Wire, project: str) -> None:
    first = await submit(wire, held("first"), project)
    job = await submit(wire, after(after_end=[first.name]), project)
    assert (await wire.job(job.name)).waiting_reason == "Waits for first-1 to end."
    await cancel(wire, first.name)
    assert state(await wire.ended(job.name)) == "SUCCEEDED"
    told = events_of(await watch(wire, jobs=[job.name], cursor="0"))
    notes = [event.note for event in told if event.reason == "unblock"]
    assert notes == ["first-1 ended CANCELLED; nothing more to wait for."]


async def test_all_ways_together(wire: Wire, project: str) -> None:
    names = [(await submit(wire, held(name), project)).name for name in ("ok", "any", "end")]
    job = await submit(
        wire, after(after_ok=names[:1], after_any=names[1:2], after_end=names[2:]), project
    )
    assert (await wire.job(job.name)).waiting_reason == (
        "Waits for ok-1 to succeed, and for any-1 to succeed, and for end-1 to end."
    )
    for name in names:
        await release(wire, name)
    assert state(await wire.ended(job.name)) == "SUCCEEDED"


async def test_what_has_ended_already_counts(wire: Wire, project: str) -> None:
    good = await ended(wire, project, spec("good"))
    bad = await ended(wire, project, spec("bad", **FAILING))
    job = await submit(wire, after(after_any=[bad.name, good.name], after_end=[bad.name]), project)
    assert state(await wire.ended(job.name)) == "SUCCEEDED"
    refusal = await refused(submit(wire, after(after_any=[bad.name]), project))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "spec.after_any" in refusal.message
    assert "bad-1 FAILED" in refusal.message


@pytest.mark.parametrize("field", ["after_ok", "after_any", "after_end"])
@pytest.mark.parametrize(
    ("name", "words"),
    [("gone-7", "names no job"), ("after-1", "is a cycle"), ("a/b/c", "names no job")],
)
async def test_what_is_not_there_cannot_be_waited_for(
    wire: Wire, project: str, field: str, name: str, words: str
) -> None:
    refusal = await refused(submit(wire, after(**{field: [name]}), project))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields == [f"spec.{field}[0]"]
    assert words in refusal.message
    assert "submitted before it" in refusal.message


async def test_jobs_of_one_call_cannot_wait_for_each_other(wire: Wire, project: str) -> None:
    items = [
        job_pb2.SubmitJobsItem(spec=after("a", after_ok=["b-1"])),
        job_pb2.SubmitJobsItem(spec=after("b", after_ok=["a-1"])),
    ]
    request = job_pb2.SubmitJobsRequest(project=project, items=items)
    reply = await wire.once(request, job_pb2.SubmitJobsResponse)
    assert all("submitted before it" in result.message for result in reply.results)


async def test_a_repeated_request_makes_no_cycle(wire: Wire, project: str) -> None:
    first = await submit(wire, held("a"), project, request_id="one")
    second = await submit(wire, after("b", after_ok=[first.name]), project)
    again = held("a")
    again.after_ok.append(second.name)
    refusal = await refused(submit(wire, again, project, request_id="one"))
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS


# -- ten thousand -----------------------------------------------------------------------------


def quick(name: str) -> job_pb2.JobSpec:
    return spec(name, backend="null")


async def chain(wire: Wire, project: str, links: int) -> list[str]:
    """Uids of jobs each of which waits for the one before; the first is held."""
    first = quick("link")
    first.hold = True
    uids = [(await submit(wire, first, project)).uid]
    while len(uids) < links:
        made = quick("link")
        made.after_ok.append(uids[-1])
        uids.append((await submit(wire, made, project)).uid)
    return uids


async def fan(wire: Wire, project: str, width: int) -> list[str]:
    """Uids of a held job and of others that all wait for it, some in each way."""
    first = quick("first")
    first.hold = True
    uids = [(await submit(wire, first, project)).uid]
    made = quick("one")
    made.after_ok.append(uids[0])
    request = job_pb2.SubmitJobsRequest(project=project)
    request.items.extend(job_pb2.SubmitJobsItem(spec=made) for _ in range(1000))
    while len(uids) <= width:
        reply = await wire.once(request, job_pb2.SubmitJobsResponse)
        uids.extend(result.uid for result in reply.results)
    return uids


async def counts(wire: Wire, project: str) -> dict[str, int]:
    request = job_pb2.CountJobsRequest(project=project)
    return dict((await wire.once(request, job_pb2.CountJobsResponse)).by_state)


async def slowest_call_while(wire: Wire, uid: str, what: Awaitable[object]) -> float:
    """Seconds that the slowest of many small calls took while something else went on."""
    slowest, done = 0.0, asyncio.Event()

    async def ask_meanwhile() -> None:
        nonlocal slowest
        while not done.is_set():
            begin = time.perf_counter()
            await wire.job(uid)
            slowest = max(slowest, time.perf_counter() - begin)

    async with asyncio.TaskGroup() as group:
        group.create_task(ask_meanwhile(), name="asker")
        await what
        done.set()
    return slowest


async def falls(wire: Wire, project: str, uids: Sequence[str]) -> None:
    """The first is cancelled; all others follow it within seconds, and calls are answered."""

    async def fallen() -> bool:
        wanted = {"CANCELLED": 1, "UPSTREAM_FAILED": len(uids) - 1}
        return await counts(wire, project) == wanted

    begin = time.perf_counter()
    await cancel(wire, uids[0])
    slowest = await slowest_call_while(wire, uids[0], eventually(fallen))
    print(f"{len(uids)} fell in {time.perf_counter() - begin:.2f} s; slowest call {slowest:.3f} s")
    assert slowest < 2


async def test_a_wide_fan_falls_with_its_first(own_wire: Wire, project: str) -> None:
    await falls(own_wire, project, await fan(own_wire, project, 10_000))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("good", [False, True], ids=["falls", "runs"])
async def test_a_long_chain_goes_the_way_of_its_first(
    own_wire: Wire, project: str, good: bool, full_round: bool
) -> None:
    uids = await chain(own_wire, project, 10_000 if full_round else 500)
    if not good:
        return await falls(own_wire, project, uids)
    begin = time.perf_counter()
    await release(own_wire, uids[0])
    await own_wire.ended(uids[-1], patience=500)
    print(f"{len(uids)} links ran in {time.perf_counter() - begin:.2f} s")
    assert await counts(own_wire, project) == {"SUCCEEDED": len(uids)}


async def test_a_fall_that_a_kill_interrupts_goes_on(
    own_server: HatobaServer, project: str
) -> None:
    async with Wire(own_server) as wire:
        uids = await fan(wire, project, 2_000)
        await cancel(wire, uids[0])
        await own_server.kill()
    await own_server.start()
    async with Wire(own_server) as wire:

        async def fallen() -> bool:
            return (await counts(wire, project)).get("UPSTREAM_FAILED") == len(uids) - 1

        await eventually(fallen)
