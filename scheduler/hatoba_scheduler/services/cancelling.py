"""CancelJobs: durable wishes, in bounded steps, each with what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.ledger import Decide
from hatoba_scheduler.convert import state_to_proto
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.filters import Term
from hatoba_scheduler.domain.naming import job_name
from hatoba_scheduler.domain.ranges import Ranges, read_ranges
from hatoba_scheduler.domain.records import Cause, Job
from hatoba_scheduler.domain.states import Desired
from hatoba_scheduler.domain.transitions import Now, Rows, cancel, cancel_tasks
from hatoba_scheduler.domain.waiting import still_there
from hatoba_scheduler.errors import FailedPrecondition, InvalidArgument
from hatoba_scheduler.services.finding import JobFinder
from hatoba_scheduler.services.job_parts import JobParts
from hatoba_scheduler.services.reading import job_query
from hatoba_scheduler.services.requests import made_before, remember, request_key, seen_before
from hatoba_scheduler.store.base import RequestKey

MOST = 1000
"""Jobs that one call ends."""
STEP = 250
"""Jobs that are asked for at once: others' changes come between."""
MORE = "+"


class _Wanted(NamedTuple):
    """Jobs to end; `more`: others match that this call does not end."""

    jobs: Sequence[Job]
    more: bool = False

    @property
    def text(self) -> str:
        """As it is kept with the request."""
        return ",".join(job.uid for job in self.jobs) + MORE * self.more


class Canceller:
    """Ends jobs, or tasks of one."""

    def __init__(self, parts: JobParts, finder: JobFinder) -> None:
        self._store = parts.store
        self._ledger = parts.ledger
        self._grounds = parts.grounds
        self._finder = finder

    async def cancel(
        self, request: job_pb2.CancelJobsRequest, now: Now
    ) -> job_pb2.CancelJobsResponse:
        """Want jobs ended."""
        key = request_key(request.project, "CancelJobs", request.request_id, request)
        before = await seen_before(self._store, key)
        wanted = await self._wanted(request, before)
        if before is None and not request.jobs:
            wanted = await self._kept(wanted, key)
        cause = causes.cancelled(now.actor, request.reason)
        if request.indices:
            results = [await self._cancel_tasks(_only(request, wanted.jobs), request, cause, now)]
        else:
            results = await self._cancel_all(wanted.jobs, lambda rows: cancel(rows, cause, now))
        if request.jobs:
            await remember(self._store, key, "")
        return job_pb2.CancelJobsResponse(results=results, more=wanted.more)

    async def _wanted(self, request: job_pb2.CancelJobsRequest, before: str | None) -> _Wanted:
        """Those that are named, or as many of those that match as one call ends.

        Of a repeated request, of which `before` was kept, those that matched the first time.
        """
        if request.jobs:
            _check_alone("filter", request.filter)
            _check_alone("queue", request.queue)
            return _Wanted([await self._finder.find(name) for name in request.jobs])
        if before is not None:
            return await self._matched(before)
        found = await self._matching(request)
        return _Wanted(found[:MOST], more=len(found) > MOST)

    async def _kept(self, wanted: _Wanted, key: RequestKey | None) -> _Wanted:
        """Those that match, kept with the request before one is ended: after a crash a repeat
        ends them, and nothing newer."""
        met = await self._store.remember_request(key, wanted.text) if key else None
        return wanted if met is None else await self._matched(made_before(met, key))

    async def _matched(self, text: str) -> _Wanted:
        uids = [uid for uid in text.removesuffix(MORE).split(",") if uid]
        found = await self._store.jobs_by_uid(uids)
        return _Wanted([found[uid] for uid in uids], text.endswith(MORE))

    async def _matching(self, request: job_pb2.CancelJobsRequest) -> list[Job]:
        """One more than a call ends."""
        if not (request.filter or request.queue):
            raise InvalidArgument.field("jobs", "name at least one job, a filter or a queue")
        if request.indices:
            raise InvalidArgument.field(
                "indices",
                "are of exactly one job",
                value=request.indices,
                remedy="name that job in `jobs`",
            )
        query = job_query(request.project, request.filter)
        terms = (*query.terms, Term("active", "=", 1), Term("desired", "=", int(Desired.RUN)))
        if request.queue:
            self._grounds().queues.get(query.project, request.queue)
            terms = (*terms, Term("queue", "=", request.queue))
        return await self._store.list_jobs(query._replace(terms=terms), "", MOST + 1)

    async def _cancel_all(self, jobs: Sequence[Job], decide: Decide) -> list[job_pb2.CancelResult]:
        results: list[job_pb2.CancelResult] = []
        for start in range(0, len(jobs), STEP):
            results += await self._step(jobs[start : start + STEP], decide)
        return results

    async def _cancel_tasks(
        self, job: Job, request: job_pb2.CancelJobsRequest, cause: Cause, now: Now
    ) -> job_pb2.CancelResult:
        """End these tasks of an array; the outcome is theirs, the state the job's."""
        indices = _indices(request.indices, job)
        change = await self._ledger.ask(
            job.uid, lambda rows: cancel_tasks(rows, indices, cause, now)
        )
        rows = self._ledger.rows(job.uid)
        left = {i: task for i, task in rows.tasks.items() if i in indices} if rows else {}
        after = rows.job if rows else (await self._finder.by_uid(job.uid))
        result = _named(after)
        if rows and any(not task.state.terminal for task in left.values()):
            attempts = {i: rows.attempts[i] for i in left if i in rows.attempts}
            result.outcome = job_pb2.CANCEL_OUTCOME_CANCELLING
            result.why = still_there(Rows(after, left, attempts))
        else:
            result.outcome = _over(change is not None)
        return result

    async def _step(self, jobs: Sequence[Job], decide: Decide) -> list[job_pb2.CancelResult]:
        """Ask for some; a job that was over before is not asked for."""
        changes = await asyncio.gather(
            *(self._ledger.ask(job.uid, decide) for job in jobs if not job.state.terminal)
        )
        changed = {change.job.uid: change.job for change in changes if change is not None}
        rest = [job.uid for job in jobs if job.uid not in changed]
        after = changed | (dict(await self._store.jobs_by_uid(rest)) if rest else {})
        return [self._result(after.get(job.uid, job), job.uid in changed) for job in jobs]

    def _result(self, job: Job, changed: bool) -> job_pb2.CancelResult:
        """What a cancel did to a job, which is given as it is after it."""
        result = _named(job)
        if job.state.terminal:
            result.outcome = _over(changed)
            return result
        result.outcome = job_pb2.CANCEL_OUTCOME_CANCELLING
        rows = self._ledger.rows(job.uid)
        result.why = still_there(rows or Rows(job, {}, {}))
        return result


