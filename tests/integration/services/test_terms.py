"""Plans and explanations, cancels in part, reruns of what failed, retries in words: on the wire."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import pytest
from waiting import eventually
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, queue_pb2, runner_pb2

from .conftest import (
    Host,
    cancel,
    connected,
    fresh,
    held,
    job_on,
    refused,
    running,
    spec,
    state,
    submit,
)

CANCELLED = job_pb2.CANCEL_OUTCOME_CANCELLED
ALREADY_TERMINAL = job_pb2.CANCEL_OUTCOME_ALREADY_TERMINAL
CANCELLING = job_pb2.CANCEL_OUTCOME_CANCELLING
GIB = 1 << 30


async def cancelled(wire: Wire, **said: Any) -> job_pb2.CancelJobsResponse:
    return await wire.once(job_pb2.CancelJobsRequest(**said), job_pb2.CancelJobsResponse)


async def tasks(wire: Wire, name: str) -> list[job_pb2.Task]:
    request = job_pb2.ListTasksRequest(job=name, page_size=1000)
    return list((await wire.once(request, job_pb2.ListTasksResponse)).tasks)


async def explain(wire: Wire, name: str) -> job_pb2.Explanation:
    return await wire.once(job_pb2.ExplainJobRequest(name=name), job_pb2.Explanation)


async def plan(wire: Wire, wanted: job_pb2.JobSpec, project: str) -> job_pb2.Explanation:
    request = job_pb2.PlanJobRequest(spec=wanted, project=project)
    return await wire.once(request, job_pb2.Explanation)


def array(made: job_pb2.JobSpec, size: int, **fields: Any) -> job_pb2.JobSpec:
    made.array.MergeFrom(job_pb2.ArraySpec(size=size, **fields))
    return made


async def update(wire: Wire, name: str, path: str, **fields: Any) -> job_pb2.Job:
    request = job_pb2.UpdateJobRequest(name=name, **fields)
    request.update_mask.paths.append(path)
    return await wire.once(request, job_pb2.Job)


# -- cancel in part ----------------------------------------------------------------------------


async def test_tasks_that_wait_are_cancelled_alone(wire: Wire, project: str) -> None:
    job = await submit(wire, array(held(), 10), project)
    (result,) = (await cancelled(wire, jobs=[job.name], indices="7,0-3", reason="wrong")).results
    assert (result.outcome, state(result)) == (CANCELLED, "HELD")
    states = [state(task) for task in await tasks(wire, job.name)]
    assert states == ["CANCELLED"] * 4 + ["HELD"] * 3 + ["CANCELLED"] + ["HELD"] * 2
    (again,) = (await cancelled(wire, jobs=[job.name], indices="0-3")).results
    assert (again.outcome, state(again)) == (ALREADY_TERMINAL, "HELD")
    await update(wire, job.name, "hold", hold=False)
    ended = await wire.ended(job.name)
    assert dict(ended.counts.by_state) == {"CANCELLED": 5, "SUCCEEDED": 5}
    assert state(ended) == "CANCELLED"
    assert len(await wire.attempts(job.name)) == 5
    events = await wire.events(job.name)
    notes = [event.note for event in events if event.reason == "cancel_tasks"]
    assert notes == ["Tasks 0-3,7 are cancelled; the others go on."]


async def test_tasks_that_run_are_stopped_and_the_others_go_on(wire: Wire, project: str) -> None:
    job = await submit(wire, array(running(on_stop="ignore"), 3), project)
    await wire.watched(job.name, lambda job: job.counts.by_state["RUNNING"] == 3, 20)
    (result,) = (await cancelled(wire, jobs=[job.name], indices="1")).results
    assert (result.outcome, state(result)) == (CANCELLING, "RUNNING")
    assert result.why == "1 running task(s) have 10 s to stop"
    assert [state(task) for task in await tasks(wire, job.name)] == [
        "RUNNING",
        "STOPPING",
        "RUNNING",
    ]
    await cancel(wire, job.name)


async def test_a_million_tasks_are_cancelled_as_one_is(wire: Wire, project: str) -> None:
    job = await submit(wire, array(held(), 1_000_000), project)
    begun = time.monotonic()
    await cancelled(wire, jobs=[job.name], indices="1-999999")
    # One by one they would take minutes.
    assert time.monotonic() - begun < 10.0
    after = await wire.job(job.name)
    assert dict(after.counts.by_state) == {"CANCELLED": 999_999, "HELD": 1}


IN_PART: Mapping[str, tuple[Callable[[], job_pb2.JobSpec], str, str, str]] = {
    "upside down": (lambda: array(held(), 9), "4-0", "INVALID_ARGUMENT", "write 0-4"),
    "outside": (lambda: array(held(), 9), "5-9", "INVALID_ARGUMENT", "0 to 8"),
    "no range": (lambda: array(held(), 9), "all", "INVALID_ARGUMENT", "'all' is no index"),
    "one task": (held, "0", "FAILED_PRECONDITION", "is no array"),
    "a gang": (lambda: gang(2), "0", "FAILED_PRECONDITION", "ended as a whole"),
}


def gang(replicas: int) -> job_pb2.JobSpec:
    made = spec("gang", backend="hosts")
    made.replicas, made.hold = replicas, True
    return made


@pytest.mark.parametrize("case", IN_PART)
async def test_indices_that_cannot_be_are_refused(wire: Wire, project: str, case: str) -> None:
    make, indices, code, words = IN_PART[case]
    job = await submit(wire, make(), project)
    refusal = await refused(cancelled(wire, jobs=[job.name], indices=indices))
    assert (refusal.code.name, words in refusal.message) == (code, True)
    assert state(await wire.job(job.name)) == "HELD"


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({}, "jobs"),
        ({"filter": "name = a", "indices": "0"}, "indices"),
        ({"jobs": ["a-1"], "filter": "name = a"}, "filter"),
        ({"jobs": ["a-1"], "queue": "night"}, "queue"),
    ],
)
async def test_what_is_cancelled_is_said_once(wire: Wire, said: dict[str, Any], field: str) -> None:
    assert (await refused(cancelled(wire, **said))).fields == [field]


async def test_a_queue_is_cancelled_in_parts(wire: Wire, project: str) -> None:
    queue = fresh("q")
    made = queue_pb2.CreateQueueRequest(project=project, queue_id=queue, queue=queue_pb2.Queue())
    await wire.once(made, queue_pb2.Queue)
    items = []
    for number in range(1250):
        wanted = held("a" if number % 2 else "b")
        wanted.queue = queue
        items.append(job_pb2.SubmitJobsItem(spec=wanted))
    for start in range(0, 1250, 1000):
        batch = job_pb2.SubmitJobsRequest(project=project, items=items[start : start + 1000])
        await wire.once(batch, job_pb2.SubmitJobsResponse)
    other = await submit(wire, held(), project)
    some = await cancelled(wire, project=project, queue=queue, filter="name = a")
    assert (len(some.results), some.more) == (625, False)
    first = await cancelled(wire, project=project, queue=queue)
    assert (len(first.results), first.more) == (625, False)
    assert not (await cancelled(wire, project=project, queue=queue)).results
    counts = await wire.once(job_pb2.CountJobsRequest(project=project), job_pb2.CountJobsResponse)
    assert dict(counts.by_state) == {"CANCELLED": 1250, "HELD": 1}
    assert state(await wire.job(other.name)) == "HELD"


async def test_more_than_a_thousand_take_another_call(wire: Wire, project: str) -> None:
    items = [job_pb2.SubmitJobsItem(spec=held()) for _ in range(600)]
    for _ in range(2):
        batch = job_pb2.SubmitJobsRequest(project=project, items=items)
        await wire.once(batch, job_pb2.SubmitJobsResponse)
    lengths = []
    more = True
    while more:
        reply = await cancelled(wire, project=project, filter="state = HELD")
        lengths.append(len(reply.results))
        more = reply.more
    assert lengths == [1000, 200]


async def test_what_is_stopping_already_is_not_named_again(wire: Wire, project: str) -> None:
    job = await submit(wire, running(on_stop="ignore"), project)
    await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    first = await cancelled(wire, project=project, filter="active = true")
    assert [one.outcome for one in first.results] == [CANCELLING]
    assert not (await cancelled(wire, project=project, filter="active = true")).results


# -- rerun -------------------------------------------------------------------------------------


async def ended_array(wire: Wire, host: Host, codes: dict[int, int]) -> job_pb2.Job:
    """An array on a host whose tasks ended with these exit codes."""
    job = await submit(wire, array(job_on(host.name, "shards"), len(codes)))
    await commit_all(host, codes)
    return await wire.ended(job.name)


async def commit_all(host: Host, codes: dict[int, int]) -> None:
    for _ in codes:
        launch = await host.launched()
        await host.started(launch)
        await host.commit(launch, exit_code=codes[launch.index])


async def test_only_what_failed_runs_again(wire: Wire, host: Host) -> None:
    old = await ended_array(wire, host, {0: 0, 1: 1, 2: 0, 3: 2})
    request = job_pb2.RerunJobRequest(job=old.name, failed_only=True)
    new = await wire.once(request, job_pb2.Job)
    assert (new.inherited, new.rerun_of) == ("0,2", old.name)
    assert dict(new.counts.by_state) == {"SUCCEEDED": 2, "QUEUED": 2}
    await commit_all(host, {1: 0, 3: 1})
    new = await wire.ended(new.name)
    assert dict(new.counts.by_state) == {"SUCCEEDED": 3, "FAILED": 1}
    assert state(new) == "FAILED"
    told = [(task.job, state(task)) for task in await tasks(wire, new.name)]
    assert told == [
        (old.name, "SUCCEEDED"),
        (new.name, "SUCCEEDED"),
        (old.name, "SUCCEEDED"),
        (new.name, "FAILED"),
    ]
    request.job = new.name
    third = await wire.once(request, job_pb2.Job)
    assert third.inherited == "0-2"
    await commit_all(host, {3: 0})
    assert state(await wire.ended(third.name)) == "SUCCEEDED"
    jobs = [task.job for task in await tasks(wire, third.name)]
    assert jobs == [old.name, new.name, old.name, third.name]
    assert [attempt.index for attempt in await wire.attempts(third.name)] == [3]


async def test_a_rerun_of_what_failed_needs_failures_of_an_array(wire: Wire, host: Host) -> None:
    request = job_pb2.RerunJobRequest(failed_only=True)
    request.job = (await submit(wire, held())).name
    assert (await refused(wire.once(request, job_pb2.Job))).fields == ["failed_only"]
    request.job = (await submit(wire, array(held(), 2))).name
    refusal = await refused(wire.once(request, job_pb2.Job))
    assert (refusal.code.name, refusal.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    request.job = (await ended_array(wire, host, {0: 0, 1: 0})).name
    refusal = await refused(wire.once(request, job_pb2.Job))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "all 2 tasks" in refusal.message


async def test_fields_are_overridden_whole(wire: Wire, project: str) -> None:
    wanted = held()
    wanted.resources.cpus, wanted.resources.memory_bytes = 2, GIB
    wanted.labels["team"] = "vision"
    wanted.start_after.FromSeconds(4_000_000_000)
    old = await submit(wire, wanted, project)
    request = job_pb2.RerunJobRequest(job=old.name, env={"A": "1"})
    request.overrides.resources.cpus = 4
    request.overrides.hold = True
    request.overrides.queue = "not meant"
    request.override_mask.paths.extend(["resources", "labels", "hold"])
    new = await wire.once(request, job_pb2.Job)
    assert (new.spec.resources.cpus, new.spec.resources.memory_bytes) == (4, 0)
    assert (dict(new.spec.labels), dict(new.spec.env)) == ({}, {"A": "1"})
    assert (new.spec.queue, new.spec.hold, new.spec.HasField("start_after")) == (
        "default",
        True,
        False,
    )


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("name", "cannot be changed by a rerun"),
        ("array", "cannot be changed by a rerun"),
        ("replicas", "cannot be changed by a rerun"),
        ("resources.cpus", "name 'resources' and send it whole"),
        ("queu", "must name top-level fields"),
    ],
)
async def test_what_cannot_be_overridden_is_named(
    wire: Wire, project: str, path: str, words: str
) -> None:
    old = await submit(wire, held(), project)
    request = job_pb2.RerunJobRequest(job=old.name)
    request.override_mask.paths.append(path)
    refusal = await refused(wire.once(request, job_pb2.Job))
    assert (refusal.code.name, refusal.fields) == ("INVALID_ARGUMENT", ["override_mask"])
    assert words in refusal.message


async def test_overrides_are_checked_as_a_submit_is(wire: Wire, project: str) -> None:
    old = await submit(wire, held(), project)
    request = job_pb2.RerunJobRequest(job=old.name)
    request.overrides.resources.cpus = -1
    request.override_mask.paths.append("resources")
    assert (await refused(wire.once(request, job_pb2.Job))).fields == ["spec.resources.cpus"]
    request.overrides.queue = "ghost"
    request.override_mask.paths[:] = ["queue"]
    assert (await refused(wire.once(request, job_pb2.Job))).fields == ["spec.queue"]


# -- plan and explain --------------------------------------------------------------------------


async def test_a_plan_says_where_it_would_start_and_stores_nothing(
    wire: Wire, project: str
) -> None:
    found = await plan(wire, spec(), project)
    assert (found.job, found.reason, state_of(found)) == ("", 0, "QUEUED")
    assert [place.backend for place in found.places] == ["mock"]
    counts = await wire.once(job_pb2.CountJobsRequest(project=project), job_pb2.CountJobsResponse)
    assert counts.total == 0


def state_of(found: job_pb2.Explanation) -> str:
    return common_pb2.JobState.Name(found.state).removeprefix("JOB_STATE_")


async def test_a_plan_is_refused_as_a_submit_is(wire: Wire, project: str) -> None:
    wanted = spec()
    wanted.queue = "ghost"
    refusal = await refused(plan(wire, wanted, project))
    assert (refusal.code.name, refusal.fields) == ("INVALID_ARGUMENT", ["spec.queue"])


async def test_what_is_suspicious_is_a_warning(wire: Wire, project: str) -> None:
    wanted = spec()
    wanted.retries.rules.add(limit=1)
    wanted.retries.rules.add(causes=[common_pb2.CAUSE_CODE_LOST])
    wanted.retries.rules.add().exit_codes.append(3)
    found = await plan(wire, wanted, project)
    assert found.warnings[0] == "Retry rule 2 never speaks: rule 1 before it holds always."
    wanted = spec()
    wanted.retries.rules.add().exit_codes.append(3)
    wanted.retries.rules[0].mutate.memory_factor = 2
    first, second = (await plan(wire, wanted, project)).warnings
    assert "retries nothing" in first
    assert "asks for none" in second


async def test_what_could_never_fit_is_said_at_once(wire: Wire, host: Host) -> None:
    wanted = job_on(host.name)
    wanted.resources.cpus = 4000
    found = await plan(wire, wanted, "")
    assert found.reason == job_pb2.WAIT_REASON_NEVER_FITS
    assert found.message in found.warnings
    job = await submit(wire, wanted)
    assert job.waiting_reason == found.message
    assert (await explain(wire, job.name)).reason == job_pb2.WAIT_REASON_NEVER_FITS


async def test_a_held_job_says_who_may_let_it_go(wire: Wire, project: str) -> None:
    job = await submit(wire, held(), project)
    found = await explain(wire, job.name)
    assert (found.job, found.reason) == (job.name, job_pb2.WAIT_REASON_HELD)
    assert "hatoba jobs release" in found.remedy
    assert found.message == (await wire.job(job.name)).waiting_reason


async def test_a_blocked_job_names_what_it_waits_for(wire: Wire, project: str) -> None:
    upstream = await submit(wire, held("up"), project)
    wanted = spec()
    wanted.after_ok.append(upstream.name)
    job = await submit(wire, wanted, project)
    found = await explain(wire, job.name)
    assert found.reason == job_pb2.WAIT_REASON_BLOCKED
    assert "up-1" in found.message
    planned = await plan(wire, wanted, project)
    assert (planned.reason, planned.message) == (found.reason, found.message)


async def test_a_start_to_come_is_its_estimate(wire: Wire, project: str) -> None:
    wanted = spec()
    wanted.start_after.FromSeconds(int(time.time()) + 3600)
    job = await submit(wire, wanted, project)
    found = await explain(wire, job.name)
    assert found.reason == job_pb2.WAIT_REASON_START_AFTER
    assert found.estimated_start == wanted.start_after
    await cancel(wire, job.name)


async def test_what_backs_off_says_until_when(wire: Wire, project: str) -> None:
    wanted = spec(exit_code=1)
    wanted.retries.user = 3
    wanted.retries.backoff.seconds = wanted.retries.max_backoff.seconds = 3600
    job = await submit(wire, wanted, project)
    await wire.watched(job.name, lambda job: "starts in" in job.waiting_reason, 20)
    found = await explain(wire, job.name)
    assert found.reason == job_pb2.WAIT_REASON_BACKING_OFF
    assert found.estimated_start.seconds > time.time()
    await cancel(wire, job.name)


async def test_what_is_not_proven_gone_is_waited_for(wire: Wire, host: Host) -> None:
    job = await submit(wire, job_on(host.name))
    launch = await host.launched()
    await host.started(launch)
    await host.commit(launch, kind=runner_pb2.EXIT_KIND_LOST, gone=False)
    found = await explain(wire, job.name)
    assert found.reason == job_pb2.WAIT_REASON_RELEASING
    assert f"declare-gone {host.name}" in found.remedy


async def test_what_runs_or_is_over_waits_for_nothing(wire: Wire, host: Host) -> None:
    job = await submit(wire, job_on(host.name))
    launch = await host.launched()
    await host.started(launch)
    await eventually(lambda: in_state(wire, job.name, "RUNNING"))
    found = await explain(wire, job.name)
    assert (found.reason, found.message) == (0, f"It is running on {host.name}, attempt 1.")
    await host.commit(launch, exit_code=3)
    await wire.ended(job.name)
    found = await explain(wire, job.name)
    assert found.message == "It has ended FAILED: The command ended with exit code 3."
    assert not (await wire.job(job.name)).waiting_reason


async def in_state(wire: Wire, name: str, wanted: str) -> bool:
    return state(await wire.job(name)) == wanted


async def test_nothing_is_explained_of_nobody(wire: Wire) -> None:
    refusal = await refused(explain(wire, "ghost-1"))
    assert refusal.code is grpc.StatusCode.NOT_FOUND


# -- retries -----------------------------------------------------------------------------------


async def test_each_decision_to_try_again_is_an_event_with_its_reason(
    wire: Wire,
) -> None:
    name = fresh("h")
    wanted = job_on(name)
    wanted.resources.memory_bytes = GIB
    rule = wanted.retries.rules.add(causes=[common_pb2.CAUSE_CODE_OUT_OF_MEMORY], limit=2)
    rule.mutate.memory_factor = 2
    async with connected(wire, name, secrets=[name], memory_bytes=8 * GIB) as host:
        job = await submit(wire, wanted)
        for asked in (GIB, 2 * GIB):
            launch = await host.launched()
            assert launch.resources.memory_bytes == asked
            await host.started(launch)
            await host.commit(launch, kind=runner_pb2.EXIT_KIND_OUT_OF_MEMORY)
        (task,) = await tasks(wire, job.name)
        assert task.memory_bytes == 4 * GIB
        launch = await host.launched()
        await host.started(launch)
        await host.commit(launch, exit_code=1)
    await wire.ended(job.name)
    noted = [event.note for event in await wire.events(job.name) if event.note]
    assert noted == [
        "Retry 1 of 2 by rule 1 in 0.0 s; memory 1 GiB -> 2 GiB by rule 1.",
        "Retry 2 of 2 by rule 1 in 0.0 s; memory 2 GiB -> 4 GiB by rule 1.",
        "No retry: the budget of 0 for user errors is spent.",
    ]


async def test_no_retry_asks_for_more_than_any_host_has(wire: Wire) -> None:
    name = fresh("h")
    wanted = job_on(name)
    wanted.resources.memory_bytes = GIB
    rule = wanted.retries.rules.add(causes=[common_pb2.CAUSE_CODE_OUT_OF_MEMORY], limit=1)
    rule.mutate.memory_factor = 16
    async with connected(wire, name, secrets=[name], memory_bytes=3 * GIB) as host:
        job = await submit(wire, wanted)
        launch = await host.launched()
        await host.started(launch)
        await host.commit(launch, kind=runner_pb2.EXIT_KIND_OUT_OF_MEMORY)
        assert (await host.launched()).resources.memory_bytes == 3 * GIB
        await cancel(wire, job.name)
