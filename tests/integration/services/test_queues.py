"""QueueService: made once, changed on what was read, limits that hold."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, queue_pb2

from .conftest import cancel, held, refused, running, spec, submit

Queue = queue_pb2.Queue


async def create(
    wire: Wire, project: str, name: str, request_id: str = "", **settings: Any
) -> Queue:
    request = queue_pb2.CreateQueueRequest(
        project=project, queue_id=name, queue=Queue(**settings), request_id=request_id
    )
    return await wire.once(request, Queue)


async def update(wire: Wire, queue: Queue, *paths: str) -> Queue:
    request = queue_pb2.UpdateQueueRequest(queue=queue)
    request.update_mask.paths.extend(paths)
    return await wire.once(request, Queue)


async def get(wire: Wire, name: str) -> Queue:
    return await wire.once(queue_pb2.GetQueueRequest(name=name), Queue)


async def delete(wire: Wire, name: str, **fields: Any) -> None:
    request = queue_pb2.DeleteQueueRequest(name=name, **fields)
    await wire.once(request, queue_pb2.DeleteQueueResponse)


def in_queue(wanted: job_pb2.JobSpec, name: str) -> job_pb2.JobSpec:
    wanted.queue = name
    return wanted


async def test_made_read_listed_removed(wire: Wire, project: str) -> None:
    made = await create(wire, project, "gpu", max_running=3, labels={"a": "b"})
    assert made.name == f"projects/{project}/queues/gpu"
    assert (made.weight, made.max_running, made.created_by) == (1.0, 3, "admin")
    assert made.create_time.seconds
    assert await get(wire, made.name) == made
    for name in ("c", "a", "b"):
        await create(wire, project, name)
    listed: list[str] = []
    token = ""
    while True:
        request = queue_pb2.ListQueuesRequest(project=project, page_size=2, page_token=token)
        reply = await wire.once(request, queue_pb2.ListQueuesResponse)
        listed += [queue.name.split("/")[-1] for queue in reply.queues]
        token = reply.next_page_token
        if not token:
            break
    assert listed == ["a", "b", "c", "default", "gpu"]
    await delete(wire, made.name, etag=made.etag)
    assert (await refused(get(wire, made.name))).code is grpc.StatusCode.NOT_FOUND
    refusal = await refused(submit(wire, in_queue(held(), "gpu"), project))
    assert refusal.fields == ["spec.queue"]


async def test_the_same_queue_twice_is_one(wire: Wire, project: str) -> None:
    made = await create(wire, project, "q", max_running=2)
    assert await create(wire, project, "q", max_running=2) == made
    refusal = await refused(create(wire, project, "q", max_running=3))
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    many = await asyncio.gather(*(create(wire, project, "race", weight=2) for _ in range(20)))
    assert all(queue == many[0] for queue in many)


async def test_request_ids(wire: Wire, project: str) -> None:
    request = queue_pb2.CreateQueueRequest(project=project, queue_id="q", request_id="k")
    made, repeated = await wire.answer(request, Queue)
    assert not repeated
    assert await wire.answer(request, Queue) == (made, True)
    request.queue.max_running = 1
    refusal = await refused(wire.once(request, Queue))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "IDEMPOTENCY_MISMATCH",
    )
    change = queue_pb2.UpdateQueueRequest(
        queue=Queue(name=made.name, etag=made.etag, max_pending=4), request_id="u"
    )
    change.update_mask.paths.append("max_pending")
    after, repeated = await wire.answer(change, Queue)
    assert (after.max_pending, repeated) == (4, False)
    assert await wire.answer(change, Queue) == (after, True)
    await delete(wire, made.name, request_id="d")
    await delete(wire, made.name, request_id="d")
    assert (await refused(delete(wire, made.name))).code is grpc.StatusCode.NOT_FOUND


async def test_only_what_the_mask_names_changes(wire: Wire, project: str) -> None:
    made = await create(wire, project, "q", max_running=2, max_pending=3, weight=2)
    after = await update(wire, Queue(name=made.name, etag=made.etag), "max_running")
    assert (after.max_running, after.max_pending, after.weight) == (0, 3, 2)
    assert after.etag != made.etag
    refusal = await refused(update(wire, Queue(name=made.name, etag=made.etag), "weight"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "STALE_ETAG")
    refusal = await refused(delete(wire, made.name, etag=made.etag))
    assert refusal.code is grpc.StatusCode.ABORTED
    assert await get(wire, made.name) == after


async def test_default_is_there_before_and_changes_after_the_first_job(
    wire: Wire, project: str
) -> None:
    name = f"projects/{project}/queues/default"
    assert (await get(wire, name)).weight == 1
    await submit(wire, held(), project)
    after = await update(wire, Queue(name=name, max_pending=1), "max_pending")
    assert after.max_pending == 1
    assert await get(wire, name) == after
    refusal = await refused(submit(wire, held(), project))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
    )
    assert (await refused(delete(wire, name))).code is grpc.StatusCode.FAILED_PRECONDITION


async def test_default_may_be_changed_before_the_first_job(wire: Wire, project: str) -> None:
    name = f"projects/{project}/queues/default"
    first = await update(wire, Queue(name=name, max_running=1), "max_running")
    second = await update(wire, Queue(name=name, etag=first.etag, weight=3), "weight")
    assert (second.max_running, second.weight) == (1, 3)
    await submit(wire, held(), project)
    assert await get(wire, name) == second


@pytest.mark.parametrize(
    ("queue", "paths", "field"),
    [
        (Queue(name="x"), [], "update_mask"),
        (Queue(name="x"), ["name"], "update_mask"),
        (Queue(name="x"), ["weight", "etag"], "update_mask"),
        (Queue(name="no/name"), ["weight"], "queue.name"),
        (Queue(), ["weight"], "queue.name"),
        (Queue(name="default", weight=float("nan")), ["weight"], "queue.weight"),
        (Queue(name="default", weight=-1), ["weight"], "queue.weight"),
        (Queue(name="default", weight=1e-9), ["weight"], "queue.weight"),
        (Queue(name="default", max_running=-1), ["max_running"], "queue.max_running"),
    ],
)
async def test_wrong_updates_are_refused(
    wire: Wire, queue: Queue, paths: list[str], field: str
) -> None:
    refusal = await refused(update(wire, queue, *paths))
    assert (refusal.code, set(refusal.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, {field})


async def test_a_queue_with_unfinished_jobs_stays(wire: Wire, project: str) -> None:
    made = await create(wire, project, "q")
    job = await submit(wire, in_queue(held(), "q"), project)
    refusal = await refused(delete(wire, made.name))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_EMPTY")
    await cancel(wire, job.name)
    await delete(wire, made.name)


async def test_max_pending_holds_for_many_at_once_and_in_batches(wire: Wire, project: str) -> None:
    await create(wire, project, "q", max_pending=5)
    calls = [submit(wire, in_queue(held(), "q"), project) for _ in range(20)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    jobs = [job for job in answers if isinstance(job, job_pb2.Job)]
    codes = {error.code() for error in answers if isinstance(error, grpc.aio.AioRpcError)}
    assert (len(jobs), codes) == (5, {grpc.StatusCode.RESOURCE_EXHAUSTED})
    await cancel(wire, *(job.name for job in jobs))
    batch = job_pb2.SubmitJobsRequest(project=project)
    for _ in range(8):
        batch.items.add(spec=in_queue(held(), "q"))
    results = (await wire.once(batch, job_pb2.SubmitJobsResponse)).results
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert [result.code for result in results] == [0] * 5 + [exhausted] * 3
    checked = job_pb2.SubmitJobRequest(
        spec=in_queue(held(), "q"), project=project, validate_only=True
    )
    refusal = await refused(wire.once(checked, job_pb2.Job))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_places_are_free_again_when_jobs_end_or_move(wire: Wire, project: str) -> None:
    await create(wire, project, "q", max_pending=1)
    checked = job_pb2.SubmitJobRequest(
        spec=in_queue(held(), "q"), project=project, validate_only=True
    )
    await wire.once(checked, job_pb2.Job)
    first = await submit(wire, in_queue(held(), "q"), project)
    move = job_pb2.UpdateJobRequest(name=first.name, queue="default")
    move.update_mask.paths.append("queue")
    await wire.once(move, job_pb2.Job)
    second = await submit(wire, in_queue(spec("done"), "q"), project)
    await wire.ended(second.name)
    await submit(wire, in_queue(held(), "q"), project)


async def test_usage_counts_what_is_unfinished_and_held(wire: Wire, project: str) -> None:
    made = await create(wire, project, "q", max_running=2)
    wanted = in_queue(running("array"), "q")
    wanted.array.size = 5
    wanted.resources.cpus, wanted.resources.memory_bytes = 0.5, 1024
    job = await submit(wire, wanted, project)
    await wire.watched(job.name, lambda job: job.counts.by_state["RUNNING"] == 2, 20)
    await submit(wire, in_queue(held(), "q"), project)
    request = queue_pb2.GetQueueUsageRequest(name=made.name)
    usage = await wire.once(request, queue_pb2.QueueUsage)
    assert usage.queue == made.name
    assert usage.jobs == 2
    assert (usage.tasks.total, dict(usage.tasks.by_state)) == (
        6,
        {"RUNNING": 2, "QUEUED": 3, "HELD": 1},
    )
    assert (usage.reserved.cpus, usage.reserved.memory_bytes) == (1.0, 2048)
    await cancel(wire, job.name)
    await wire.ended(job.name)
    usage = await wire.once(request, queue_pb2.QueueUsage)
    assert (usage.jobs, dict(usage.tasks.by_state)) == (1, {"HELD": 1})


async def test_tasks_that_ended_are_no_usage(wire: Wire, project: str) -> None:
    made = await create(wire, project, "q")
    wanted = in_queue(spec("array"), "q")
    wanted.array.size, wanted.array.max_parallel = 100_000, 1
    job = await submit(wire, wanted, project)
    await wire.watched(job.name, lambda job: job.counts.by_state["SUCCEEDED"] > 1, 20)
    request = queue_pb2.GetQueueUsageRequest(name=made.name)
    usage = await wire.once(request, queue_pb2.QueueUsage)
    assert usage.jobs == 1
    assert "SUCCEEDED" not in usage.tasks.by_state
    assert usage.tasks.total < 100_000
    await cancel(wire, job.name)


async def test_a_higher_limit_lets_more_run_at_once(wire: Wire, project: str) -> None:
    made = await create(wire, project, "q", max_running=1)
    wanted = in_queue(running("array"), "q")
    wanted.array.size = 4
    job = await submit(wire, wanted, project)
    await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    await update(wire, Queue(name=made.name, max_running=3), "max_running")
    await wire.watched(job.name, lambda job: job.counts.by_state["RUNNING"] == 3, 20)
    await update(wire, Queue(name=made.name, max_running=1), "max_running")
    assert (await wire.job(job.name)).counts.by_state["RUNNING"] == 3
    await cancel(wire, job.name)
