"""JobService: submits, follows and ends jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from hatoba.v1 import job_pb2, job_pb2_grpc
from hatoba_scheduler.control.logs import STREAMS
from hatoba_scheduler.control.submit import Origin
from hatoba_scheduler.convert import (
    attempt_to_proto,
    etag,
    job_to_proto,
    progress_to_proto,
    state_to_proto,
    task_to_proto,
    unstarted_to_proto,
)
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.filters import FilterError, Term, parse_filter
from hatoba_scheduler.domain.naming import (
    DEFAULT_PROJECT,
    job_name,
)
from hatoba_scheduler.domain.records import Change, Job, Task
from hatoba_scheduler.domain.states import Desired, JobState
from hatoba_scheduler.domain.transitions import (
    Now,
    Rows,
    Settings,
    cancel,
    hold,
    updated,
)
from hatoba_scheduler.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Reason,
)
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.finding import JobFinder
from hatoba_scheduler.services.job_parts import JobParts
from hatoba_scheduler.services.metrics_query import query_metrics
from hatoba_scheduler.services.paging import page_size
from hatoba_scheduler.services.requests import (
    remember,
    request_key,
    seen_before,
)
from hatoba_scheduler.services.submitting import Submitter
from hatoba_scheduler.services.tail import LogTail
from hatoba_scheduler.services.watch import Watcher
from hatoba_scheduler.store.base import (
    JobQuery,
)
from hatoba_scheduler.validation import violations

Context = grpc.aio.ServicerContext[Any, Any]
MASKABLE = ("priority", "queue", "hold")


class JobServicer(job_pb2_grpc.JobServiceServicer):
    """See proto/hatoba/v1/job.proto."""

    def __init__(self, parts: JobParts) -> None:
        self._parts = parts
        self._store = parts.store
        self._ledger = parts.ledger
        self._finder = JobFinder(parts.store, parts.ledger)
        self.submitter = Submitter(parts, self._finder, self._message)

    def _now(self) -> Now:
        return Now(round(self._parts.clock.time() * 1e6), current_call().principal or "system")

    # -- submit ---------------------------------------------------------------------------------

    async def SubmitJob(self, request: job_pb2.SubmitJobRequest, context: Context) -> job_pb2.Job:
        """Accept one job durably."""
        return await self.submitter.submit_job(request)

    async def SubmitJobs(
        self, request: job_pb2.SubmitJobsRequest, context: Context
    ) -> job_pb2.SubmitJobsResponse:
        """Accept many jobs; each item succeeds or fails on its own."""
        return await self.submitter.submit_jobs(request)

    async def RerunJob(self, request: job_pb2.RerunJobRequest, context: Context) -> job_pb2.Job:
        """A new job from an old one."""
        old = await self._finder.find(request.job)
        key = request_key(old.project, "RerunJob", request.request_id, request)
        spec = (await self._parts.specs.get([old.uid]))[old.uid]
        for name, value in request.params.items():
            spec.params[name].CopyFrom(value)
        spec.env.update(request.env)
        del spec.after_ok[:]
        spec.hold, spec.queue, spec.priority = False, old.queue, old.priority
        found = violations(spec, "spec")
        if found:
            raise InvalidArgument.of(found)
        restore = await self._newest_checkpoint(old) if request.from_checkpoint else None
        origin = Origin(rerun_of=job_name(old.project, old.name), restore=restore)
        return await self.submitter.submit(spec, self.submitter.visit(old.project), origin, key)

    async def _newest_checkpoint(self, job: Job) -> Any:
        if job.size != 1:
            raise InvalidArgument.field(
                "from_checkpoint", "is for jobs of one task", remedy="leave it out", value=True
            )
        tasks = await self._store.tasks(job.uid, -1, 1)
        if not tasks or tasks[0].checkpoint is None:
            raise FailedPrecondition(
                f"{job.name} has no checkpoint to begin from; leave from_checkpoint out"
            )
        return tasks[0].checkpoint

    # -- read -----------------------------------------------------------------------------------

    async def _message(self, job: Job) -> job_pb2.Job:
        return (await self._messages([job]))[0]

    async def _messages(self, jobs: Sequence[Job]) -> list[job_pb2.Job]:
        specs = await self._parts.specs.get([job.uid for job in jobs])
        messages = [self._dressed(job, specs.get(job.uid)) for job in jobs]
        await self._put_models(messages)
        await self._put_published(messages)
        return messages

    async def _put_published(self, messages: Sequence[job_pb2.Job]) -> None:
        """Tell what became of the outputs of those that publish them."""
        asked = {one.uid: one for one in messages if one.spec.HasField("publish")}
        settled = await self._store.publications.settled(list(asked)) if asked else {}
        for uid, found in settled.items():
            asked[uid].published, asked[uid].summary = found

    async def _put_models(self, messages: Sequence[job_pb2.Job]) -> None:
        """Name the versions that jobs made; none did before one of its tasks succeeded."""
        able = {one.name: one for one in messages if one.counts.by_state.get("SUCCEEDED")}
        made = await self._store.models.made_by(list(able)) if able else {}
        for name, versions in made.items():
            able[name].models.extend(versions)

    def _dressed(self, job: Job, spec: job_pb2.JobSpec | None) -> job_pb2.Job:
        message = job_to_proto(job, spec)
        message.waiting_reason = self._waiting_reason(job)
        if job.state is JobState.RUNNING:
            self._put_progress(job, message)
        return message

    def _put_progress(self, job: Job, message: job_pb2.Job) -> None:
        rows = self._ledger.rows(job.uid)
        for index in sorted(rows.tasks) if rows else ():
            progress = self._parts.desk.progress(job.uid, index)
            if progress is not None:
                message.progress.CopyFrom(progress_to_proto(progress))
                return

    def _waiting_reason(self, job: Job) -> str:
        if job.state is JobState.HELD:
            return f"Held by its owner; `hatoba jobs release {job.name}` lets it go."
        if job.state is JobState.BLOCKED:
            names = [
                rows.job.name
                for uid in job.blocked_on
                if (rows := self._ledger.rows(uid)) is not None
            ]
            return f"Waits for {', '.join(names) or 'jobs that just ended'} to succeed."
        if job.state is not JobState.QUEUED:
            return ""
        if job.hold:
            return f"Held before its retry; `hatoba jobs release {job.name}` lets it go."
        return self._backing_off(job) or self._parts.dispatcher.why_waiting(job)

    def _backing_off(self, job: Job) -> str:
        rows = self._ledger.rows(job.uid)
        for task in rows.tasks.values() if rows else ():
            left = task.not_before / 1e6 - self._parts.clock.time()
            if task.state is JobState.QUEUED and left > 0:
                why = task.cause.message if task.cause else ""
                return f"Attempt {task.attempt + 1} starts in {left:.0f} s. {why}".strip()
        return ""

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Context) -> job_pb2.Job:
        """One job."""
        return await self._message(await self._finder.find(request.name))

    async def ListJobs(
        self, request: job_pb2.ListJobsRequest, context: Context
    ) -> job_pb2.ListJobsResponse:
        """Jobs, newest first."""
        query = _query(request.project, request.filter)
        scope = f"jobs:{query!r}"
        after = self._parts.pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        found = await self._store.list_jobs(query, after, size + 1)
        jobs = found[:size]
        reply = job_pb2.ListJobsResponse(jobs=await self._messages(jobs))
        if len(found) > size:
            reply.next_page_token = self._parts.pager.token(scope, jobs[-1].uid)
        return reply

    async def CountJobs(
        self, request: job_pb2.CountJobsRequest, context: Context
    ) -> job_pb2.CountJobsResponse:
        """Jobs per state."""
        counts = await self._store.count_jobs(_query(request.project, request.filter))
        return job_pb2.CountJobsResponse(
            by_state={state.name: count for state, count in counts.items() if count},
            total=sum(counts.values()),
        )

    async def ListTasks(
        self, request: job_pb2.ListTasksRequest, context: Context
    ) -> job_pb2.ListTasksResponse:
        """The tasks of a job, by index."""
        job = await self._finder.find(request.job)
        scope = f"tasks:{job.uid}"
        after = int(self._parts.pager.position(scope, request.page_token) or -1)
        size = page_size(request.page_size)
        started = {t.index: t for t in await self._store.tasks(job.uid, after, size)}
        indices = range(after + 1, min(job.size, after + 1 + size))
        tasks = [self._task(job, index, started.get(index)) for index in indices]
        reply = job_pb2.ListTasksResponse(tasks=tasks)
        if after + 1 + size < job.size:
            reply.next_page_token = self._parts.pager.token(scope, str(after + size))
        return reply

    def _task(self, job: Job, index: int, task: Task | None) -> job_pb2.Task:
        if task is None:
            return unstarted_to_proto(job, index)
        return task_to_proto(job, task, self._parts.desk.progress(job.uid, index))

    async def ListAttempts(
        self, request: job_pb2.ListAttemptsRequest, context: Context
    ) -> job_pb2.ListAttemptsResponse:
        """The attempts of a job or task."""
        job = await self._finder.find(request.job)
        index = request.index if request.HasField("index") else None
        scope = f"attempts:{job.uid}:{index}"
        place = self._parts.pager.position(scope, request.page_token) or "-1,0"
        task, _, number = place.partition(",")
        size = page_size(request.page_size)
        found = await self._store.attempts(job.uid, index, (int(task), int(number)), size + 1)
        reply = job_pb2.ListAttemptsResponse(
            attempts=[attempt_to_proto(job, attempt) for attempt in found[:size]]
        )
        if len(found) > size:
            last = found[size - 1]
            reply.next_page_token = self._parts.pager.token(scope, f"{last.index},{last.number}")
        return reply

    # -- streams and series -----------------------------------------------------------------------

    async def WatchJobs(
        self, request: job_pb2.WatchJobsRequest, context: Context
    ) -> AsyncIterator[job_pb2.WatchJobsResponse]:
        """Events from a cursor on."""
        watcher = Watcher(self._parts.events, self._store, self._parts.stopping)
        jobs = [await self._finder.find(name) for name in request.jobs]
        async for response in watcher.watch(request, jobs):
            yield response

    async def TailLogs(
        self, request: job_pb2.TailLogsRequest, context: Context
    ) -> AsyncIterator[job_pb2.TailLogsResponse]:
        """What a task wrote."""
        if request.offset and request.stream not in STREAMS:
            raise InvalidArgument.field(
                "offset",
                "needs a stream to count in",
                value=request.offset,
                remedy="name the stream, or start at 0",
            )
        job = await self._finder.find(request.job)
        tail = LogTail(self._store, self._ledger, self._parts.logs, self._parts.stopping)
        async for response in tail.tail(job, request):
            yield response

    async def QueryMetrics(
        self, request: job_pb2.QueryMetricsRequest, context: Context
    ) -> job_pb2.QueryMetricsResponse:
        """Logged metrics as series."""
        return await query_metrics(self._store, await self._finder.find(request.job), request)

    async def GetJobTrace(
        self, request: job_pb2.GetJobTraceRequest, context: Context
    ) -> job_pb2.GetJobTraceResponse:
        """The kept spans of a job's trace."""
        job = await self._finder.find(request.job)
        spans = await self._parts.traces.trace(job.trace_id)
        if not spans:
            raise NotFound(f"no spans of {job.name} are kept; its trace id is {job.trace_id}")
        return job_pb2.GetJobTraceResponse(
            spans=sorted(spans, key=lambda span: (span.start_unix_nanos, -span.end_unix_nanos))
        )

    # -- change -----------------------------------------------------------------------------------

    async def CancelJobs(
        self, request: job_pb2.CancelJobsRequest, context: Context
    ) -> job_pb2.CancelJobsResponse:
        """Want jobs ended."""
        key = request_key(request.project, "CancelJobs", request.request_id, request)
        await seen_before(self._store, key)
        jobs = await self._to_cancel(request)
        now = self._now()
        cause = causes.cancelled(now.actor, request.reason)
        ended = [self._over(job) for job in jobs]
        await asyncio.gather(
            *(
                self._ledger.ask(job.uid, lambda rows: cancel(rows, cause, now))
                for job, over in zip(jobs, ended, strict=True)
                if not over
            )
        )
        after = await self._store.jobs_by_uid([job.uid for job in jobs])
        await remember(self._store, key, "")
        return job_pb2.CancelJobsResponse(
            results=[
                self._cancelled(after.get(job.uid, job), over)
                for job, over in zip(jobs, ended, strict=True)
            ]
        )

    async def _to_cancel(self, request: job_pb2.CancelJobsRequest) -> list[Job]:
        if request.jobs:
            return [await self._finder.find(name) for name in request.jobs]
        if not request.filter:
            raise InvalidArgument.field("jobs", "name at least one job, or give a filter")
        query = _query(request.project, request.filter)
        active = JobQuery(query.project, (*query.terms, Term("active", "=", 1)))
        return await self._store.list_jobs(active, "", 1000)

    def _over(self, job: Job) -> bool:
        rows = self._ledger.rows(job.uid)
        return job.state.terminal or rows is None or rows.job.state.terminal

    def _cancelled(self, job: Job, over_before: bool) -> job_pb2.CancelResult:
        """What a cancel did to a job, which is given as it is now."""
        result = job_pb2.CancelResult(
            job=job_name(job.project, job.name), state=state_to_proto(job.state)
        )
        if over_before or (job.state.terminal and job.desired is not Desired.CANCELLED):
            result.outcome = job_pb2.CANCEL_OUTCOME_ALREADY_TERMINAL
        elif job.state.terminal:
            result.outcome = job_pb2.CANCEL_OUTCOME_CANCELLED
        else:
            result.outcome = job_pb2.CANCEL_OUTCOME_CANCELLING
            result.why = self._still_stopping(job)
        return result

    def _still_stopping(self, job: Job) -> str:
        rows = self._ledger.rows(job.uid)
        for attempt in rows.attempts.values() if rows else ():
            if attempt.unknown_since:
                return f"host {attempt.host or attempt.backend!r} cannot be reached"
        count = sum(not task.state.terminal for task in rows.tasks.values()) if rows else 0
        return f"{count} running task(s) have {job.stop_grace:g} s to stop"

    async def UpdateJob(self, request: job_pb2.UpdateJobRequest, context: Context) -> job_pb2.Job:
        """Change priority, queue or hold."""
        paths = list(request.update_mask.paths)
        _check_mask(paths)
        job = await self._finder.find(request.name)
        key = request_key(job.project, "UpdateJob", request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return await self._message(job)
        if "queue" in paths and not self._parts.grounds().queues.known(job.project, request.queue):
            self._parts.grounds().queues.get(job.project, request.queue)
        await self._update(job, request, paths)
        await remember(self._store, key, job.uid)
        return await self._message(await self._finder.by_uid(job.uid))

    async def _update(
        self, job: Job, request: job_pb2.UpdateJobRequest, paths: Sequence[str]
    ) -> None:
        now = self._now()
        if self._ledger.rows(job.uid) is None:
            raise _ended(job)
        if "hold" in paths and len(paths) > 1:
            raise InvalidArgument.field(
                "update_mask", "must have `hold` alone", value=",".join(paths)
            )
        settings = Settings(
            priority=request.priority if "priority" in paths else None,
            queue=request.queue if "queue" in paths else None,
        )

        decided = False

        def decide(rows: Rows) -> Change | None:
            nonlocal decided
            decided = True
            if rows.job.state.terminal:
                raise _ended(rows.job)
            if request.etag and request.etag != etag(rows.job):
                raise Aborted(
                    f"{rows.job.name} was changed since it was read "
                    f"(etag {etag(rows.job)}, not {request.etag}); read it again and retry"
                )
            if "hold" in paths:
                return hold(rows, request.hold, now)
            return updated(rows, settings, now)

        await self._ledger.decide(job.uid, decide)
        if not decided:
            # It ended, and left memory, since it was looked up.
            raise _ended(await self._finder.by_uid(job.uid))


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


def _query(project: str, text: str) -> JobQuery:
    try:
        return JobQuery(project or DEFAULT_PROJECT, parse_filter(text))
    except FilterError as error:
        raise InvalidArgument(f"filter: {error}", reason=Reason.INVALID_FILTER) from error
