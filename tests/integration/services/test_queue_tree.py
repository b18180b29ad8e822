"""Queues in a tree: parents, quotas, warnings, cordons, and what they use."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from server_process import HatobaServer, runs
from waiting import eventually, until
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, queue_pb2

from .conftest import cancel, held, refused, running, spec, submit
from .test_queues import create, delete, get, in_queue, update

Queue = queue_pb2.Queue
Resources = common_pb2.Resources


async def cordon(wire: Wire, name: str, **fields: Any) -> Queue:
    return await wire.once(queue_pb2.CordonQueueRequest(name=name, **fields), Queue)


async def usage(wire: Wire, name: str) -> queue_pb2.QueueUsage:
    return await wire.once(queue_pb2.GetQueueUsageRequest(name=name), queue_pb2.QueueUsage)


async def test_settings_of_the_tree_are_kept_and_changed_one_by_one(
    wire: Wire, project: str
) -> None:
    await create(wire, project, "lab")
    made = await create(
        wire,
        project,
        "vision",
        parent="lab",
        quota=Resources(cpus=2, memory_bytes=1 << 30),
        guaranteed=Resources(cpus=1, named={"licence": 2}),
        no_borrowing=True,
    )
    assert (made.parent, made.quota.cpus, made.guaranteed.cpus) == ("lab", 2, 1)
    assert made.no_borrowing
    assert await get(wire, made.name) == made
    after = await update(wire, Queue(name=made.name), "quota")
    assert not after.HasField("quota")
    assert (after.parent, after.guaranteed.cpus) == ("lab", 1)
    after = await update(wire, Queue(name=made.name), "parent", "guaranteed", "no_borrowing")
    assert (after.parent, after.no_borrowing) == ("", False)
    assert not after.HasField("guaranteed")


async def test_a_cycle_is_refused_and_named(wire: Wire, project: str) -> None:
    for name, parent in (("a", ""), ("b", "a"), ("c", "b")):
        await create(wire, project, name, parent=parent)
    top = f"projects/{project}/queues/a"
    refusal = await refused(update(wire, Queue(name=top, parent="c"), "parent"))
    assert (refusal.code, refusal.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["queue.parent"],
    )
    assert "a below c below b below a" in refusal.message
    refusal = await refused(update(wire, Queue(name=top, parent="a"), "parent"))
    assert "a below a" in refusal.message
    assert (await get(wire, top)).parent == ""


async def test_a_parent_must_be_there_in_the_same_project(wire: Wire, project: str) -> None:
    other = f"{project}-b"
    await create(wire, other, "far")
    for parent in ("far", "nowhere"):
        refusal = await refused(create(wire, project, "q", parent=parent))
        assert refusal.fields == ["queue.parent"]
    assert (await create(wire, project, "q", parent="default")).parent == "default"


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("queue.weight", {"weight": -1.0}),
        ("queue.weight", {"weight": float("nan")}),
        ("queue.weight", {"weight": float("inf")}),
        ("queue.weight", {"weight": 0.0001}),
        ("queue.parent", {"parent": "No Name"}),
        ("queue.quota.cpus", {"quota": Resources(cpus=-1)}),
        ("queue.guaranteed.gpus", {"guaranteed": Resources(gpus=-1)}),
    ],
)
async def test_settings_that_mean_nothing_are_refused(
    wire: Wire, project: str, field: str, settings: dict[str, Any]
) -> None:
    refusal = await refused(create(wire, project, "q", **settings))
    assert (refusal.code, set(refusal.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, {field})


async def test_a_queue_with_others_below_it_stays(wire: Wire, project: str) -> None:
    above = await create(wire, project, "above")
    below = await create(wire, project, "below", parent="above")
    refusal = await refused(delete(wire, above.name))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_EMPTY")
    assert "below" in refusal.message
    await delete(wire, below.name)
    await delete(wire, above.name)


async def test_what_is_suspicious_is_accepted_and_told(wire: Wire, project: str) -> None:
    made = await create(wire, project, "q", no_borrowing=True)
    assert any("nothing of this queue can ever start" in one for one in made.warnings)
    made = await create(
        wire, project, "r", quota=Resources(cpus=2), guaranteed=Resources(cpus=3, gpus=1)
    )
    assert any("above its quota" in one for one in made.warnings)
    await create(wire, project, "s", parent="r", guaranteed=Resources(cpus=4))
    again = await get(wire, made.name)
    assert any("below it" in one for one in again.warnings)
    assert list((await create(wire, project, "fine")).warnings) == []


async def test_a_cordon_is_kept_over_a_restart(own_server: HatobaServer, own_wire: Wire) -> None:
    made = await create(own_wire, "default", "q")
    after = await cordon(own_wire, "q", cordoned=True, reason="moving house")
    assert (after.cordoned, after.cordon_reason) == (True, "moving house")
    assert after.etag != made.etag
    await own_server.kill()
    await own_server.start()
    assert (await get(own_wire, "q")).cordon_reason == "moving house"
    after = await cordon(own_wire, "q", cordoned=False, reason="ignored")
    assert (after.cordoned, after.cordon_reason) == (False, "")


async def test_a_cordon_from_above_counts(wire: Wire, project: str) -> None:
    above = await create(wire, project, "above")
    below = await create(wire, project, "below", parent="above")
    await cordon(wire, above.name, cordoned=True)
    assert (await usage(wire, below.name)).cordoned
    assert not (await get(wire, below.name)).cordoned
    await cordon(wire, above.name, cordoned=False)
    assert not (await usage(wire, below.name)).cordoned


async def test_drain_needs_a_cordon(wire: Wire, project: str) -> None:
    made = await create(wire, project, "q")
    refusal = await refused(cordon(wire, made.name, drain=True))
    assert refusal.fields == ["drain"]
    assert (await refused(cordon(wire, "ghost"))).code is grpc.StatusCode.NOT_FOUND


async def test_draining_has_what_runs_give_way_at_nobodys_charge(wire: Wire, project: str) -> None:
    await create(wire, project, "above")
    queue = await create(wire, project, "below", parent="above")
    job = await submit(wire, in_queue(running(), "below"), project)

    async def attempts() -> list[job_pb2.Attempt]:
        request = job_pb2.ListAttemptsRequest(job=job.name)
        return list((await wire.once(request, job_pb2.ListAttemptsResponse)).attempts)

    async def state_is(state: int) -> bool:
        return (await wire.job(job.name)).state == state

    await eventually(lambda: state_is(common_pb2.JOB_STATE_RUNNING))
    await cordon(
        wire, f"projects/{project}/queues/above", cordoned=True, drain=True, reason="repairs"
    )
    await eventually(lambda: state_is(common_pb2.JOB_STATE_QUEUED))
    (attempt,) = await attempts()
    assert attempt.state == common_pb2.ATTEMPT_STATE_PREEMPTED
    assert "drained by admin: repairs" in attempt.cause.message
    assert (await usage(wire, queue.name)).cordoned
    await cancel(wire, job.name)


async def test_cordons_that_meet_are_both_carried_out(wire: Wire, project: str) -> None:
    made = await create(wire, project, "q")
    said = [{"cordoned": True, "reason": str(number)} for number in range(20)]
    changes = [update(wire, Queue(name=made.name, max_running=n), "max_running") for n in (7, 8)]
    await asyncio.gather(*(cordon(wire, made.name, **one) for one in said), *changes)
    found = await get(wire, made.name)
    assert found.cordoned
    assert found.max_running in (7, 8)
    assert found.etag != made.etag


async def test_a_drain_that_a_death_cut_short_goes_on_by_itself(own_server: HatobaServer) -> None:
    launcher = own_server.launcher
    await own_server.kill()
    launcher.environ = {"HATOBA_FAILPOINTS": "queue.cordon.after:kill9@1"}
    await own_server.start()
    async with Wire(own_server) as wire:
        wanted = spec(backend="null")
        wanted.backend_options.update({"null": {"delay": 600}})
        job = await submit(wire, wanted)

        async def state_is(state: int) -> bool:
            return (await wire.job(job.name)).state == state

        await eventually(lambda: state_is(common_pb2.JOB_STATE_RUNNING))
        request = queue_pb2.CordonQueueRequest(
            name="default", cordoned=True, drain=True, request_id="once"
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await wire.once(request, Queue)
        await until(lambda: not runs(own_server.pid))
        launcher.environ = {}
        await own_server.start()
        await eventually(lambda: state_is(common_pb2.JOB_STATE_QUEUED))
        listed = job_pb2.ListAttemptsRequest(job=job.name)
        (attempt,) = (await wire.once(listed, job_pb2.ListAttemptsResponse)).attempts
        assert attempt.cause.message == "Queue 'default' was drained by an operator."
        shown, repeated = await wire.answer(request, Queue)
        assert repeated
        assert (shown.cordoned, shown.draining) == (True, True)
        shown = await cordon(wire, "default", cordoned=True)
        assert (shown.cordoned, shown.draining) == (True, False)


async def test_usage_counts_what_is_there(wire: Wire, project: str) -> None:
    await create(wire, project, "q", weight=2, quota=Resources(cpus=1))
    jobs = [await submit(wire, in_queue(held(), "q"), project) for _ in range(3)]
    found = await usage(wire, f"projects/{project}/queues/q")
    assert (found.jobs, dict(found.tasks.by_state)) == (3, {"HELD": 3})
    assert (found.weight, found.quota.cpus, found.parent) == (2, 1, "")
    assert not found.HasField("guaranteed")
    await cancel(wire, *(job.name for job in jobs))
    await wire.ended((await submit(wire, in_queue(spec(), "q"), project)).name)
    found = await usage(wire, f"projects/{project}/queues/q")
    assert (found.jobs, found.start_rate > 0, found.end_rate > 0) == (0, True, True)


async def test_usage_of_all_queues_comes_in_pages(wire: Wire, project: str) -> None:
    for name in ("a", "b", "c"):
        await create(wire, project, name)
    request = queue_pb2.ListQueueUsageRequest(project=project, page_size=2)
    names: list[str] = []
    while True:
        page = await wire.once(request, queue_pb2.ListQueueUsageResponse)
        names += [one.queue.rpartition("/")[2] for one in page.usages]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert names == ["a", "b", "c", "default"]
