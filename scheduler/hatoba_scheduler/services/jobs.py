"""JobService: submits, follows and ends jobs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from hatoba.v1 import common_pb2, job_pb2, job_pb2_grpc
from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.admission import Grounds, problems
from hatoba_scheduler.control.dispatch import Dispatcher
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.logs import STREAMS, LogStore
from hatoba_scheduler.control.room import QueueRoom
from hatoba_scheduler.control.runners import RunnerDesk
from hatoba_scheduler.control.sources import Sources
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.control.submit import Caller, JobMaker, Origin
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
    DEFAULT_QUEUE,
    JobRef,
    job_name,
    parse_job,
)
from hatoba_scheduler.domain.planner import QueueKey
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
    FieldViolation,
    HatobaError,
    InvalidArgument,
    NotFound,
    Reason,
    Resource,
    shown,
)
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.metrics_query import query_metrics
from hatoba_scheduler.services.paging import Pager, page_size
from hatoba_scheduler.services.requests import (
    mark_deduplicated,
    mismatch,
    remember,
    request_key,
    seen_before,
)
from hatoba_scheduler.services.tail import LogTail
from hatoba_scheduler.services.watch import Watcher
from hatoba_scheduler.store.base import (
    Duplicate,
    JobQuery,
    Mismatch,
    RequestKey,
    Store,
    Submission,
    Submitted,
)
from hatoba_scheduler.telemetry.trace_store import TraceStore
from hatoba_scheduler.validation import violations

Context = grpc.aio.ServicerContext[Any, Any]
MASKABLE = ("priority", "queue", "hold")
REQUEST_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class JobParts:
    """What the job service stands on."""

    store: Store
    ledger: Ledger
    specs: SpecCache
    maker: JobMaker
    events: EventLog
    dispatcher: Dispatcher
    desk: RunnerDesk
    logs: LogStore
    traces: TraceStore
    pager: Pager
    clock: Clock
    grounds: Callable[[], Grounds]
    manifest: Callable[[str], Awaitable[common_pb2.ManifestRef]]
    """The stored manifest of a digest. Raises NotFound."""
    sources: Sources
    stopping: asyncio.Event
    """Set when the server begins to stop: streams end."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One submitting call: who, on what grounds, when."""

    caller: Caller
    grounds: Grounds
    now: Now


