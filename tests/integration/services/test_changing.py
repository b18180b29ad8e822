"""CancelJobs, UpdateJob, RerunJob: in every state, again and again."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2
from server_process import HatobaServer, runs
from waiting import until
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, queue_pb2

from .conftest import Host, cancel, fresh, held, job_on, refused, running, spec, state, submit

CANCELLED = job_pb2.CANCEL_OUTCOME_CANCELLED
ALREADY_TERMINAL = job_pb2.CANCEL_OUTCOME_ALREADY_TERMINAL
CANCELLING = job_pb2.CANCEL_OUTCOME_CANCELLING


async def full_queue(wire: Wire, project: str) -> str:
    """A queue in which nothing more may run."""
    request = queue_pb2.CreateQueueRequest(
        project=project, queue_id=fresh("full"), queue=queue_pb2.Queue(max_running=1)
    )
    name = (await wire.once(request, queue_pb2.Queue)).name.split("/")[-1]
    first = running("first")
    first.queue = name
    job = await submit(wire, first, project)
    await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    return name


# -- cancel ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["QUEUED", "HELD", "BLOCKED", "backing off"])
async def test_what_does_not_run_is_over_at_once(wire: Wire, project: str, where: str) -> None:
    job = await waiting_job(wire, project, where)
    (result,) = await cancel(wire, job.name, reason="no longer needed")
    assert (result.outcome, state(result)) == (CANCELLED, "CANCELLED")
    assert result.job == job.name
    ended = await wire.job(job.name)
    assert state(ended) == "CANCELLED"
    assert ended.desired == common_pb2.DESIRED_CANCELLED
    assert ended.cause.code == common_pb2.CAUSE_CODE_CANCELLED
    assert ended.cause.message == "Cancelled by admin: no longer needed."
    last = (await wire.events(job.name))[-1]
    assert (last.actor, last.job_terminal) == ("admin", True)
    assert last.cause.message == ended.cause.message


async def waiting_job(wire: Wire, project: str, where: str) -> job_pb2.Job:
    wanted = spec("job")
    if where == "HELD":
        wanted.hold = True
    elif where == "BLOCKED":
        wanted.after_ok.append((await submit(wire, held("upstream"), project)).name)
    elif where == "QUEUED":
        wanted.queue = await full_queue(wire, project)
    else:
        wanted = spec("job", exit_code=1)
        wanted.retries.user = 5
        wanted.retries.backoff.seconds = wanted.retries.max_backoff.seconds = 3600
    job = await submit(wire, wanted, project)
    if where == "backing off":

        def backs_off(job: job_pb2.Job) -> bool:
            return state(job) == "QUEUED" and "Attempt 2 starts in" in job.waiting_reason

        job = await wire.watched(job.name, backs_off, 20)
        request = job_pb2.ListTasksRequest(job=job.name)
        (task,) = (await wire.once(request, job_pb2.ListTasksResponse)).tasks
        assert task.not_before.seconds > job.create_time.seconds
        return job
    assert state(job) == where
    return job


async def test_what_runs_is_stopped(wire: Wire, project: str) -> None:
    job = await submit(wire, running(), project)
    await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    (result,) = await cancel(wire, job.name, reason="why")
    assert result.outcome == CANCELLING
    assert "10 s" in result.why
    ended = await wire.ended(job.name)
    assert (state(ended), ended.cause.message) == ("CANCELLED", "Cancelled by admin: why.")
    (attempt,) = await wire.attempts(job.name)
    assert attempt.state == common_pb2.ATTEMPT_STATE_CANCELLED
    (again,) = await cancel(wire, job.name)
    assert (again.outcome, state(again)) == (ALREADY_TERMINAL, "CANCELLED")
    assert (await wire.job(job.name)) == ended


async def test_what_ignores_a_stop_is_cancelling_until_its_grace_is_over(
    wire: Wire, project: str
) -> None:
    wanted = running(on_stop="ignore")
    wanted.stop_grace.nanos = 200_000_000
    job = await submit(wire, wanted, project)
    await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    for _ in range(3):
        (result,) = await cancel(wire, job.name)
        assert result.outcome == CANCELLING
    assert state(await wire.ended(job.name)) == "CANCELLED"
    reasons = [event.reason for event in await wire.events(job.name)]
    assert reasons.count("cancel") == 1


async def test_an_ended_job_stays_as_it_is(wire: Wire, project: str) -> None:
    job = await submit(wire, spec("good"), project)
    ended = await wire.ended(job.name)
    (result,) = await cancel(wire, job.name)
    assert (result.outcome, state(result)) == (ALREADY_TERMINAL, "SUCCEEDED")
    assert await wire.job(job.name) == ended


async def test_an_array_with_some_running_and_some_ended(wire: Wire, project: str) -> None:
    wanted = running("array")
    wanted.array.size, wanted.array.max_parallel = 100, 3
    job = await submit(wire, wanted, project)
    await wire.watched(job.name, lambda job: job.counts.by_state["RUNNING"] == 3, 20)
    (result,) = await cancel(wire, job.name)
    assert result.outcome == CANCELLING
    ended = await wire.ended(job.name)
    assert state(ended) == "CANCELLED"
    assert dict(ended.counts.by_state) == {"CANCELLED": 100}
    assert len(await wire.attempts(job.name)) == 3
    assert [event.job_terminal for event in await wire.events(job.name)].count(True) == 1


async def test_many_at_once_in_order_and_by_filter(wire: Wire, project: str) -> None:
    jobs = [await submit(wire, held(name), project) for name in ("a", "b", "a", "c")]
    names = [job.name for job in jobs]
    results = await cancel(wire, names[1], names[0], names[1])
    assert [result.job for result in results] == [names[1], names[0], names[1]]
    assert state(results[0]) == "CANCELLED"
    request = job_pb2.CancelJobsRequest(project=project, filter="name = a")
    reply = await wire.once(request, job_pb2.CancelJobsResponse)
    assert [(result.job, result.outcome) for result in reply.results] == [(names[2], CANCELLED)]
    assert not (await wire.once(request, job_pb2.CancelJobsResponse)).results
    assert state(await wire.job(names[3])) == "HELD"


async def test_one_unknown_name_cancels_nothing(wire: Wire, project: str) -> None:
    job = await submit(wire, held(), project)
    refusal = await refused(cancel(wire, job.name, "ghost-1"))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert "ghost-1" in refusal.message
    assert state(await wire.job(job.name)) == "HELD"


async def test_a_cancel_names_what(wire: Wire) -> None:
    refusal = await refused(cancel(wire))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["jobs"])


async def test_the_same_cancel_twice(wire: Wire, project: str) -> None:
    job = await submit(wire, held(), project)
    request = job_pb2.CancelJobsRequest(jobs=[job.name], project=project, request_id="key")
    reply, repeated = await wire.answer(request, job_pb2.CancelJobsResponse)
    assert not repeated
    assert reply.results[0].outcome == CANCELLED
    reply, repeated = await wire.answer(request, job_pb2.CancelJobsResponse)
    assert repeated
    assert state(reply.results[0]) == "CANCELLED"
    request.reason = "other"
    refusal = await refused(wire.once(request, job_pb2.CancelJobsResponse))
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS


async def test_a_cancel_by_filter_that_comes_twice_ends_nothing_newer(
    wire: Wire, project: str
) -> None:
    old = await submit(wire, held("a"), project)
    request = job_pb2.CancelJobsRequest(filter="name = a", project=project, request_id="key")
    await wire.once(request, job_pb2.CancelJobsResponse)
    newer = await submit(wire, held("a"), project)
    reply, repeated = await wire.answer(request, job_pb2.CancelJobsResponse)
    assert repeated
    assert [(result.job, state(result)) for result in reply.results] == [(old.name, "CANCELLED")]
    assert state(await wire.job(newer.name)) == "HELD"


async def test_a_cancel_names_a_queue_that_there_is(wire: Wire, project: str) -> None:
    request = job_pb2.CancelJobsRequest(queue="gpus", project=project)
    refusal = await refused(wire.once(request, job_pb2.CancelJobsResponse))
    assert (refusal.code, "'gpus'" in refusal.message) == (grpc.StatusCode.NOT_FOUND, True)


# -- update ----------------------------------------------------------------------------------------


async def update(wire: Wire, name: str, *paths: str, **fields: Any) -> job_pb2.Job:
    request = job_pb2.UpdateJobRequest(name=name, **fields)
    request.update_mask.paths.extend(paths)
    return await wire.once(request, job_pb2.Job)


async def test_priority_and_queue_change_together_and_the_etag_with_them(
    wire: Wire, project: str
) -> None:
    made = queue_pb2.CreateQueueRequest(project=project, queue_id="gpu")
    await wire.once(made, queue_pb2.Queue)
    job = await submit(wire, held(), project)
    after = await update(
        wire, job.name, "priority", "queue", priority=7, queue="gpu", etag=job.etag
    )
    assert (after.spec.priority, after.spec.queue, after.spec.hold) == (7, "gpu", True)
    assert after.etag != job.etag
    assert after.version == job.version + 1
    same = await update(wire, job.name, "priority", priority=7)
    assert same == after
    assert (await wire.job(job.uid)).etag == after.etag
    (last,) = [e for e in (await until_now(wire, job.name)) if e.reason == "update"]
    assert last.actor == "admin"


async def until_now(wire: Wire, name: str) -> list[common_pb2.Event]:
    version = (await wire.job(name)).version
    request = job_pb2.WatchJobsRequest(jobs=[name], cursor="0")
    events: list[common_pb2.Event] = []
    async for message in wire.stream(request, job_pb2.WatchJobsResponse):
        events.append(message.event)
        if message.event.job_seq == version:
            break
    return events


async def test_a_stale_etag_changes_nothing(wire: Wire, project: str) -> None:
    job = await submit(wire, held(), project)
    await update(wire, job.name, "priority", priority=1, etag=job.etag)
    refusal = await refused(update(wire, job.name, "priority", priority=2, etag=job.etag))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "STALE_ETAG")
    assert (await wire.job(job.name)).spec.priority == 1


async def test_hold_and_release(wire: Wire, project: str) -> None:
    wanted = spec("job")
    wanted.queue = await full_queue(wire, project)
    job = await submit(wire, wanted, project)
    for keep, expected in ((True, "HELD"), (False, "QUEUED"), (True, "HELD"), (True, "HELD")):
        after = await update(wire, job.name, "hold", hold=keep)
        assert (state(after), after.spec.hold) == (expected, keep)
    await update(wire, job.name, "queue", queue="default")
    await update(wire, job.name, "hold")
    assert state(await wire.ended(job.name)) == "SUCCEEDED"


async def test_a_released_job_still_waits_for_others(wire: Wire, project: str) -> None:
    upstream = await submit(wire, held("upstream"), project)
    wanted = held()
    wanted.after_ok.append(upstream.name)
    job = await submit(wire, wanted, project)
    assert state(await update(wire, job.name, "hold")) == "BLOCKED"
    assert state(await update(wire, job.name, "hold", hold=True)) == "HELD"
    await update(wire, upstream.name, "hold")
    await wire.ended(upstream.name)
    assert state(await wire.job(job.name)) == "HELD"
    await update(wire, job.name, "hold")
    assert state(await wire.ended(job.name)) == "SUCCEEDED"


async def test_an_ended_job_is_not_changed(wire: Wire, project: str) -> None:
    job = await submit(wire, spec("done"), project)
    await wire.ended(job.name)
    for path in ("priority", "hold"):
        refusal = await refused(update(wire, job.name, path))
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "WRONG_STATE",
        )
        assert "SUCCEEDED" in refusal.message


@pytest.mark.parametrize(
    "paths", [[], ["labels"], ["spec.priority"], ["priority", "state"], ["hold", "priority"], ["*"]]
)
async def test_a_wrong_mask_is_refused(wire: Wire, project: str, paths: list[str]) -> None:
    job = await submit(wire, held(), project)
    refusal = await refused(update(wire, job.name, *paths))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["update_mask"])
    assert (await wire.job(job.name)).version == job.version


async def test_an_unknown_queue_or_priority_is_refused(wire: Wire, project: str) -> None:
    job = await submit(wire, held(), project)
    for queue in ("nowhere", ""):
        refusal = await refused(update(wire, job.name, "queue", queue=queue))
        assert refusal.code is grpc.StatusCode.NOT_FOUND
    refusal = await refused(update(wire, job.name, "priority", priority=1001))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["priority"])


async def test_the_same_update_twice_is_done_once(wire: Wire, project: str) -> None:
    job = await submit(wire, held(), project)
    request = job_pb2.UpdateJobRequest(name=job.name, priority=3, request_id="k", etag=job.etag)
    request.update_mask.paths.append("priority")
    first, repeated = await wire.answer(request, job_pb2.Job)
    assert (first.spec.priority, repeated) == (3, False)
    second, repeated = await wire.answer(request, job_pb2.Job)
    assert (second, repeated) == (first, True)


async def died(server: HatobaServer, call: Awaitable[Any]) -> None:
    """A call whose effect is stored, and whose answer dies with the server; another starts."""
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    await until(lambda: not runs(server.pid))
    server.launcher.environ = {}
    await server.start()


@pytest.fixture
async def mortal(own_server: HatobaServer) -> HatobaServer:
    """A server that dies right after the first change of a job is stored."""
    await own_server.kill()
    own_server.launcher.environ = {"HATOBA_FAILPOINTS": "ledger.commit.after:kill9"}
    await own_server.start()
    return own_server


async def test_an_update_whose_answer_was_lost_is_no_conflict_with_itself(
    mortal: HatobaServer,
) -> None:
    async with Wire(mortal) as wire:
        job = await submit(wire, held())
        request = job_pb2.UpdateJobRequest(name=job.name, priority=3, request_id="k")
        request.etag = job.etag
        request.update_mask.paths.append("priority")
        await died(mortal, wire.once(request, job_pb2.Job))
        assert (await wire.once(request, job_pb2.Job)).spec.priority == 3
        other = job_pb2.UpdateJobRequest(name=job.name, priority=4, etag=job.etag)
        other.update_mask.paths.append("priority")
        refusal = await refused(wire.once(other, job_pb2.Job))
        assert refusal.code is grpc.StatusCode.ABORTED


async def test_a_cancel_by_filter_whose_answer_was_lost_ends_nothing_newer(
    mortal: HatobaServer,
) -> None:
    async with Wire(mortal) as wire:
        old = await submit(wire, held("a"))
        request = job_pb2.CancelJobsRequest(filter="name = a", request_id="key")
        await died(mortal, wire.once(request, job_pb2.CancelJobsResponse))
        newer = await submit(wire, held("a"))
        reply, repeated = await wire.answer(request, job_pb2.CancelJobsResponse)
        assert repeated
        assert [result.job for result in reply.results] == [old.name]
        assert state(await wire.job(newer.name)) == "HELD"


# -- rerun -----------------------------------------------------------------------------------------


async def test_a_rerun_is_a_new_job_with_overrides(wire: Wire, project: str) -> None:
    wanted = held("train")
    wanted.command[:] = ["train", "${params.lr}"]
    wanted.params["lr"].number_value, wanted.params["opt"].string_value = 0.1, "sgd"
    wanted.env.update({"A": "1", "B": "2"})
    wanted.labels["team"] = "vision"
    old = await submit(wire, wanted, project)
    await update(wire, old.name, "priority", priority=5)
    await cancel(wire, old.name)
    before = await wire.job(old.name)
    request = job_pb2.RerunJobRequest(job=old.name, env={"B": "3", "C": "4"}, request_id="key")
    request.params["lr"].number_value = 0.2
    new, repeated = await wire.answer(request, job_pb2.Job)
    assert (new.name, new.rerun_of, repeated) == (
        f"projects/{project}/jobs/train-2",
        old.name,
        False,
    )
    assert new.spec.params["lr"].number_value == 0.2
    assert new.spec.params["opt"].string_value == "sgd"
    assert dict(new.spec.env) == {"A": "1", "B": "3", "C": "4"}
    assert dict(new.spec.labels) == {"team": "vision"}
    assert (new.spec.priority, new.spec.hold) == (5, False)
    again, repeated = await wire.answer(request, job_pb2.Job)
    assert (again.uid, repeated) == (new.uid, True)
    assert await wire.job(old.name) == before
    assert state(await wire.ended(new.name)) == "SUCCEEDED"


async def test_a_rerun_is_checked_like_a_submit(wire: Wire, project: str) -> None:
    old = await submit(wire, held(), project)
    request = job_pb2.RerunJobRequest(job=old.name, env={"HATOBA_X": "1"})
    refusal = await refused(wire.once(request, job_pb2.Job))
    assert (refusal.code, refusal.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["spec.env['HATOBA_X']"],
    )
    request = job_pb2.RerunJobRequest(job=old.name, env={"not a name": "1"})
    assert (await refused(wire.once(request, job_pb2.Job))).fields[0].startswith("spec.env")
    request = job_pb2.RerunJobRequest(job=old.name)
    request.params["x"].null_value = struct_pb2.NULL_VALUE
    assert (await refused(wire.once(request, job_pb2.Job))).fields == ["spec.params['x']"]


async def test_without_a_checkpoint_there_is_nothing_to_begin_from(
    wire: Wire, project: str
) -> None:
    old = await submit(wire, held(), project)
    request = job_pb2.RerunJobRequest(job=old.name, from_checkpoint=True)
    refusal = await refused(wire.once(request, job_pb2.Job))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    wanted = held("array")
    wanted.array.size = 2
    request.job = (await submit(wire, wanted, project)).name
    refusal = await refused(wire.once(request, job_pb2.Job))
    assert (refusal.code, refusal.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["from_checkpoint"],
    )


async def test_a_rerun_begins_from_the_newest_checkpoint(wire: Wire, host: Host) -> None:
    old = await submit(wire, job_on(host.name, "train"))
    launch = await host.launched()
    await host.started(launch)
    await host.checkpoint(launch, 7)
    await host.commit(launch)
    await wire.ended(old.name)
    request = job_pb2.RerunJobRequest(job=old.name, from_checkpoint=True)
    new = await wire.once(request, job_pb2.Job)
    launch = await host.launched()
    assert launch.job == new.name
    claim = await host.claim(launch)
    assert (claim.checkpoint.step, claim.checkpoint.metrics["loss"]) == (7, 0.5)
