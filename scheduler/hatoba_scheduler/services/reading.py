"""GetJob, ListJobs, CountJobs, ListTasks, ListAttempts."""

from __future__ import annotations

from collections.abc import Mapping

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.inherited import tasks_of
from hatoba_scheduler.convert import (
    attempt_to_proto,
    task_to_proto,
    unstarted_to_proto,
)
from hatoba_scheduler.domain.filters import FilterError, parse_filter
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT
from hatoba_scheduler.domain.records import Job, Task
from hatoba_scheduler.errors import InvalidArgument, Reason
from hatoba_scheduler.services.finding import JobFinder
from hatoba_scheduler.services.job_messages import JobMessages
from hatoba_scheduler.services.job_parts import JobParts
from hatoba_scheduler.services.paging import page_size
from hatoba_scheduler.store.base import JobQuery


def job_query(project: str, text: str) -> JobQuery:
    """A filter of jobs as the store is asked. Raises InvalidArgument."""
    try:
        return JobQuery(project or DEFAULT_PROJECT, parse_filter(text))
    except FilterError as error:
        raise InvalidArgument(f"filter: {error}", reason=Reason.INVALID_FILTER) from error


class JobReader:
    """What is asked of jobs, tasks and attempts."""

    def __init__(self, parts: JobParts, finder: JobFinder, messages: JobMessages) -> None:
        self._store = parts.store
        self._counts = parts.counts
        self._pager = parts.pager
        self._desk = parts.desk
        self._finder = finder
        self._messages = messages

    async def list_jobs(self, request: job_pb2.ListJobsRequest) -> job_pb2.ListJobsResponse:
        """Jobs, newest first."""
        query = job_query(request.project, request.filter)
        scope = f"jobs:{query!r}"
        after = self._pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        found = await self._store.list_jobs(query, after, size + 1)
        jobs = found[:size]
        reply = job_pb2.ListJobsResponse(jobs=await self._messages.all(jobs))
        if len(found) > size:
            reply.next_page_token = self._pager.token(scope, jobs[-1].uid)
        return reply

    async def count_jobs(self, request: job_pb2.CountJobsRequest) -> job_pb2.CountJobsResponse:
        """Jobs per state."""
        query = job_query(request.project, request.filter)
        counts = self._counts.answer(query)
        if counts is None:
            counts = await self._store.count_jobs(query)
        return job_pb2.CountJobsResponse(
            by_state={state.name: count for state, count in counts.items() if count},
            total=sum(counts.values()),
        )

    async def list_tasks(self, request: job_pb2.ListTasksRequest) -> job_pb2.ListTasksResponse:
        """The tasks of a job, by index."""
        job = await self._finder.find(request.job)
        scope = f"tasks:{job.uid}"
        after = int(self._pager.position(scope, request.page_token) or -1)
        size = page_size(request.page_size)
        indices = range(after + 1, min(job.size, after + 1 + size))
        told = await self._told(job, indices)
        tasks = [told.get(index) or unstarted_to_proto(job, index) for index in indices]
        reply = job_pb2.ListTasksResponse(tasks=tasks)
        if after + 1 + size < job.size:
            reply.next_page_token = self._pager.token(scope, str(after + size))
        return reply

    async def _told(self, job: Job, indices: range) -> Mapping[int, job_pb2.Task]:
        """What is stored of tasks, also of those that were taken over."""
        if not indices:
            return {}
        found = await tasks_of(self._store, job, indices.start - 1, len(indices))
        return {task.index: self._task(owner, task) for owner, task in found}

    def _task(self, job: Job, task: Task) -> job_pb2.Task:
        return task_to_proto(job, task, self._desk.progress(job.uid, task.index))

    async def list_attempts(
        self, request: job_pb2.ListAttemptsRequest
    ) -> job_pb2.ListAttemptsResponse:
        """The attempts of a job or task."""
        job = await self._finder.find(request.job)
        index = request.index if request.HasField("index") else None
        scope = f"attempts:{job.uid}:{index}"
        place = self._pager.position(scope, request.page_token) or "-1,0"
        task, _, number = place.partition(",")
        size = page_size(request.page_size)
        found = await self._store.attempts(job.uid, index, (int(task), int(number)), size + 1)
        reply = job_pb2.ListAttemptsResponse(
            attempts=[attempt_to_proto(job, attempt) for attempt in found[:size]]
        )
        if len(found) > size:
            last = found[size - 1]
            reply.next_page_token = self._pager.token(scope, f"{last.index},{last.number}")
        return reply
