"""SubmitJob and SubmitJobs: once per request id, whatever is repeated; nothing half stored."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, queue_pb2, schedule_pb2

from .conftest import fresh, held, refused, running, spec, state, submit


def request_of(wanted: job_pb2.JobSpec, project: str, key: str = "") -> job_pb2.SubmitJobRequest:
    return job_pb2.SubmitJobRequest(spec=wanted, project=project, request_id=key)


async def count(wire: Wire, project: str) -> int:
    reply = await wire.once(job_pb2.CountJobsRequest(project=project), job_pb2.CountJobsResponse)
    return reply.total


async def test_a_new_job_is_read_back_with_its_defaults(wire: Wire, project: str) -> None:
    wanted = job_pb2.JobSpec(name="digits", command=["true"], hold=True)
    job = await submit(wire, wanted, project)
    assert job.name == f"projects/{project}/jobs/digits-1"
    assert (job.spec.queue, job.spec.backend, job.spec.stop_grace.seconds) == (
        "default",
        "mock",
        10,
    )
    assert (state(job), job.created_by, job.version) == ("HELD", "admin", 1)
    assert (job.counts.total, dict(job.counts.by_state)) == (1, {"HELD": 1})
    assert len(job.trace_id) == 32
    assert job.create_time.seconds > 1_600_000_000
    read = await wire.job(job.uid)
    assert "Held by its owner" in read.waiting_reason
    read.waiting_reason = ""
    assert read == job


async def test_names_are_numbered_per_project_and_name(wire: Wire, project: str) -> None:
    other = fresh("q")
    names = [
        (await submit(wire, held(name), where)).name.split("/")[-1]
        for name, where in (
            ("a", project),
            ("a", project),
            ("b", project),
            ("a", other),
            ("a-1", project),
        )
    ]
    assert names == ["a-1", "a-2", "b-1", "a-1", "a-1-1"]


async def test_the_same_request_is_the_same_job_as_it_is_now(wire: Wire, project: str) -> None:
    request = request_of(spec("once"), project, "key")
    job, repeated = await wire.answer(request, job_pb2.Job)
    assert not repeated
    await wire.ended(job.name)
    again, repeated = await wire.answer(request, job_pb2.Job)
    assert (again.uid, repeated, state(again)) == (job.uid, True, "SUCCEEDED")
    assert await count(wire, project) == 1


async def test_another_body_under_the_same_id_is_refused_with_both_hashes(
    wire: Wire, project: str
) -> None:
    await submit(wire, held("a"), project, "key")
    refusal = await refused(submit(wire, held("b"), project, "key"))
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert refusal.reason == "IDEMPOTENCY_MISMATCH"
    hashes = [
        word
        for word in refusal.message.replace(",", " ").replace(")", " ").split()
        if len(word) == 12 and all(c in "0123456789abcdef" for c in word)
    ]
    assert len(set(hashes)) == 2
    assert await count(wire, project) == 1


async def test_ids_are_kept_per_project_and_method(wire: Wire, project: str) -> None:
    other = fresh("q")
    one = await submit(wire, held("a"), project, "key")
    two = await submit(wire, held("b"), other, "key")
    rerun = job_pb2.RerunJobRequest(job=one.name, request_id="key")
    three = await wire.once(rerun, job_pb2.Job)
    assert len({one.uid, two.uid, three.uid}) == 3


async def test_fifty_at_once_under_one_id_are_one_job(wire: Wire, project: str) -> None:
    request = request_of(held("race"), project, "key")
    answers = await asyncio.gather(*(wire.answer(request, job_pb2.Job) for _ in range(50)))
    assert len({job.uid for job, _ in answers}) == 1
    assert sum(not repeated for _, repeated in answers) == 1
    assert await count(wire, project) == 1


async def test_an_accepted_request_is_answered_even_if_it_would_be_refused_now(
    wire: Wire, project: str
) -> None:
    """Its reply was lost, and meanwhile what it needed is used up."""
    queue = fresh("small")
    made = queue_pb2.CreateQueueRequest(
        project=project, queue_id=queue, queue=queue_pb2.Queue(max_pending=1)
    )
    await wire.once(made, queue_pb2.Queue)
    wanted = held("full")
    wanted.queue = queue
    request = request_of(wanted, project, "key")
    job = await wire.once(request, job_pb2.Job)
    again, repeated = await wire.answer(request, job_pb2.Job)
    assert (again.uid, repeated) == (job.uid, True)
    batch = job_pb2.SubmitJobsRequest(
        project=project, items=[job_pb2.SubmitJobsItem(spec=wanted, request_id="other")]
    )
    (refusal,) = (await wire.once(batch, job_pb2.SubmitJobsResponse)).results
    assert refusal.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


async def test_a_repeated_request_is_known_though_its_deadline_has_passed(
    wire: Wire, project: str
) -> None:
    """Its reply was lost until after the moment; another one with that moment is refused."""
    wanted = held("due")
    wanted.deadline.FromMilliseconds(round(time.time() * 1000) + 400)
    alone = request_of(wanted, project, "alone")
    batch = job_pb2.SubmitJobsRequest(
        project=project, items=[job_pb2.SubmitJobsItem(spec=wanted, request_id="in-batch")]
    )
    one = await wire.once(alone, job_pb2.Job)
    (two,) = (await wire.once(batch, job_pb2.SubmitJobsResponse)).results
    for name in (one.name, two.name):
        assert state(await wire.ended(name)) == "TIMED_OUT"

    again, repeated = await wire.answer(alone, job_pb2.Job)
    assert (again.name, repeated, state(again)) == (one.name, True, "TIMED_OUT")
    (met,) = (await wire.once(batch, job_pb2.SubmitJobsResponse)).results
    assert (met.name, met.deduplicated, met.code) == (two.name, True, 0)
    refusal = await refused(wire.once(request_of(wanted, project, "new"), job_pb2.Job))
    assert refusal.fields == ["spec.deadline"]
    assert await count(wire, project) == 2


async def test_validate_only_stores_nothing(wire: Wire, project: str) -> None:
    request = request_of(spec("dry"), project, "key")
    request.validate_only = True
    checked = await wire.once(request, job_pb2.Job)
    assert checked.spec.queue == "default"
    assert await count(wire, project) == 0
    assert (await refused(wire.job(checked.uid))).code is grpc.StatusCode.NOT_FOUND
    stored = await submit(wire, spec("dry"), project, "key")
    assert stored.name.endswith("/dry-1")
    request.spec.backend = "mokc"
    refusal = await refused(wire.once(request, job_pb2.Job))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["spec.backend"])
    assert "'mock'" in refusal.message


async def test_every_wrong_field_is_named(wire: Wire, project: str) -> None:
    wanted = spec("many")
    wanted.command[:] = ["train", "${params.lr}"]
    wanted.queue, wanted.backend = "nowhere", "nothing"
    wanted.env["HATOBA_X"] = "1"
    wanted.params["ok"].list_value.values.add(number_value=1)
    wanted.secrets.add(name="unknown")
    refusal = await refused(submit(wire, wanted, project))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields == [
        "spec.queue", "spec.env['HATOBA_X']", "spec.params['ok']", "spec.command[1]",
        "spec.secrets[0].name", "spec.backend",
    ]  # fmt: skip
    assert await count(wire, project) == 0


async def test_an_unknown_manifest_is_refused(wire: Wire, project: str) -> None:
    wanted = spec("code")
    wanted.code.digest = "sha256:" + "0" * 64
    wanted.inputs.add(name="data").manifest.digest = "sha256:" + "1" * 64
    refusal = await refused(submit(wire, wanted, project))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["spec.code"])


# -- batches ---------------------------------------------------------------------------------------


async def batch(
    wire: Wire, project: str, *items: tuple[job_pb2.JobSpec, str]
) -> list[job_pb2.SubmitJobsResult]:
    request = job_pb2.SubmitJobsRequest(project=project)
    for wanted, key in items:
        request.items.add(spec=wanted, request_id=key)
    return list((await wire.once(request, job_pb2.SubmitJobsResponse)).results)


async def test_each_item_of_a_batch_succeeds_or_fails_alone(wire: Wire, project: str) -> None:
    bad, unknown = held("NO"), held("b")
    unknown.queue = "nowhere"
    results = await batch(
        wire, project, (held("a"), ""), (bad, ""), (unknown, ""), (held("c"), "a b"),
        (job_pb2.JobSpec(), ""), (held("a"), ""),
    )  # fmt: skip
    invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [result.code for result in results] == [0, invalid, invalid, invalid, invalid, 0]
    assert results[0].name.endswith("/a-1")
    assert results[5].name.endswith("/a-2")
    assert "spec.name" in results[1].message
    assert "spec.queue" in results[2].message
    assert "request_id" in results[3].message
    assert not any(result.uid for result in results[1:5])
    assert await count(wire, project) == 2


async def test_items_are_deduplicated_within_and_between_batches(wire: Wire, project: str) -> None:
    first = await batch(
        wire, project, (held("a"), "1"), (held("a"), "1"), (held("b"), "1"), (held("b"), "2")
    )
    assert [result.deduplicated for result in first] == [False, True, False, False]
    assert first[0].uid == first[1].uid
    assert first[2].code == grpc.StatusCode.ALREADY_EXISTS.value[0]
    second = await batch(wire, project, (held("b"), "2"), (held("c"), "3"))
    assert [result.deduplicated for result in second] == [True, False]
    assert second[0].uid == first[3].uid
    assert second[0].name == first[3].name
    assert await count(wire, project) == 3


async def test_a_full_batch_is_stored_and_runs(wire: Wire, project: str) -> None:
    results = await batch(wire, project, *((spec("many", backend="null"), "") for _ in range(1000)))
    assert [result.name for result in results] == [
        f"projects/{project}/jobs/many-{n}" for n in range(1, 1001)
    ]
    await wire.ended(results[-1].name)
    assert await count(wire, project) == 1000


@pytest.mark.parametrize("size", [0, 1001])
async def test_the_size_of_a_batch_is_bounded(wire: Wire, project: str, size: int) -> None:
    items = [job_pb2.SubmitJobsItem(spec=held("a"))] * size
    request = job_pb2.SubmitJobsRequest(project=project, items=items)
    refusal = await refused(wire.once(request, job_pb2.SubmitJobsResponse))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["items"])


# -- dependencies ----------------------------------------------------------------------------------


def after(*names: str, **script: Any) -> job_pb2.JobSpec:
    wanted = spec("after", **script)
    wanted.after_ok.extend(names)
    return wanted


async def test_a_chain_runs_in_order(wire: Wire, project: str) -> None:
    first = await submit(wire, held("first"), project)
    second = await submit(wire, after(first.uid), project)
    third = await submit(wire, after(second.name, first.name), project)
    assert [state(second), state(third)] == ["BLOCKED", "BLOCKED"]
    assert "first-1" in (await wire.job(second.name)).waiting_reason
    update = job_pb2.UpdateJobRequest(name=first.name)
    update.update_mask.paths.append("hold")
    await wire.once(update, job_pb2.Job)
    ended = await wire.ended(third.name)
    assert state(ended) == "SUCCEEDED"
    jobs = [await wire.job(name) for name in (first.name, second.name, third.name)]
    ends = [job.end_time.ToMicroseconds() for job in jobs]
    starts = [job.start_time.ToMicroseconds() for job in jobs]
    assert ends[0] <= starts[1] <= ends[1] <= starts[2]


async def test_failure_is_passed_on_to_the_end_of_the_chain(wire: Wire, project: str) -> None:
    first = await submit(wire, running("first", exit_code=3), project)
    second = await submit(wire, after(first.name), project)
    kept = after(second.name)
    kept.hold = True
    third = await submit(wire, kept, project)
    await cancel_all(wire, first.name)
    for job, upstream in ((second, "first-1"), (third, "after-1")):
        ended = await wire.ended(job.name)
        assert state(ended) == "UPSTREAM_FAILED"
        assert ended.cause.code == common_pb2.CAUSE_CODE_UPSTREAM_FAILED
        assert upstream in ended.cause.message
        assert not await wire.attempts(job.name)


async def cancel_all(wire: Wire, name: str) -> None:
    await wire.cancel(name)
    await wire.ended(name)


async def test_of_those_that_ended_success_lets_go_and_failure_is_refused(
    wire: Wire, project: str
) -> None:
    good = await submit(wire, spec("good"), project)
    bad = await submit(wire, spec("bad", exit_code=1), project)
    await wire.ended(good.name)
    await wire.ended(bad.name)
    job = await submit(wire, after(good.name), project)
    assert state(job) == "QUEUED"
    refusal = await refused(submit(wire, after(good.name, bad.name), project))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "spec.after_ok[1]" in refusal.message
    assert "FAILED" in refusal.message


@pytest.mark.parametrize("name", ["ghost-1", "after-1", "no/such/name", "Ä"])
async def test_an_unknown_dependency_is_named(wire: Wire, project: str, name: str) -> None:
    refusal = await refused(submit(wire, after(name), project))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["spec.after_ok[0]"]


async def test_a_bare_name_is_of_the_jobs_own_project(wire: Wire, project: str) -> None:
    """NAME-N in `default` is another job."""
    mine = await submit(wire, held("shared"), project)
    other = await submit(wire, held("shared"), fresh("q"))
    job = await submit(wire, after(mine.name.split("/")[-1]), project)
    assert "shared-1" in (await wire.job(job.name)).waiting_reason
    refusal = await refused(submit(wire, after(other.name), project))
    assert (refusal.code, refusal.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        ["spec.after_ok[0]"],
    )


async def test_labels_of_the_server_are_not_given_by_people(wire: Wire, project: str) -> None:
    wanted = held()
    wanted.labels["team"] = "vision"
    wanted.labels["hatoba/schedule"] = "nightly"
    field = 'spec.labels["hatoba/schedule"]'
    refusal = await refused(submit(wire, wanted, project))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    refusal = await refused(
        wire.once(job_pb2.PlanJobRequest(spec=wanted, project=project), job_pb2.Explanation)
    )
    assert refusal.fields == [field]
    batch = job_pb2.SubmitJobsRequest(project=project)
    batch.items.add(spec=wanted)
    (result,) = (await wire.once(batch, job_pb2.SubmitJobsResponse)).results
    assert result.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    del wanted.labels["hatoba/schedule"]
    job = await submit(wire, wanted, project)
    again = job_pb2.RerunJobRequest(job=job.name)
    again.overrides.labels["hatoba/checks"] = "mine"
    again.override_mask.paths.append("labels")
    refusal = await refused(wire.once(again, job_pb2.Job))
    assert refusal.fields == ['overrides.labels["hatoba/checks"]']


async def test_a_run_of_a_schedule_keeps_its_label_when_it_is_run_again(
    wire: Wire, project: str
) -> None:
    made = schedule_pb2.CreateScheduleRequest(project=project, schedule_id="nightly")
    made.schedule.cron = "@daily"
    made.schedule.spec.CopyFrom(held())
    made.schedule.spec.labels["hatoba/schedule"] = "another"
    refusal = await refused(wire.once(made, schedule_pb2.Schedule))
    assert refusal.fields == ['schedule.spec.labels["hatoba/schedule"]']
    del made.schedule.spec.labels["hatoba/schedule"]
    name = (await wire.once(made, schedule_pb2.Schedule)).name
    job = await wire.once(schedule_pb2.RunScheduleRequest(name=name), job_pb2.Job)
    assert job.spec.labels["hatoba/schedule"] == "nightly"
    again = await wire.once(job_pb2.RerunJobRequest(job=job.name), job_pb2.Job)
    assert again.spec.labels["hatoba/schedule"] == "nightly"