def _named(job: Job) -> job_pb2.CancelResult:
    return job_pb2.CancelResult(
        job=job_name(job.project, job.name), state=state_to_proto(job.state)
    )


def _over(changed: bool) -> job_pb2.CancelOutcome.ValueType:
    """It is over: by this cancel, or it was before."""
    if changed:
        return job_pb2.CANCEL_OUTCOME_CANCELLED
    return job_pb2.CANCEL_OUTCOME_ALREADY_TERMINAL


def _check_alone(field: str, value: str) -> None:
    if value:
        raise InvalidArgument.field(
            field,
            "cannot be given together with `jobs`",
            value=value,
            remedy="name jobs, or say which by filter and queue",
        )


def _only(request: job_pb2.CancelJobsRequest, jobs: Sequence[Job]) -> Job:
    if len(jobs) != 1:
        raise InvalidArgument.field(
            "indices", "are of exactly one job", value=request.indices, remedy="name one job"
        )
    return jobs[0]


def _indices(text: str, job: Job) -> Ranges:
    """The tasks to end, of an array."""
    if job.terms.gang:
        raise FailedPrecondition(
            f"{job.name} is a gang of {job.size} and is ended as a whole; leave indices out"
        )
    if job.size == 1:
        raise FailedPrecondition(f"{job.name} is no array; leave indices out")
    try:
        return read_ranges(text, job.size)
    except ValueError as error:
        raise InvalidArgument.field("indices", str(error), value=text) from error
