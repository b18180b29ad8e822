"""Takes new jobs in: checks them, makes their rows, stores them, answers."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.admission import Grounds, problems, willing_backends
from hatoba_scheduler.control.device_targets import aim
from hatoba_scheduler.control.ledger import SubmitResult
from hatoba_scheduler.control.recent import Recent
from hatoba_scheduler.control.room import QueueRoom
from hatoba_scheduler.control.submit import Caller, Origin
from hatoba_scheduler.convert import etag, job_to_proto, set_time
from hatoba_scheduler.domain.naming import (
    DEFAULT_PROJECT,
    job_name,
)
from hatoba_scheduler.domain.records import PLAIN, Job, Queue
from hatoba_scheduler.domain.states import JobState
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
from hatoba_scheduler.services.labels import check_labels, reserved_labels
from hatoba_scheduler.services.requests import mark_deduplicated, mismatch, request_key
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey, Submission, Submitted
from hatoba_scheduler.validation import violations

REQUEST_ID = re.compile(r"[!-~]{1,128}")
STORED_AT_ONCE = 250
"""Items of a batch that are one write."""
SLICE = 100
"""Items of a batch between two turns that others get."""
RECENT_SECONDS = 0.5
RECENT_BYTES = 4_096
_ALONE = Origin()


@dataclass(frozen=True, slots=True)
class Visit:
    """One submitting call: who, on what grounds, when."""

    caller: Caller
    grounds: Grounds
    now: Now


class Good(NamedTuple):
    """A specification that was found good, and what all jobs of it have in common."""

    pattern: Submission
    """As a submit of it would be stored; with a uid that no job has."""
    message: job_pb2.Job
    """What callers see of such a job."""


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
        self._recent = Recent[Hashable, Good](parts.clock, RECENT_SECONDS)

    def visit(self, project: str) -> Visit:
        """Who calls, in this project, now."""
        project = project or DEFAULT_PROJECT
        call = current_call()
        caller = Caller(call.principal, project, call.trace)
        now = Now(round(self._parts.clock.time() * 1e6), call.principal or "system")
        return Visit(caller, self._parts.grounds(), now)

    # -- one ------------------------------------------------------------------------------------

    async def submit_job(self, request: job_pb2.SubmitJobRequest) -> job_pb2.Job:
        """Accept one job durably."""
        check_labels(request.spec)
        visit = self.visit(request.project)
        if request.validate_only:
            return job_to_proto(await self.drafted(request.spec, visit), request.spec)
        key = request_key(request.project, "SubmitJob", request.request_id, request)
        return await self.submit(request.spec, visit, Origin(), key)

    async def drafted(self, spec: job_pb2.JobSpec, visit: Visit) -> Job:
        """The job that a submit would make, which is not stored; without a name.

        Fills the spec's defaults in. Raises what SubmitJob refuses with.
        """
        pattern = await self._checked(spec, visit, Origin())
        self._room.give_back(self._room.take(self._queue_of(pattern, visit)))
        return pattern.job

    async def submit(
        self, spec: job_pb2.JobSpec, visit: Visit, origin: Origin, key: RequestKey | None
    ) -> job_pb2.Job:
        """Store a job of a spec that keeps the contract's rules; as it is then.

        A repeated request gives what it made before. Raises what SubmitJob refuses with.
        """
        try:
            good = await self._good(spec, visit, origin)
            place = self._room.take(self._queue_of(good.pattern, visit))
        except HatobaError:
            known = await self._made_before(key)
            if known is None:
                raise
            mark_deduplicated()
            return await self._message(known)
        try:
            result = await self._store_one(good.pattern, visit, key)
        finally:
            self._room.give_back(place)
        if isinstance(result, Submitted):
            return _like(good.message, result.job)
        mark_deduplicated()
        return await self._message(await self._finder.by_uid(result.resource))

    async def submit_for(self, spec: job_pb2.JobSpec, caller: Caller, key: RequestKey) -> Job:
        """Submit a job for the server's own purposes, on somebody's behalf; once for each key.

        Raises what SubmitJob refuses with.
        """
        now = Now(round(self._parts.clock.time() * 1e6), caller.principal or "system")
        visit = Visit(caller, self._parts.grounds(), now)
        pattern = await self._checked(spec, visit, Origin())
        place = self._room.take(self._queue_of(pattern, visit))
        try:
            result = await self._store_one(pattern, visit, key)
        finally:
            self._room.give_back(place)
        if isinstance(result, Submitted):
            return result.job
        return await self._finder.by_uid(result.resource)

    async def _made_before(self, key: RequestKey | None) -> Job | None:
        """What a request made that would be refused now: what it needed may be gone since."""
        met = await self._store.recall_request(key) if key else None
        return await self._finder.by_uid(met.resource) if isinstance(met, Duplicate) else None

    async def _store_one(
        self, pattern: Submission, visit: Visit, key: RequestKey | None
    ) -> Submitted | Duplicate:
        submission = self._parts.maker.like(pattern, visit.caller, visit.now, key)
        self._parts.specs.put(submission.job.uid, submission.spec)
        result = (await self._ledger.submit([submission]))[0]
        if isinstance(result, Submitted):
            return result
        self._parts.specs.drop(submission.job.uid)
        if isinstance(result, Mismatch):
            assert key is not None
            raise mismatch(key.request_id, result)
        return result

    # -- checks ---------------------------------------------------------------------------------

    async def _good(self, spec: job_pb2.JobSpec, visit: Visit, origin: Origin) -> Good:
        """What is made of a spec; equal ones that come within a moment are checked once."""
        if origin != _ALONE or not _lasting(spec):
            pattern = await self._checked(spec, visit, origin)
            return Good(pattern, self._shown(pattern.job, spec))
        text, grounds = spec.SerializeToString(), visit.grounds
        key = (text, visit.caller[:2], grounds.secrets, grounds.choice)
        good = self._recent.get(key)
        if good is None:
            pattern = await self._checked(spec, visit, origin)
            good = Good(pattern, self._shown(pattern.job, spec))
            if len(text) <= RECENT_BYTES:
                self._recent.put(key, good)
        return good

    def _shown(self, job: Job, spec: job_pb2.JobSpec) -> job_pb2.Job:
        """What callers see of a new job, which says when nothing known could ever hold it."""
        message = job_to_proto(job, spec)
        if job.state is JobState.QUEUED and (job.resources.stated or job.terms is not PLAIN):
            message.waiting_reason = self._parts.dispatcher.never_fits(job)
        return message

    async def _checked(self, spec: job_pb2.JobSpec, visit: Visit, origin: Origin) -> Submission:
        """The rows of a good job; fills the spec's defaults in."""
        if spec.HasField("devices") and (found := aim(spec, visit.grounds.devices)):
            raise InvalidArgument.of(found)
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
        return self._parts.maker.submission(spec, visit.caller, origin, visit.now, None)

    def _queue_of(self, pattern: Submission, visit: Visit) -> Queue:
        return visit.grounds.queues.get(pattern.job.project, pattern.job.queue)

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

    # -- many -----------------------------------------------------------------------------------

    async def submit_jobs(self, request: job_pb2.SubmitJobsRequest) -> job_pb2.SubmitJobsResponse:
        """Accept many jobs; each item succeeds or fails on its own."""
        visit = self.visit(request.project)
        results: list[_Result] = []
        judged: dict[bytes, _Judged | HatobaError] = {}
        try:
            for item in request.items:
                results.append(await self._item(item, visit, judged))
                if len(results) % SLICE == 0:
                    await asyncio.sleep(0)
            outcomes = await self._store_all([r for r in results if isinstance(r, Submission)])
        finally:
            self._give_back(results)
        return await self._answered(results, iter(outcomes))

    def _give_back(self, results: Sequence[_Result]) -> None:
        places = Counter(
            [(r.job.project, r.job.queue) for r in results if isinstance(r, Submission)]
        )
        for key, count in places.items():
            self._room.give_back(key, count)

    async def _item(
        self,
        item: job_pb2.SubmitJobsItem,
        visit: Visit,
        judged: dict[bytes, _Judged | HatobaError],
    ) -> _Result:
        """One item to be stored, or its result where that is known already.

        `judged` has what was found of the specs that came before, by their text.
        """
        request_id = item.request_id
        if request_id and not REQUEST_ID.fullmatch(request_id):
            return _bad_request_id(request_id)
        text = item.spec.SerializeToString()
        key = request_key(visit.caller.project, "SubmitJobs", request_id, item)
        found = judged.get(text)
        if found is None:
            found = judged[text] = await self._judge(item.spec, visit)
        if isinstance(found, _Judged):
            try:
                self._room.take(found.queue)
                return self._parts.maker.another(found.pattern, key)
            except HatobaError as refused:
                found = refused
        return await self._made_before(key) or found

    async def _judge(self, spec: job_pb2.JobSpec, visit: Visit) -> _Judged | HatobaError:
        bad = [*violations(spec, "spec"), *reserved_labels(spec.labels, "spec.labels")]
        if bad:
            return InvalidArgument.of(bad)
        try:
            pattern = await self._checked(spec, visit, Origin())
        except HatobaError as error:
            return error
        return _Judged(pattern, self._queue_of(pattern, visit))

    async def _store_all(
        self, submissions: Sequence[Submission]
    ) -> Sequence[SubmitResult | HatobaError]:
        """Store jobs some at a time, so that no other caller waits for a whole batch.

        Raises what storing the first of them was refused with: then none is stored.
        """
        outcomes: list[SubmitResult | HatobaError] = []
        for start in range(0, len(submissions), STORED_AT_ONCE):
            some = submissions[start : start + STORED_AT_ONCE]
            for submission in some:
                self._parts.specs.put(submission.job.uid, submission.spec)
            try:
                outcomes += await self._ledger.submit(some)
            except HatobaError as error:
                if not start:
                    raise
                outcomes += [error] * len(some)
        return outcomes

    async def _answered(
        self, results: Sequence[_Result], outcomes: Iterator[SubmitResult | HatobaError]
    ) -> job_pb2.SubmitJobsResponse:
        response = job_pb2.SubmitJobsResponse()
        for place, result in enumerate(results):
            if isinstance(result, Submission):
                outcome = next(outcomes)
                if isinstance(outcome, Submitted):
                    _add_job(response, outcome.job)
                else:
                    await self._put_unstored(result, outcome, response)
            elif isinstance(result, Job):
                _add_duplicate(response, result)
            else:
                _add_error(response, result)
            if place % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        return response

    async def _put_unstored(
        self,
        submission: Submission,
        outcome: Duplicate | Mismatch | HatobaError,
        response: job_pb2.SubmitJobsResponse,
    ) -> None:
        self._parts.specs.drop(submission.job.uid)
        if isinstance(outcome, Duplicate):
            _add_duplicate(response, await self._finder.by_uid(outcome.resource))
        elif isinstance(outcome, HatobaError):
            _add_error(response, outcome)
        elif submission.request is not None:
            _add_error(response, mismatch(submission.request.request_id, outcome))


