"""Arrays, retries, priorities: what is launched, when, and how often."""

from __future__ import annotations

import itertools

import pytest
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, queue_pb2

from .conftest import cancel, events_of, fresh, spec, state, submit, watch


def at_once(wanted: job_pb2.JobSpec) -> job_pb2.JobSpec:
    """Retry without back-off."""
    wanted.retries.backoff.SetInParent()
    return wanted


async def test_an_array_runs_no_more_at_once_than_it_may(wire: Wire, project: str) -> None:
    wanted = spec("array", run_for=0.01)
    wanted.array.size, wanted.array.max_parallel = 12, 3
    job = await submit(wire, wanted, project)
    assert state(await wire.ended(job.name)) == "SUCCEEDED"
    running = most = 0
    for event in events_of(await watch(wire, jobs=[job.name], cursor="0")):
        running += event.reason == "launch"
        running -= event.terminal and event.HasField("index")
        most = max(most, running)
    assert most == 3
    assert len(await wire.attempts(job.name)) == 12


async def test_fail_fast_cancels_the_rest(wire: Wire, project: str) -> None:
    wanted = spec("array", run_for=0.05, exit_code=4)
    wanted.array.size, wanted.array.max_parallel, wanted.array.fail_fast = 50, 1, True
    job = await submit(wire, wanted, project)
    ended = await wire.ended(job.name)
    assert state(ended) == "FAILED"
    assert dict(ended.counts.by_state) == {"FAILED": 1, "CANCELLED": 49}
    assert ended.cause.exit_code == 4
    causes = {e.cause.code for e in await wire.events(job.name) if e.reason == "fail_fast"}
    assert causes == {common_pb2.CAUSE_CODE_SIBLING_FAILED}


async def test_without_fail_fast_all_are_run(wire: Wire, project: str) -> None:
    wanted = spec("array", exit_code=4)
    wanted.array.size = 20
    ended = await wire.ended((await submit(wire, wanted, project)).name)
    assert (state(ended), dict(ended.counts.by_state)) == ("FAILED", {"FAILED": 20})


@pytest.mark.parametrize(
    ("outcome", "origin", "budget", "attempts"),
    [
        ("exited", "user", None, 1),
        ("exited", "user", 2, 3),
        ("signaled", "user", 1, 2),
        ("failed", "infrastructure", None, 4),
        ("failed", "infrastructure", 0, 1),
        ("gone", "infrastructure", 1, 2),
        ("preempted", "preemption", None, 11),
        ("preempted", "preemption", 2, 3),
        ("run_timeout", "user", 3, 1),
    ],
)
async def test_each_origin_has_its_budget(
    wire: Wire, project: str, outcome: str, origin: str, budget: int | None, attempts: int
) -> None:
    wanted = at_once(spec("flaky", outcome=outcome, exit_code=3 if outcome == "exited" else 0))
    if budget is not None:
        setattr(wanted.retries, origin, budget)
    job = await submit(wire, wanted, project)
    ended = await wire.ended(job.name)
    assert state(ended) == ("TIMED_OUT" if outcome == "run_timeout" else "FAILED")
    assert ended.cause.origin == common_pb2.Origin.Value(f"ORIGIN_{origin.upper()}")
    made = await wire.attempts(job.name)
    assert [attempt.number for attempt in made] == list(range(1, attempts + 1))
    reasons = [event.reason for event in await wire.events(job.name)]
    assert reasons.count("retry") == attempts - 1
    for before, after in itertools.pairwise(made):
        assert before.end_time.ToMicroseconds() <= after.create_time.ToMicroseconds()


async def test_a_timeout_of_its_own_ends_a_run(wire: Wire, project: str) -> None:
    wanted = spec("slow", run_for=600)
    wanted.timeout.nanos = 20_000_000
    ended = await wire.ended((await submit(wire, wanted, project)).name)
    assert state(ended) == "TIMED_OUT"
    assert ended.cause.code == common_pb2.CAUSE_CODE_RUN_TIMEOUT


async def test_a_refused_launch_is_a_failure_with_its_cause(wire: Wire, project: str) -> None:
    wanted = spec("refused", launch_fault="refused", error="Denied")
    ended = await wire.ended((await submit(wire, wanted, project)).name)
    assert state(ended) == "FAILED"
    assert ended.cause.code == common_pb2.CAUSE_CODE_REFUSED_DENIED


async def test_priority_then_age_on_one_place(wire: Wire, project: str) -> None:
    queue = fresh("one")
    request = queue_pb2.CreateQueueRequest(
        project=project, queue_id=queue, queue=queue_pb2.Queue(max_running=1)
    )
    await wire.once(request, queue_pb2.Queue)
    blocker = spec("blocker", run_for=600)
    blocker.queue = queue
    blocker.preemption.never = True
    first = await submit(wire, blocker, project)
    await wire.in_state(first.name, common_pb2.JOB_STATE_RUNNING)
    jobs = []
    for priority in (0, 5, 0, -3, 5, 1000):
        wanted = spec(f"p{priority}".replace("-", "m"))
        wanted.queue, wanted.priority = queue, priority
        jobs.append(await submit(wire, wanted, project))
    waiting = await wire.job(jobs[0].name)
    assert f"queue '{queue}' runs 1 of at most 1 tasks." in waiting.waiting_reason
    raised = job_pb2.UpdateJobRequest(name=jobs[3].name, priority=6)
    raised.update_mask.paths.append("priority")
    await wire.once(raised, job_pb2.Job)
    await cancel(wire, first.name)
    ended = [await wire.ended(job.name) for job in jobs]
    order = sorted(ended, key=lambda job: job.start_time.ToMicroseconds())
    assert [job.name for job in order] == [jobs[n].name for n in (5, 3, 1, 4, 0, 2)]
    for before, after in itertools.pairwise(order):
        assert before.end_time.ToMicroseconds() <= after.start_time.ToMicroseconds()
