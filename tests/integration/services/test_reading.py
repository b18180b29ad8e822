"""GetJob, ListJobs, CountJobs, ListTasks, ListAttempts: by every name, page by page, filtered."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import grpc
import pytest
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, queue_pb2

from .conftest import cancel, fresh, held, refused, running, spec, state, submit


async def page(wire: Wire, project: str, **fields: Any) -> job_pb2.ListJobsResponse:
    request = job_pb2.ListJobsRequest(project=project, **fields)
    return await wire.once(request, job_pb2.ListJobsResponse)


async def names(wire: Wire, project: str, text: str = "") -> list[str]:
    found = await page(wire, project, filter=text, page_size=1000)
    return [job.name.split("/")[-1] for job in found.jobs]


# -- one job ---------------------------------------------------------------------------------------


async def test_a_job_has_three_names(wire: Wire, project: str) -> None:
    name = fresh("n")
    job = await submit(wire, held(name))
    for reference in (job.name, f"{name}-1", job.uid, f"projects/default/jobs/{name}-1"):
        assert (await wire.job(reference)).uid == job.uid
    other = await submit(wire, held(name), project)
    assert (await wire.job(f"{name}-1")).uid == job.uid
    assert (await wire.job(other.name)).uid == other.uid
    await cancel(wire, job.name, other.name)
    assert state(await wire.job(job.uid)) == "CANCELLED"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ghost-1", grpc.StatusCode.NOT_FOUND),
        ("01890000-0000-7000-8000-000000000000", grpc.StatusCode.NOT_FOUND),
        ("projects/default/jobs/ghost-1", grpc.StatusCode.NOT_FOUND),
        ("projects/default/queues/default", grpc.StatusCode.INVALID_ARGUMENT),
        ("projects//jobs/x-1", grpc.StatusCode.INVALID_ARGUMENT),
        ("../../etc/passwd", grpc.StatusCode.INVALID_ARGUMENT),
        ("", grpc.StatusCode.INVALID_ARGUMENT),
        ("x" * 257, grpc.StatusCode.INVALID_ARGUMENT),
        ("Größe-1", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_other_names_are_refused(wire: Wire, name: str, code: grpc.StatusCode) -> None:
    for request, reply in (
        (job_pb2.GetJobRequest(name=name), job_pb2.Job),
        (job_pb2.ListTasksRequest(job=name), job_pb2.ListTasksResponse),
        (job_pb2.ListAttemptsRequest(job=name), job_pb2.ListAttemptsResponse),
        (job_pb2.QueryMetricsRequest(job=name), job_pb2.QueryMetricsResponse),
        (job_pb2.GetJobTraceRequest(job=name), job_pb2.GetJobTraceResponse),
        (job_pb2.RerunJobRequest(job=name), job_pb2.Job),
    ):
        assert (await refused(wire.once(request, reply))).code is code


# -- lists -----------------------------------------------------------------------------------------


async def test_pages_are_newest_first_without_gap_while_jobs_are_added(
    wire: Wire, project: str
) -> None:
    for _ in range(23):
        await submit(wire, held(), project)
    seen: list[str] = []
    token = ""
    while True:
        reply = await page(wire, project, page_size=5, page_token=token)
        seen += [job.name.split("/")[-1] for job in reply.jobs]
        await asyncio.gather(*(submit(wire, held("later"), project) for _ in range(3)))
        token = reply.next_page_token
        if not token:
            break
    assert seen == [f"job-{n}" for n in range(23, 0, -1)]


async def test_the_last_page_has_no_token(wire: Wire, project: str) -> None:
    for _ in range(4):
        await submit(wire, held(), project)
    first = await page(wire, project, page_size=2)
    last = await page(wire, project, page_size=2, page_token=first.next_page_token)
    assert (len(last.jobs), last.next_page_token) == (2, "")
    assert first.jobs[0].spec.command == ["true"]
    assert not (await page(wire, fresh("none"))).jobs


async def test_a_token_belongs_to_its_query(wire: Wire, project: str) -> None:
    for _ in range(3):
        await submit(wire, held(), project)
    token = (await page(wire, project, page_size=1)).next_page_token
    raw = bytearray(base64.urlsafe_b64decode(token))
    raw[-2] ^= 1
    tampered = base64.urlsafe_b64encode(raw).decode()
    elsewhere = fresh("q")
    for where, text, bad in (
        (project, "state = HELD", token),
        (elsewhere, "", token),
        (project, "", tampered),
        (project, "", "nonsense"),
        (project, "", "日本"),
        (project, "", "A" * 1024),
    ):
        refusal = await refused(page(wire, where, filter=text, page_token=bad))
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_PAGE_TOKEN",
        )
    tasks = job_pb2.ListTasksRequest(job=f"projects/{project}/jobs/job-1", page_token=token)
    refusal = await refused(wire.once(tasks, job_pb2.ListTasksResponse))
    assert refusal.reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize("size", [-1, 1001, 2**31 - 1])
async def test_the_size_of_a_page_is_bounded(wire: Wire, project: str, size: int) -> None:
    refusal = await refused(page(wire, project, page_size=size))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_size"])


async def test_filters(wire: Wire, project: str) -> None:
    gpu = queue_pb2.CreateQueueRequest(project=project, queue_id="gpu")
    await wire.once(gpu, queue_pb2.Queue)
    a, b, c = held("a"), held("b"), spec("c", backend="null")
    a.labels.update({"team": "vision", "Owner/x": "two words"})
    b.queue, c.labels["team"] = "gpu", "sound"
    jobs = [await submit(wire, wanted, project) for wanted in (a, b, c)]
    await wire.ended(jobs[-1].name)
    expected = {
        "state = HELD": ["b-1", "a-1"],
        "state != HELD": ["c-1"],
        "state = SUCCEEDED": ["c-1"],
        "queue = gpu": ["b-1"],
        "queue != gpu": ["c-1", "a-1"],
        "backend = null": ["c-1"],
        'name = "a"': ["a-1"],
        "name = a-1": ["a-1"],
        "name != a-1": ["c-1", "b-1"],
        "name = a-2": [],
        "created_by = admin": ["c-1", "b-1", "a-1"],
        "created_by = ann": [],
        "active = true": ["b-1", "a-1"],
        "active = false": ["c-1"],
        "labels.team = vision": ["a-1"],
        "labels.team != vision": ["c-1", "b-1"],
        'labels.Owner/x = "two words"': ["a-1"],
        "labels.none = x": [],
        "active = true AND queue = gpu": ["b-1"],
        "active=true AND state=HELD AND name=a": ["a-1"],
        'name = "x\' OR 1=1"': [],
    }
    assert {text: await names(wire, project, text) for text in expected} == expected
    counted = job_pb2.CountJobsRequest(project=project, filter="queue != gpu")
    counts = await wire.once(counted, job_pb2.CountJobsResponse)
    assert (dict(counts.by_state), counts.total) == ({"HELD": 1, "SUCCEEDED": 1}, 2)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("stat = RUNNING", "did you mean 'state'?"),
        ("owner = ann", "known are"),
        ("state = RUNING", "did you mean RUNNING?"),
        ("state = running", "did you mean RUNNING?"),
        ("active = yes", "true or false"),
        ("state", "expected FIELD"),
        ("state = HELD OR state = QUEUED", "expected AND"),
        ("state = HELD state = QUEUED", "expected AND"),
        ("state = HELD AND", "expected"),
        ("= x", "expected FIELD"),
        ('name = "open', "expected FIELD"),
        ("state > HELD", "expected FIELD"),
        ("labels. = x", "labels"),
    ],
)
async def test_a_wrong_filter_is_told_what_is_meant(
    wire: Wire, project: str, text: str, hint: str
) -> None:
    for call in (
        page(wire, project, filter=text),
        wire.once(
            job_pb2.CountJobsRequest(project=project, filter=text), job_pb2.CountJobsResponse
        ),
        wire.once(
            job_pb2.CancelJobsRequest(project=project, filter=text), job_pb2.CancelJobsResponse
        ),
    ):
        refusal = await refused(call)
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refusal.reason == "INVALID_FILTER"
        assert hint in refusal.message


# -- tasks and attempts ----------------------------------------------------------------------------


async def tasks(wire: Wire, name: str, size: int, token: str = "") -> job_pb2.ListTasksResponse:
    request = job_pb2.ListTasksRequest(job=name, page_size=size, page_token=token)
    return await wire.once(request, job_pb2.ListTasksResponse)


async def test_tasks_that_never_started_are_listed_too(wire: Wire, project: str) -> None:
    wanted = running("array")
    wanted.array.size, wanted.array.max_parallel = 1_000_000, 2
    job = await submit(wire, wanted, project)
    await wire.watched(job.name, lambda job: job.counts.by_state["RUNNING"] == 2, 20)
    first = await tasks(wire, job.name, 3)
    assert [task.index for task in first.tasks] == [0, 1, 2]
    assert [state(task) for task in first.tasks] == ["RUNNING", "RUNNING", "QUEUED"]
    assert [task.attempt for task in first.tasks] == [1, 1, 0]
    assert first.tasks[0].version > 0
    assert first.tasks[2].version == 0
    second = await tasks(wire, job.name, 1000, first.next_page_token)
    assert [task.index for task in second.tasks] == list(range(3, 1003))
    (result,) = await cancel(wire, job.name)
    assert result.outcome != job_pb2.CANCEL_OUTCOME_ALREADY_TERMINAL
    ended = await wire.ended(job.name)
    assert dict(ended.counts.by_state) == {"CANCELLED": 1_000_000}
    assert {state(task) for task in (await tasks(wire, job.name, 10)).tasks} == {"CANCELLED"}


async def test_the_pages_of_tasks_meet_at_the_end(wire: Wire, project: str) -> None:
    wanted = held("array")
    wanted.array.size = 10
    job = await submit(wire, wanted, project)
    first = await tasks(wire, job.name, 5)
    last = await tasks(wire, job.name, 5, first.next_page_token)
    assert [task.index for task in (*first.tasks, *last.tasks)] == list(range(10))
    assert last.next_page_token == ""


async def test_attempts_by_task_and_number(wire: Wire, project: str) -> None:
    wanted = spec("flaky", exit_code=2)
    wanted.array.size = 2
    wanted.retries.user = 2
    wanted.retries.backoff.SetInParent()
    job = await submit(wire, wanted, project)
    ended = await wire.ended(job.name)
    assert state(ended) == "FAILED"
    found: list[tuple[int, int]] = []
    token = ""
    while True:
        request = job_pb2.ListAttemptsRequest(job=job.name, page_size=4, page_token=token)
        reply = await wire.once(request, job_pb2.ListAttemptsResponse)
        found += [(attempt.index, attempt.number) for attempt in reply.attempts]
        token = reply.next_page_token
        if not token:
            break
    assert found == [(index, number) for index in (0, 1) for number in (1, 2, 3)]
    request = job_pb2.ListAttemptsRequest(job=job.name, index=1)
    one = (await wire.once(request, job_pb2.ListAttemptsResponse)).attempts
    assert [(attempt.index, attempt.number) for attempt in one] == [(1, 1), (1, 2), (1, 3)]
    for attempt in one:
        assert attempt.state == common_pb2.ATTEMPT_STATE_FAILED
        assert attempt.cause.exit_code == 2
        assert attempt.fence == attempt.number
        assert attempt.backend == "mock"
        assert not attempt.fenced
    assert len({attempt.external_name for attempt in one}) == 3
    request = job_pb2.ListAttemptsRequest(job=job.name, index=7)
    assert not (await wire.once(request, job_pb2.ListAttemptsResponse)).attempts