class _Judged(NamedTuple):
    """What a good spec of a batch makes: jobs like this one, in this queue."""

    pattern: Submission
    queue: Queue


_Result = Submission | Job | HatobaError
"""Of an item: to be stored; made before; refused."""


def _lasting(spec: job_pb2.JobSpec) -> bool:
    """Whether it names nothing that is looked up anew at each submit, and no moment to come."""
    if spec.HasField("deadline") or spec.HasField("devices"):
        return False
    return not (spec.inputs or spec.HasField("code") or spec.code_version or waits(spec))


def _like(message: job_pb2.Job, job: Job) -> job_pb2.Job:
    """The message of a new job, from that of its pattern."""
    out = job_pb2.Job()
    out.CopyFrom(message)
    out.name, out.uid, out.etag = job_name(job.project, job.name), job.uid, etag(job)
    out.trace_id = job.trace_id
    set_time(out.create_time, job.create_time)
    return out


def _add_job(response: job_pb2.SubmitJobsResponse, job: Job) -> None:
    result = response.results.add()
    result.name = job_name(job.project, job.name)
    result.uid = job.uid


def _add_error(response: job_pb2.SubmitJobsResponse, error: HatobaError) -> None:
    response.results.add(code=error.grpc_code, message=error.message)


def _add_duplicate(response: job_pb2.SubmitJobsResponse, job: Job) -> None:
    _add_job(response, job)
    response.results[-1].deduplicated = True


def _bad_request_id(request_id: str) -> InvalidArgument:
    return InvalidArgument.field(
        "request_id",
        "must be 1 to 128 printable ASCII characters without spaces",
        value=request_id,
        remedy="send a UUID",
    )
