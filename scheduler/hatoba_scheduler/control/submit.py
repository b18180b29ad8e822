"""From a checked specification to the rows of a new job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.lineage import reads_of
from hatoba_scheduler.control.terms import POLICY, retry_policy, seconds, task_count, terms_of
from hatoba_scheduler.convert import pairs, resources_of
from hatoba_scheduler.domain.changing import copier
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT, DEFAULT_QUEUE
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import Checkpoint, Event, Job
from hatoba_scheduler.domain.states import Desired
from hatoba_scheduler.domain.transitions import Now, first_state, initial_counts, submitted
from hatoba_scheduler.store.base import RequestKey, Submission
from hatoba_scheduler.telemetry.tracing import SpanContext

STOP_GRACE = 10.0
_ONE = Ranges.upto(1)
_with_uid = copier(Job, "uid")
_of_job = copier(Event, "job_uid")
_like_job = copier(Job, "uid", "create_time", "trace_id", "span_id", "sampled")
_like_event = copier(Event, "job_uid", "time", "trace_id")


class Caller(NamedTuple):
    """Who submits, in which project, below which span."""

    principal: str
    project: str
    trace: SpanContext


class Upstreams(NamedTuple):
    """Uids of jobs to wait for: all of `ok` must succeed, one of `any`, all of `end` must end."""

    ok: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    end: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Whatever the way of waiting."""
        return self.ok + self.any + self.end


FREE = Upstreams()


@dataclass(frozen=True, slots=True)
class Origin:
    """What a job follows from: jobs it waits for, the job it repeats, where it begins."""

    upstreams: Upstreams = FREE
    rerun_of: str = ""
    restore: Checkpoint | None = None
    inherited: Ranges = Ranges()
    """Tasks of the job it repeats that count as they ended there."""
    backends: tuple[str, ...] = ()
    """Backends that it may run on, when it named none and several can run it."""


def with_defaults(spec: job_pb2.JobSpec, default_backend: str) -> None:
    """Fill in what was left out; the spec is stored like this."""
    spec.queue = spec.queue or DEFAULT_QUEUE
    spec.backend = spec.backend or default_backend
    if not spec.HasField("stop_grace"):
        spec.stop_grace.seconds = int(STOP_GRACE)


class JobMaker:
    """Makes new jobs' rows. `uid` gives a new time-ordered uid."""

    def __init__(self, uid: Callable[[], str], default_backend: str) -> None:
        self._uid = uid
        self._default_backend = default_backend

    def submission(
        self,
        spec: job_pb2.JobSpec,
        caller: Caller,
        origin: Origin,
        now: Now,
        request: RequestKey | None,
    ) -> Submission:
        """The rows of a new job; fills the spec's defaults in."""
        with_defaults(spec, self._default_backend)
        job = self._job(spec, caller, origin, now)
        text = spec.SerializeToString()
        reads = reads_of(spec, job.project) if spec.inputs or spec.code_version else ()
        event, publishes = submitted(job, now), spec.HasField("publish")
        return Submission(job, spec.name, text, event, request, reads, publishes)

    def like(
        self, pattern: Submission, caller: Caller, now: Now, request: RequestKey | None
    ) -> Submission:
        """The rows of one more job of the same caller's same spec."""
        uid, trace = self._uid(), caller.trace
        job = _like_job(pattern.job, uid, now.time, *trace)
        event = _like_event(pattern.event, uid, now.time, trace.trace_id)
        return _of_pattern(pattern, job, event, request)

    def another(self, pattern: Submission, request: RequestKey | None) -> Submission:
        """The rows of one more job of the pattern's own call."""
        uid = self._uid()
        job, event = _with_uid(pattern.job, uid), _of_job(pattern.event, uid)
        return _of_pattern(pattern, job, event, request)

    def _job(self, spec: job_pb2.JobSpec, caller: Caller, origin: Origin, now: Now) -> Job:
        size = task_count(spec)
        state = first_state(spec.hold, origin.upstreams.all)
        environment = spec.environment
        return Job(
            uid=self._uid(),
            project=caller.project or DEFAULT_PROJECT,
            name="",
            queue=spec.queue,
            backend=spec.backend,
            priority=spec.priority,
            size=size,
            max_parallel=spec.array.max_parallel,
            fail_fast=spec.array.fail_fast,
            resources=resources_of(spec.resources),
            retries=retry_policy(spec.retries) if spec.HasField("retries") else POLICY,
            state=state,
            desired=Desired.RUN,
            version=1,
            settings_version=1,
            unstarted=_ONE if size == 1 else Ranges.upto(size).less(origin.inherited),
            unstarted_state=state,
            counts=initial_counts(size, state, len(origin.inherited)),
            hold=spec.hold,
            blocked_on=origin.upstreams.ok,
            blocked_any=origin.upstreams.any,
            blocked_end=origin.upstreams.end,
            created_by=caller.principal,
            create_time=now.time,
            trace_id=caller.trace.trace_id,
            span_id=caller.trace.span_id,
            sampled=caller.trace.sampled,
            rerun_of=origin.rerun_of,
            stop_grace=seconds(spec.stop_grace),
            labels=pairs(spec.labels.items()) if spec.labels else (),
            secrets=tuple(sorted(secret.name for secret in spec.secrets)) if spec.secrets else (),
            embedded_only=bool(environment.caller_interpreter) and not environment.python,
            restore=origin.restore,
            terms=terms_of(spec, origin.backends, origin.inherited),
        )


def _of_pattern(
    pattern: Submission, job: Job, event: Event, request: RequestKey | None
) -> Submission:
    return Submission(
        job,
        pattern.base_name,
        pattern.spec,
        event,
        request,
        pattern.reads,
        pattern.publishes,
        pattern,
    )
