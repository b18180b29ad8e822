"""UpdateJob: priority, queue or hold of a job that is not over."""

from __future__ import annotations

from collections.abc import Sequence

from hatoba.v1 import job_pb2
from hatoba_scheduler.convert import etag
from hatoba_scheduler.domain.records import Change, Job
from hatoba_scheduler.domain.transitions import Now, Rows, Settings, hold, updated
from hatoba_scheduler.errors import Aborted, FailedPrecondition, InvalidArgument, Reason
from hatoba_scheduler.services.finding import JobFinder
from hatoba_scheduler.services.job_parts import JobParts
from hatoba_scheduler.services.requests import remember, request_key, seen_before

MASKABLE = ("priority", "queue", "hold")


class Updater:
    """Changes what may be changed of a job."""

    def __init__(self, parts: JobParts, finder: JobFinder) -> None:
        self._parts = parts
        self._store = parts.store
        self._ledger = parts.ledger
        self._finder = finder

    async def update(self, request: job_pb2.UpdateJobRequest, now: Now) -> Job:
        """Carry the request out, once for its id; the job as it is then."""
        paths = list(request.update_mask.paths)
        _check_mask(paths)
        job = await self._finder.find(request.name)
        key = request_key(job.project, "UpdateJob", request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return job
        if "queue" in paths:
            self._parts.grounds().queues.get(job.project, request.queue)
        await self._update(job, request, now)
        await remember(self._store, key, job.uid)
        return await self._finder.by_uid(job.uid)

    async def _update(self, job: Job, request: job_pb2.UpdateJobRequest, now: Now) -> None:
        decided = False

        def decide(rows: Rows) -> Change | None:
            nonlocal decided
            decided = True
            return _decide(rows, request, now)

        if job.state.terminal:
            raise _ended(job)
        await self._ledger.ask(job.uid, decide)
        if not decided:
            # It ended, and left memory, since it was looked up.
            raise _ended(await self._finder.by_uid(job.uid))


def _decide(rows: Rows, request: job_pb2.UpdateJobRequest, now: Now) -> Change | None:
    job = rows.job
    if job.state.terminal:
        raise _ended(job)
    change = _change(rows, request, now)
    # One that is as wanted already was changed by this request, and a crash kept its key from us.
    if change is not None and request.etag and request.etag != etag(job):
        raise Aborted(
            f"{job.name} was changed since it was read "
            f"(etag {etag(job)}, not {request.etag}); read it again and retry"
        )
    return change


def _change(rows: Rows, request: job_pb2.UpdateJobRequest, now: Now) -> Change | None:
    paths = request.update_mask.paths
    if "hold" in paths:
        return hold(rows, request.hold, now)
    settings = Settings(
        priority=request.priority if "priority" in paths else None,
        queue=request.queue if "queue" in paths else None,
    )
    return updated(rows, settings, now)


def _ended(job: Job) -> FailedPrecondition:
    return FailedPrecondition(
        f"{job.name} has ended {job.state.name} and cannot be changed; "
        f"`hatoba jobs rerun {job.name}` makes a new one",
        reason=Reason.WRONG_STATE,
    )


def _check_mask(paths: Sequence[str]) -> None:
    if not paths:
        raise InvalidArgument.field(
            "update_mask", f"must name at least one of {', '.join(MASKABLE)}"
        )
    for path in paths:
        if path not in MASKABLE:
            raise InvalidArgument.field(
                "update_mask",
                f"may name {', '.join(MASKABLE)}",
                value=path,
                remedy="name only these",
            )
    if "hold" in paths and len(paths) > 1:
        raise InvalidArgument.field("update_mask", "must have `hold` alone", value=",".join(paths))
