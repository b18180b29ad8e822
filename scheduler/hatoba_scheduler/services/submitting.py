"""Takes new jobs in: checks them, makes their rows, stores them, answers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.admission import Grounds, problems, willing_backends
from hatoba_scheduler.control.room import QueueRoom
from hatoba_scheduler.control.submit import Caller, Origin
from hatoba_scheduler.convert import job_to_proto
from hatoba_scheduler.domain.naming import (
    DEFAULT_PROJECT,
    DEFAULT_QUEUE,
    job_name,
)
from hatoba_scheduler.domain.planning.model import QueueKey
from hatoba_scheduler.domain.records import Job
from hatoba_scheduler.domain.transitions import Now
from hatoba_scheduler.errors import (
    HatobaError,
    InvalidArgument,
    NotFound,
)
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.dependencies import Dependencies, waits
from hatoba_scheduler.services.finding import JobFinder
from hatoba_scheduler.services.job_parts import JobParts
from hatoba_scheduler.services.requests import mark_deduplicated, mismatch, request_key
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey, Submission, Submitted
from hatoba_scheduler.validation import violations

REQUEST_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Visit:
    """One submitting call: who, on what grounds, when."""

    caller: Caller
    grounds: Grounds
    now: Now


class Submitter:
    """SubmitJob, SubmitJobs, and whatever else makes new jobs."""

    def __init__(
        self,
        parts: JobParts,
        finder: JobFinder,
        message: Callable[[Job], Awaitable[job_pb2.Job]],
    ) -> None:
        """`message` gives a stored job as callers see it."""
        self._parts = parts
        self._store = parts.store
        self._ledger = parts.ledger
        self._finder = finder
        self._dependencies = Dependencies(finder)
        self._message = message
        self._room = QueueRoom(parts.counts)

    async def submit_job(self, request: job_pb2.SubmitJobRequest) -> job_pb2.Job:
        """Accept one job durably."""
        visit = self.visit(request.project)
        if request.validate_only:
            return job_to_proto(await self.drafted(request.spec, visit), request.spec)
        key = request_key(request.project, "SubmitJob", request.request_id, request)
        return await self.submit(request.spec, visit, Origin(), key)

    async def drafted(self, spec: job_pb2.JobSpec, visit: Visit) -> Job:
        """The job that a submit would make, which is not stored; without a name.

        Fills the spec's defaults in. Raises what SubmitJob refuses with.
        """
        submission = await self._admitted(spec, visit, Origin(), None)
        self._room.give_back(_queue_of(submission))
        return submission.job

    async def submit(
        self, spec: job_pb2.JobSpec, visit: Visit, origin: Origin, key: RequestKey | None
    ) -> job_pb2.Job:
        """Store a job of a spec that keeps the contract's rules; as it is then.

        A repeated request gives what it made before. Raises what SubmitJob refuses with.
        """
        try:
            submission = await self._admitted(spec, visit, origin, key)
        except HatobaError:
            known = await self._made_before(key)
            if known is None:
                raise
            mark_deduplicated()
            return await self._message(known)
        try:
            return await self._store_one(submission, spec)
        finally:
            self._room.give_back(_queue_of(submission))

    async def submit_for(self, spec: job_pb2.JobSpec, caller: Caller, key: RequestKey) -> Job:
        """Submit a job for the server's own purposes, on somebody's behalf; once for each key.

        Raises what SubmitJob refuses with.
        """
        now = Now(round(self._parts.clock.time() * 1e6), caller.principal or "system")
        visit = Visit(caller, self._parts.grounds(), now)
        submission = await self._admitted(spec, visit, Origin(), key)
        try:
            self._parts.specs.put(submission.job.uid, submission.spec)
            result = (await self._ledger.submit([submission]))[0]
        finally:
            self._room.give_back(_queue_of(submission))
        if isinstance(result, Submitted):
            return result.job
        self._parts.specs.drop(submission.job.uid)
        if isinstance(result, Mismatch):
            raise mismatch(key.request_id, result)
        return await self._finder.by_uid(result.resource)

    async def _made_before(self, key: RequestKey | None) -> Job | None:
        """What a request made that would be refused now: what it needed may be gone since."""
        met = await self._store.recall_request(key) if key else None
        return await self._finder.by_uid(met.resource) if isinstance(met, Duplicate) else None

    async def _store_one(self, submission: Submission, spec: job_pb2.JobSpec) -> job_pb2.Job:
        self._parts.specs.put(submission.job.uid, submission.spec)
        result = (await self._ledger.submit([submission]))[0]
        if isinstance(result, Submitted):
            return job_to_proto(result.job, spec)
        self._parts.specs.drop(submission.job.uid)
        if isinstance(result, Mismatch):
            assert submission.request is not None
            raise mismatch(submission.request.request_id, result)
        mark_deduplicated()
        return await self._message(await self._finder.by_uid(result.resource))

    def visit(self, project: str) -> Visit:
        """Who calls, in this project, now."""
        project = project or DEFAULT_PROJECT
        call = current_call()
        caller = Caller(call.principal, project, call.trace)
        now = Now(round(self._parts.clock.time() * 1e6), call.principal or "system")
        return Visit(caller, self._parts.grounds(), now)

    async def _admitted(
        self, spec: job_pb2.JobSpec, visit: Visit, origin: Origin, key: RequestKey | None
    ) -> Submission:
        """The rows of a good job. It holds a place in its queue, which must be given back."""
        found = problems(spec, visit.caller.project, visit.grounds)
        if found:
            raise InvalidArgument.of(found)
        backends, found = await willing_backends(spec, visit.grounds)
        if found:
            raise InvalidArgument.of(found)
        if len(backends) > 1:
            origin = replace(origin, backends=backends)
        spec.backend = backends[0]
        if spec.inputs or spec.HasField("code") or spec.code_version:
            await self._check_manifests(spec, visit.caller.project)
        if waits(spec):
            upstreams = await self._dependencies.resolve(spec, visit.caller.project)
            origin = replace(origin, upstreams=upstreams)
        queues = visit.grounds.queues
        self._room.take(queues.get(visit.caller.project, spec.queue or DEFAULT_QUEUE))
        return self._parts.maker.submission(spec, visit.caller, origin, visit.now, key)

    async def _check_manifests(self, spec: job_pb2.JobSpec, project: str) -> None:
        named = [("spec.code", spec.code)] if spec.HasField("code") else []
        named += [
            (f"spec.inputs[{position}].manifest", one.manifest)
            for position, one in enumerate(spec.inputs)
            if not one.source and one.manifest.digest
        ]
        for path, ref in named:
            try:
                ref.CopyFrom(await self._parts.manifest(ref.digest))
            except NotFound as error:
                raise InvalidArgument.field(
                    path,
                    "names a manifest that is not stored",
                    value=ref.digest,
                    remedy="upload it with ArtifactService first",
                    rule="manifest.unknown",
                ) from error
        found = await self._parts.sources.resolve(spec, project)
        if found:
            raise InvalidArgument.of(found)

    async def submit_jobs(self, request: job_pb2.SubmitJobsRequest) -> job_pb2.SubmitJobsResponse:
        """Accept many jobs; each item succeeds or fails on its own."""
        results = [job_pb2.SubmitJobsResult() for _ in request.items]
        visit = self.visit(request.project)
        admitted: list[tuple[Submission, job_pb2.SubmitJobsResult]] = []
        try:
            for item, result in zip(request.items, results, strict=True):
                submission = await self._item(item, visit, result)
                if submission is not None:
                    admitted.append((submission, result))
            if admitted:
                await self._store_all(admitted)
        finally:
            for submission, _ in admitted:
                self._room.give_back(_queue_of(submission))
        return job_pb2.SubmitJobsResponse(results=results)

    async def _item(
        self, item: job_pb2.SubmitJobsItem, visit: Visit, result: job_pb2.SubmitJobsResult
    ) -> Submission | None:
        """One item to be stored; None when its result is known already."""
        try:
            found = violations(item.spec, "spec")
            if found:
                raise InvalidArgument.of(found)
            _check_request_id(item.request_id)
        except HatobaError as error:
            _put_error(result, error)
            return None
        key = request_key(visit.caller.project, "SubmitJobs", item.request_id, item)
        try:
            return await self._admitted(item.spec, visit, Origin(), key)
        except HatobaError as error:
            known = await self._made_before(key)
            if known is None:
                _put_error(result, error)
            else:
                _put_duplicate(result, known)
        return None

    async def _store_all(
        self, admitted: Sequence[tuple[Submission, job_pb2.SubmitJobsResult]]
    ) -> None:
        submissions = [submission for submission, _ in admitted]
        for submission in submissions:
            self._parts.specs.put(submission.job.uid, submission.spec)
        met = await self._ledger.submit(submissions)
        for (submission, result), outcome in zip(admitted, met, strict=True):
            if isinstance(outcome, Submitted):
                result.name = job_name(outcome.job.project, outcome.job.name)
                result.uid = outcome.job.uid
                continue
            self._parts.specs.drop(submission.job.uid)
            if isinstance(outcome, Duplicate):
                _put_duplicate(result, await self._finder.by_uid(outcome.resource))
            elif submission.request is not None:
                _put_error(result, mismatch(submission.request.request_id, outcome))


def _queue_of(submission: Submission) -> QueueKey:
    return (submission.job.project, submission.job.queue)


def _put_error(result: job_pb2.SubmitJobsResult, error: HatobaError) -> None:
    result.code, result.message = error.grpc_code, error.message


def _put_duplicate(result: job_pb2.SubmitJobsResult, job: Job) -> None:
    result.name, result.uid = job_name(job.project, job.name), job.uid
    result.deduplicated = True


def _check_request_id(request_id: str) -> None:
    if request_id and not REQUEST_ID.fullmatch(request_id):
        raise InvalidArgument.field(
            "request_id",
            "must be 1 to 128 printable ASCII characters without spaces",
            value=request_id,
            remedy="send a UUID",
        )
