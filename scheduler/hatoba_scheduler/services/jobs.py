"""JobService: submits, follows and ends jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from hatoba.v1 import job_pb2, job_pb2_grpc
from hatoba_scheduler.control.conditions import warnings_of_terms
from hatoba_scheduler.control.logs import STREAMS
from hatoba_scheduler.domain.transitions import Now
from hatoba_scheduler.errors import InvalidArgument, NotFound
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.attaching import Attacher
from hatoba_scheduler.services.cancelling import Canceller
from hatoba_scheduler.services.explaining import Explainer
from hatoba_scheduler.services.finding import JobFinder
from hatoba_scheduler.services.job_messages import JobMessages
from hatoba_scheduler.services.job_parts import JobParts
from hatoba_scheduler.services.labels import check_labels
from hatoba_scheduler.services.metrics_query import query_metrics
from hatoba_scheduler.services.reading import JobReader
from hatoba_scheduler.services.rerunning import Rerunner
from hatoba_scheduler.services.submitting import Submitter
from hatoba_scheduler.services.tail import LogTail
from hatoba_scheduler.services.updating import Updater
from hatoba_scheduler.services.watch import Watcher

Context = grpc.aio.ServicerContext[Any, Any]


class JobServicer(job_pb2_grpc.JobServiceServicer):
    """See proto/hatoba/v1/job.proto."""

    def __init__(self, parts: JobParts) -> None:
        self._parts = parts
        self._store = parts.store
        self._ledger = parts.ledger
        self._finder = JobFinder(parts.store, parts.ledger)
        self._explainer = Explainer(parts)
        self._messages = JobMessages(parts, self._explainer)
        self._reader = JobReader(parts, self._finder, self._messages)
        self._canceller = Canceller(parts, self._finder)
        self._updater = Updater(parts, self._finder)
        self._attacher = Attacher(parts, self._finder)
        self.submitter = Submitter(parts, self._finder, self._messages.one)
        self._rerunner = Rerunner(parts, self._finder, self.submitter)

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
        return await self._rerunner.rerun(request)

    async def PlanJob(
        self, request: job_pb2.PlanJobRequest, context: Context
    ) -> job_pb2.Explanation:
        """What would happen to a job if it were submitted now."""
        check_labels(request.spec)
        visit = self.submitter.visit(request.project)
        job = await self.submitter.drafted(request.spec, visit)
        return await self._explainer.plan(job, warnings_of_terms(request.spec))

    # -- read -----------------------------------------------------------------------------------

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Context) -> job_pb2.Job:
        """One job."""
        return await self._messages.one(await self._finder.find(request.name))

    async def ExplainJob(
        self, request: job_pb2.ExplainJobRequest, context: Context
    ) -> job_pb2.Explanation:
        """Why a job is where it is."""
        return await self._explainer.explain(await self._finder.find(request.name))

    async def ListJobs(
        self, request: job_pb2.ListJobsRequest, context: Context
    ) -> job_pb2.ListJobsResponse:
        """Jobs, newest first."""
        return await self._reader.list_jobs(request)

    async def CountJobs(
        self, request: job_pb2.CountJobsRequest, context: Context
    ) -> job_pb2.CountJobsResponse:
        """Jobs per state."""
        return await self._reader.count_jobs(request)

    async def ListTasks(
        self, request: job_pb2.ListTasksRequest, context: Context
    ) -> job_pb2.ListTasksResponse:
        """The tasks of a job, by index."""
        return await self._reader.list_tasks(request)

    async def ListAttempts(
        self, request: job_pb2.ListAttemptsRequest, context: Context
    ) -> job_pb2.ListAttemptsResponse:
        """The attempts of a job or task."""
        return await self._reader.list_attempts(request)

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

    async def ExecJob(
        self, request_iterator: AsyncIterator[job_pb2.ExecJobRequest], context: Context
    ) -> AsyncIterator[job_pb2.ExecJobResponse]:
        """A command beside a task's."""
        async with aclosing(self._attacher.exec(request_iterator, self._now())) as told:
            async for response in told:
                yield response

    async def ForwardJob(
        self, request_iterator: AsyncIterator[job_pb2.ForwardJobRequest], context: Context
    ) -> AsyncIterator[job_pb2.ForwardJobResponse]:
        """A connection to a task's port."""
        async with aclosing(self._attacher.forward(request_iterator, self._now())) as told:
            async for response in told:
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
        return await self._canceller.cancel(request, self._now())

    async def UpdateJob(self, request: job_pb2.UpdateJobRequest, context: Context) -> job_pb2.Job:
        """Change priority, queue or hold."""
        return await self._messages.one(await self._updater.update(request, self._now()))
