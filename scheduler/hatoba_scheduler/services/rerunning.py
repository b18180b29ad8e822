"""RerunJob: a new job from an old one, which stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.submit import Origin
from hatoba_scheduler.domain.naming import job_name
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import Checkpoint, Job
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    Reason,
    shown,
)
from hatoba_scheduler.services.finding import JobFinder
from hatoba_scheduler.services.job_parts import JobParts
from hatoba_scheduler.services.labels import reserved_labels
from hatoba_scheduler.services.requests import request_key
from hatoba_scheduler.services.submitting import Submitter
from hatoba_scheduler.validation import violations

FIXED = ("name", "array", "replicas")
"""What a rerun has of the old job in any case."""
_OF_ITS_TIME = ("after_ok", "after_any", "after_end", "start_after", "deadline", "hold")
"""What belonged to the old job's own submit."""


class Rerunner:
    """Makes new jobs from old ones."""

    def __init__(self, parts: JobParts, finder: JobFinder, submitter: Submitter) -> None:
        self._store = parts.store
        self._specs = parts.specs
        self._finder = finder
        self._submitter = submitter

    async def rerun(self, request: job_pb2.RerunJobRequest) -> job_pb2.Job:
        """A new job, as it was stored."""
        old = await self._finder.find(request.job)
        key = request_key(old.project, "RerunJob", request.request_id, request)
        spec = job_pb2.JobSpec()
        spec.CopyFrom((await self._specs.get([old.uid]))[old.uid])
        _override(spec, old, request)
        found = [*violations(spec, "spec"), *_reserved(request)]
        if found:
            raise InvalidArgument.of(found)
        origin = Origin(
            rerun_of=job_name(old.project, old.name),
            restore=await self._checkpoint(old) if request.from_checkpoint else None,
            inherited=await self._inherited(old) if request.failed_only else Ranges(),
        )
        return await self._submitter.submit(spec, self._submitter.visit(old.project), origin, key)

    async def _checkpoint(self, job: Job) -> Checkpoint:
        """Where a job of one task, or the first member of a gang, was saved last."""
        if job.size != 1 and not job.terms.gang:
            raise InvalidArgument.field(
                "from_checkpoint", "is not for arrays", remedy="leave it out", value=True
            )
        tasks = await self._store.tasks(job.uid, -1, 1)
        if not tasks or tasks[0].checkpoint is None:
            raise FailedPrecondition(
                f"{job.name} has no checkpoint to begin from; leave from_checkpoint out"
            )
        return tasks[0].checkpoint

    async def _inherited(self, job: Job) -> Ranges:
        """The tasks of an array that need not run again."""
        if job.size == 1 or job.terms.gang:
            raise InvalidArgument.field(
                "failed_only", "is for arrays", remedy="leave it out", value=True
            )
        if not job.state.terminal:
            raise FailedPrecondition(
                f"{job.name} is {job.state.name}: which of its tasks fail is not known yet; "
                f"wait for its end, or `hatoba jobs cancel {job.name}`",
                reason=Reason.WRONG_STATE,
            )
        done = job.counts[JobState.SUCCEEDED]
        if done == job.size:
            raise FailedPrecondition(
                f"all {done} tasks of {job.name} succeeded; leave failed_only out to run all again",
                reason=Reason.WRONG_STATE,
            )
        if not done:
            return Ranges()
        return job.terms.inherited.union(await self._store.succeeded(job.uid))


def _override(spec: job_pb2.JobSpec, old: Job, request: job_pb2.RerunJobRequest) -> None:
    """Make the old job's spec the new one's."""
    paths = list(request.override_mask.paths)
    _check_mask(paths)
    for name in _OF_ITS_TIME:
        spec.ClearField(name)  # type: ignore[arg-type]
    spec.queue, spec.priority = old.queue, old.priority
    if old.terms.backends:
        spec.ClearField("backend")
    wanted = job_pb2.JobSpec()
    wanted.CopyFrom(request.overrides)
    for field, _ in wanted.ListFields():
        if field.name not in paths:
            wanted.ClearField(field.name)  # type: ignore[arg-type]
    for path in paths:
        spec.ClearField(path)  # type: ignore[arg-type]
    spec.MergeFrom(wanted)
    for name, value in request.params.items():
        spec.params[name].CopyFrom(value)
    spec.env.update(request.env)


def _reserved(request: job_pb2.RerunJobRequest) -> list[FieldViolation]:
    """Labels that a rerun may keep, and not set."""
    given = request.overrides.labels if "labels" in request.override_mask.paths else ()
    return reserved_labels(given, "overrides.labels")


def _check_mask(paths: Sequence[str]) -> None:
    for path in paths:
        if path in FIXED:
            raise _refused(path, "cannot be changed by a rerun", "submit a new job")
        if path not in job_pb2.JobSpec.DESCRIPTOR.fields_by_name:
            top = path.partition(".")[0]
            known = top in job_pb2.JobSpec.DESCRIPTOR.fields_by_name
            remedy = f"name {shown(top)} and send it whole" if known else "name fields of JobSpec"
            raise _refused(path, "must name top-level fields of JobSpec", remedy)


def _refused(path: str, message: str, remedy: str) -> InvalidArgument:
    return InvalidArgument.field("override_mask", message, value=path, remedy=remedy)
