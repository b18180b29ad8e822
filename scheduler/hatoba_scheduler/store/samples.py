"""Records to fill a store with, for the conformance suite and the benchmark."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import replace

from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    Attempt,
    Counts,
    Event,
    Job,
    Resources,
    RetryPolicy,
    Task,
)
from hatoba_scheduler.domain.states import (
    STATE_COUNT,
    AttemptState,
    Desired,
    JobState,
    Release,
)
from hatoba_scheduler.store.base import RequestKey, Submission

_numbers = itertools.count(1)


def new_uid() -> str:
    """A uid above all before it, of the form of a UUIDv7."""
    tail = uuid.uuid4().hex
    number = f"{next(_numbers):012x}"
    return f"{number[:8]}-{number[8:]}-7{tail[:3]}-8{tail[3:6]}-{tail[6:18]}"


def counts(**states: int) -> Counts:
    """Tasks per state: `counts(QUEUED=3)`."""
    found = [0] * STATE_COUNT
    for name, count in states.items():
        found[JobState[name]] = count
    return tuple(found)


def new_job(size: int = 1, project: str = "default") -> Job:
    """A queued job as the service hands it to the store."""
    return Job(
        uid=new_uid(),
        project=project,
        name="",
        queue="default",
        backend="null",
        priority=0,
        size=size,
        max_parallel=0,
        fail_fast=False,
        resources=Resources(),
        retries=RetryPolicy(),
        state=JobState.QUEUED,
        desired=Desired.RUN,
        version=1,
        settings_version=1,
        unstarted=Ranges.upto(size),
        unstarted_state=JobState.QUEUED,
        counts=counts(QUEUED=size),
        hold=False,
        blocked_on=(),
        created_by="user:ada",
        create_time=1_000_000,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
    )


def first_event(job: Job) -> Event:
    """What tells of a job's submission."""
    return Event(
        job_uid=job.uid,
        job_seq=1,
        time=job.create_time,
        index=None,
        attempt=0,
        from_state=job.state,
        to_state=job.state,
        job_from=job.state,
        job_to=job.state,
        cause=None,
        actor=job.created_by,
        reason="submit",
        project=job.project,
        trace_id=job.trace_id,
    )


def request_key(job: Job, request_id: str = "") -> RequestKey:
    """A key for a job's submit; a new one unless the id is given."""
    return RequestKey(job.project, "SubmitJob", request_id or uuid.uuid4().hex, b"\x01" * 32)


def submission(job: Job | None = None, base_name: str = "train", keyed: bool = True) -> Submission:
    """A job to submit, with a request key of its own unless told otherwise."""
    job = job or new_job()
    key = request_key(job) if keyed else None
    return Submission(job, base_name, b"\x0a\x05train" * 40, first_event(job), key)


def new_task(job: Job, index: int = 0) -> Task:
    """A task just started."""
    return Task(job.uid, index, JobState.LAUNCHING, 1, 1)


def new_attempt(job: Job, index: int = 0, number: int = 1) -> Attempt:
    """An attempt just decided on."""
    return Attempt(
        name=f"h1-{job.uid.replace('-', '')}-{index}-{number}",
        job_uid=job.uid,
        index=index,
        number=number,
        fence=number,
        backend=job.backend,
        host="",
        gpus=(),
        state=AttemptState.LAUNCHING,
        version=1,
        release=Release.HELD,
        fenced=True,
        span_id="c1c2c3c4c5c6c7c8",
        create_time=job.create_time,
    )


def event_of(job: Job, job_seq: int, index: int | None = 0) -> Event:
    """An event of a named job."""
    return replace(first_event(job), job_seq=job_seq, index=index, job_name=job.name)