class JobServicer(job_pb2_grpc.JobServiceServicer):
    """See proto/hatoba/v1/job.proto."""

    def __init__(self, parts: JobParts) -> None:
        self._parts = parts
        self._store = parts.store
        self._ledger = parts.ledger
        self._room = QueueRoom(parts.ledger)

    def _now(self) -> Now:
        return Now(round(self._parts.clock.time() * 1e6), current_call().principal or "system")

    # -- submit ---------------------------------------------------------------------------------

    async def SubmitJob(self, request: job_pb2.SubmitJobRequest, context: Context) -> job_pb2.Job:
        """Accept one job durably."""
        visit = self._visit(request.project)
        if request.validate_only:
            submission = await self._admitted(request.spec, visit, Origin(), None)
            self._room.give_back(_queue_of(submission))
            return job_to_proto(submission.job, request.spec)
        key = request_key(request.project, "SubmitJob", request.request_id, request)
        return await self._submit(request.spec, visit, Origin(), key)

    async def _submit(
        self, spec: job_pb2.JobSpec, visit: Visit, origin: Origin, key: RequestKey | None
    ) -> job_pb2.Job:
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
        return await self._by_uid(result.resource)

    async def _made_before(self, key: RequestKey | None) -> Job | None:
        """What a request made that would be refused now: what it needed may be gone since."""
        met = await self._store.recall_request(key) if key else None
        return await self._by_uid(met.resource) if isinstance(met, Duplicate) else None

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
        return await self._message(await self._by_uid(result.resource))

    def _visit(self, project: str) -> Visit:
        project = project or DEFAULT_PROJECT
        call = current_call()
        caller = Caller(call.principal, project, call.trace)
        return Visit(caller, self._parts.grounds(), self._now())

    async def _admitted(
        self, spec: job_pb2.JobSpec, visit: Visit, origin: Origin, key: RequestKey | None
    ) -> Submission:
        """The rows of a good job. It holds a place in its queue, which must be given back."""
        found = problems(spec, visit.caller.project, visit.grounds)
        if found:
            raise InvalidArgument.of(found)
        await self._check_backend(spec, visit.grounds)
        if spec.inputs or spec.HasField("code") or spec.code_version:
            await self._check_manifests(spec, visit.caller.project)
        if spec.after_ok:
            blocked_on = await self._dependencies(spec.after_ok, visit.caller.project)
            origin = Origin(blocked_on, origin.rerun_of, origin.restore)
        queues = visit.grounds.queues
        self._room.take(queues.get(visit.caller.project, spec.queue or DEFAULT_QUEUE))
        return self._parts.maker.submission(spec, visit.caller, origin, visit.now, key)

    async def _check_backend(self, spec: job_pb2.JobSpec, grounds: Grounds) -> None:
        backend = grounds.backends[spec.backend or grounds.default_backend]
        found = await backend.validate(spec)
        if found:
            raise InvalidArgument.of(
                FieldViolation(f"spec.{one.field}", one.message, "backend.refuses") for one in found
            )

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

    async def _dependencies(self, names: Sequence[str], project: str) -> tuple[str, ...]:
        """Uids of those that have not succeeded yet, in order."""
        waiting = []
        for position, name in enumerate(names):
            job = await self._dependency(name, project)
            if job is None:
                raise InvalidArgument.field(
                    f"spec.after_ok[{position}]",
                    f"names no job that there is in project {project!r}",
                    value=name,
                    remedy="a job can wait only for jobs submitted before it",
                    rule="after_ok.unknown",
                )
            if job.state.terminal and job.state is not JobState.SUCCEEDED:
                raise FailedPrecondition(
                    f"spec.after_ok[{position}]: {job.name} ended {job.state.name}, "
                    "so this job could never run; rerun that one first"
                )
            if job.state is not JobState.SUCCEEDED:
                waiting.append(job.uid)
        return tuple(dict.fromkeys(waiting))

    async def _dependency(self, name: str, project: str) -> Job | None:
        ref = parse_job(name)
        if ref is not None and not ref.uid and "/" not in name:
            ref = JobRef("", project, name)
        job = await self._lookup(ref) if ref is not None else None
        return job if job is not None and job.project == project else None

    async def SubmitJobs(
        self, request: job_pb2.SubmitJobsRequest, context: Context
    ) -> job_pb2.SubmitJobsResponse:
        """Accept many jobs; each item succeeds or fails on its own."""
        results = [job_pb2.SubmitJobsResult() for _ in request.items]
        visit = self._visit(request.project)
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
                _put_duplicate(result, await self._by_uid(outcome.resource))
            elif submission.request is not None:
                _put_error(result, mismatch(submission.request.request_id, outcome))

    async def RerunJob(self, request: job_pb2.RerunJobRequest, context: Context) -> job_pb2.Job:
        """A new job from an old one."""
        old = await self._find(request.job)
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
        return await self._submit(spec, self._visit(old.project), origin, key)

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

    async def _find(self, text: str) -> Job:
        """The job that somebody named. Raises NotFound, InvalidArgument."""
        ref = parse_job(text)
        if ref is None:
            raise InvalidArgument.field(
                "name",
                "must be projects/P/jobs/NAME-N, NAME-N or a uid",
                value=text,
                remedy="`hatoba jobs list` shows the names",
                rule="job.name",
            )
        job = await self._lookup(ref)
        if job is None:
            raise NotFound(
                f"there is no job {shown(text)}; `hatoba jobs list` shows those there are",
                resource=Resource("job", text),
            )
        return job

    async def _lookup(self, ref: JobRef) -> Job | None:
        if ref.uid:
            rows = self._ledger.rows(ref.uid)
            return rows.job if rows else await self._store.job(ref.uid)
        return await self._store.job_by_name(ref.project, ref.name)

    async def _by_uid(self, uid: str) -> Job:
        job = await self._lookup(JobRef(uid, "", ""))
        if job is None:
            raise NotFound(f"there is no job {uid}")
        return job

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
        return await self._message(await self._find(request.name))

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
        job = await self._find(request.job)
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
        job = await self._find(request.job)
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
        jobs = [await self._find(name) for name in request.jobs]
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
        job = await self._find(request.job)
        tail = LogTail(self._store, self._ledger, self._parts.logs, self._parts.stopping)
        async for response in tail.tail(job, request):
            yield response

    async def QueryMetrics(
        self, request: job_pb2.QueryMetricsRequest, context: Context
    ) -> job_pb2.QueryMetricsResponse:
        """Logged metrics as series."""
        return await query_metrics(self._store, await self._find(request.job), request)

    async def GetJobTrace(
        self, request: job_pb2.GetJobTraceRequest, context: Context
    ) -> job_pb2.GetJobTraceResponse:
        """The kept spans of a job's trace."""
        job = await self._find(request.job)
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
            return [await self._find(name) for name in request.jobs]
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
        job = await self._find(request.name)
        key = request_key(job.project, "UpdateJob", request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return await self._message(job)
        if "queue" in paths and not self._parts.grounds().queues.known(job.project, request.queue):
            self._parts.grounds().queues.get(job.project, request.queue)
        await self._update(job, request, paths)
        await remember(self._store, key, job.uid)
        return await self._message(await self._by_uid(job.uid))

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
            raise _ended(await self._by_uid(job.uid))


def _ended(job: Job) -> FailedPrecondition:
    return FailedPrecondition(
        f"{job.name} has ended {job.state.name} and cannot be changed; "
        f"`hatoba jobs rerun {job.name}` makes a new one",
        reason=Reason.WRONG_STATE,
    )


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
