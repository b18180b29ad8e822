"""The asynchronous client: submit jobs, follow them, read what they left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from google.protobuf.message import Message

from hatoba import packing, settings
from hatoba.batch import BatchOptions, predict_batch
from hatoba.code_versions import AsyncCode
from hatoba.datasets import AsyncDatasets
from hatoba.deployments import AsyncDeployments
from hatoba.devices import AsyncDevices
from hatoba.embedded import start_embedded
from hatoba.errors import DeadlineExceeded, InvalidSpec, NotFound, Unavailable
from hatoba.following import (
    FROM_THE_OLDEST,
    TERMINAL,
    LogPiece,
    LogQuery,
    Resync,
    WatchQuery,
    read_logs,
    silent,
    watch_events,
)
from hatoba.frames import Metrics
from hatoba.hooks import AsyncWebhooks
from hatoba.models import AsyncModels
from hatoba.operations import AsyncOperations
from hatoba.options import Parcel, SubmitOptions, build_parcel, set_param
from hatoba.queues import AsyncQueues
from hatoba.schedules import AsyncSchedules
from hatoba.settings import Choice, Server
from hatoba.tracing import Tracer
from hatoba.transport import CALL_SECONDS, R, Timing, Transport
from hatoba.v1 import common_pb2, job_pb2

SUBMIT_SECONDS = 60.0
MAX_BATCH = 1000
PUBLISH_PAUSE = 0.1
"""Seconds between two looks at whether outputs became a dataset version."""


class AsyncClient:
    """A connection to one server, open inside `async with`.

    The server is looked up as the CLI does: the arguments, `HATOBA_ADDRESS`, the context in use,
    else the embedded server, which is started when it does not run. `notify` gets a line when
    something is worth telling people, for example that the server is away. Every call raises a
    HatobaError.
    """

    def __init__(
        self,
        address: str = "",
        *,
        token_file: str = "",
        context: str = "",
        ca_file: str = "",
        project: str = "",
        locate: Callable[[], Server] | None = None,
        notify: Callable[[str], None] = silent,
        tracer: Tracer | None = None,
        timing: Timing | None = None,
    ) -> None:
        choice = Choice(address, token_file, ca_file, context)
        self.notify = notify
        self.transport = Transport(
            locate or (lambda: locate_server(choice, notify)),
            # Somebody may be about to start a server that is away: only the first look starts one.
            again=locate or (lambda: settings.find_server(choice)),
            tracer=tracer,
            timing=timing,
        )
        self._project = project

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)

    @property
    def server(self) -> Server:
        """The server that is talked to."""
        return self.transport.server

    @property
    def project(self) -> str:
        """The project of calls that name none."""
        return self._project or self.server.project or settings.DEFAULT_PROJECT

    @property
    def datasets(self) -> AsyncDatasets:
        """Datasets of the project."""
        return AsyncDatasets(self)

    @property
    def deployments(self) -> AsyncDeployments:
        """Deployments of the project."""
        return AsyncDeployments(self)

    @property
    def devices(self) -> AsyncDevices:
        """Devices of the installation."""
        return AsyncDevices(self)

    @property
    def queues(self) -> AsyncQueues:
        """Queues of the project."""
        return AsyncQueues(self)

    @property
    def webhooks(self) -> AsyncWebhooks:
        """Events of the project that are posted to other systems."""
        return AsyncWebhooks(self)

    @property
    def operations(self) -> AsyncOperations:
        """What operators do with the installation."""
        return AsyncOperations(self)

    @property
    def schedules(self) -> AsyncSchedules:
        """Jobs of the project that are submitted by the clock."""
        return AsyncSchedules(self)

    @property
    def models(self) -> AsyncModels:
        """Models of the project."""
        return AsyncModels(self)

    @property
    def code(self) -> AsyncCode:
        """Code of the project, as jobs ran it."""
        return AsyncCode(self)

    async def call(self, request: Message, reply: type[R], *, timeout: float = CALL_SECONDS) -> R:
        """Make the one call that takes this kind of request; see Transport.call."""
        return await self.transport.call(request, reply, timeout=timeout)

    async def submit(
        self,
        command: Sequence[str] | str = (),
        *,
        script: str | Path = "",
        request_id: str = "",
        **options: Unpack[SubmitOptions],
    ) -> AsyncJob:
        """Submit a command, or a Python `script`, with the current directory as its code.

        When this returns, the job survives a crash of the server. With a `request_id` of your own,
        submitting again returns the same job.
        """
        return await self.submit_parcel(_parcel(command, script, options), request_id=request_id)

    async def submit_parcel(self, parcel: Parcel, *, request_id: str = "") -> AsyncJob:
        """Pack and send what a parcel names, then submit its specification."""
        with self.transport.tracer.span("hatoba submit"):
            await packing.bring(self, parcel)
            request = job_pb2.SubmitJobRequest(
                project=self.project, spec=parcel.spec, request_id=request_id
            )
            job = await self.call(request, job_pb2.Job, timeout=SUBMIT_SECONDS)
        self.transport.flush_spans()
        await asyncio.to_thread(self._remember, job)
        return AsyncJob(self, job)

    async def predict_batch(
        self, model: str, dataset: str, *, request_id: str = "", **options: Unpack[BatchOptions]
    ) -> AsyncJob:
        """Submit a model (`digits:7`, `digits@production`) over every item of a dataset
        (`digits-test:2`). Its tasks' predictions become one dataset version, in the items' order;
        `wait` returns when they have. References are resolved once, now.
        """
        return await predict_batch(self, model, dataset, options, request_id)

    async def check(self, parcel: Parcel) -> job_pb2.Job:
        """Let the server check a specification without storing anything."""
        request = job_pb2.SubmitJobRequest(
            project=self.project, spec=parcel.spec, validate_only=True
        )
        return await self.call(request, job_pb2.Job)

    async def plan(
        self,
        command: Sequence[str] | str = (),
        *,
        script: str | Path = "",
        **options: Unpack[SubmitOptions],
    ) -> job_pb2.Explanation:
        """What would happen to a job if it were submitted now, and why; said as to `submit`.

        Nothing is stored or sent along.
        """
        return await self.plan_parcel(_parcel(command, script, options))

    async def plan_parcel(self, parcel: Parcel) -> job_pb2.Explanation:
        """As `plan`, of a parcel, for example that of a job file."""
        request = job_pb2.PlanJobRequest(project=self.project, spec=parcel.spec)
        return await self.call(request, job_pb2.Explanation)

    async def explain(self, name: str) -> job_pb2.Explanation:
        """Why a job is where it is."""
        request = job_pb2.ExplainJobRequest(name=self.job_name(name))
        return await self.call(request, job_pb2.Explanation)

    async def job(self, name: str) -> AsyncJob:
        """A job by name (`digits-42`) or uid."""
        return AsyncJob(self, await self.get(name))

    async def get(self, name: str) -> job_pb2.Job:
        """A job's record by name or uid."""
        return await self.call(job_pb2.GetJobRequest(name=self.job_name(name)), job_pb2.Job)

    async def jobs(self, filter: str = "", *, limit: int = 100) -> list[job_pb2.Job]:
        """The newest jobs that match, at most `limit`."""
        found: list[job_pb2.Job] = []
        request = job_pb2.ListJobsRequest(project=self.project, filter=filter)
        while len(found) < limit:
            request.page_size = min(limit - len(found), 1000)
            page = await self.call(request, job_pb2.ListJobsResponse)
            found.extend(page.jobs)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return found

    async def latest_job(self) -> job_pb2.Job:
        """This user's newest job; everybody's newest before they submitted any. Raises NotFound."""
        memory = await asyncio.to_thread(settings.recall, self.server.key)
        mine = f"created_by = {memory.principal}" if memory.principal else ""
        found = await self.jobs(mine, limit=1) or (mine and await self.jobs(limit=1))
        if not found:
            raise NotFound(
                "there are no jobs yet", remedy="run one: `hatoba run -- python train.py`"
            )
        return found[0]

    async def cancel(
        self, *jobs: str, filter: str = "", queue: str = "", indices: str = "", reason: str = ""
    ) -> list[job_pb2.CancelResult]:
        """Want jobs ended; each result says whether it is over, was over, or what is waited for.

        With no jobs named: all unfinished ones that match. `indices` (`0-4,7`) are tasks of one
        array, whose others go on.
        """
        results: list[job_pb2.CancelResult] = []
        query = {"filter": filter, "queue": queue, "indices": indices, "reason": reason}
        async for part in self.cancelled(*jobs, **query):
            results.extend(part)
        return results

    async def cancelled(
        self, *jobs: str, filter: str = "", queue: str = "", indices: str = "", reason: str = ""
    ) -> AsyncGenerator[Sequence[job_pb2.CancelResult], None]:
        """As `cancel`, in parts of at most 1,000 results, until no more match."""
        request = job_pb2.CancelJobsRequest(
            project=self.project, filter=filter, queue=queue, indices=indices, reason=reason
        )
        request.jobs.extend(self.job_name(name) for name in jobs)
        more = True
        while more:
            # Each part is a request of its own: with the same id it would be the one before.
            request.ClearField("request_id")
            reply = await self.call(request, job_pb2.CancelJobsResponse)
            yield reply.results
            more = reply.more

    async def update(
        self, name: str, *, priority: int | None = None, queue: str | None = None, etag: str = ""
    ) -> job_pb2.Job:
        """Move an unfinished job to another place in line; what is None stays as it is.

        With an `etag` only if the job is still as it was read; else it raises Aborted.
        """
        changes: dict[str, Any] = {"priority": priority, "queue": queue}
        return await self._update(name, etag, **{k: v for k, v in changes.items() if v is not None})

    async def hold(self, name: str) -> job_pb2.Job:
        """Keep back what has not started of a job."""
        return await self._update(name, hold=True)

    async def release(self, name: str) -> job_pb2.Job:
        """Let a held job go."""
        return await self._update(name, hold=False)

    async def _update(self, name: str, etag: str = "", **changes: Any) -> job_pb2.Job:
        request = job_pb2.UpdateJobRequest(name=self.job_name(name), etag=etag, **changes)
        request.update_mask.paths.extend(changes)
        return await self.call(request, job_pb2.Job)

    def events(
        self,
        *jobs: str,
        cursor: str = "",
        jobs_only: bool = False,
        filter: str = "",
        reasons: Sequence[str] = (),
    ) -> AsyncGenerator[common_pb2.Event | Resync, None]:
        """Events from a cursor on (empty: from now, `0`: from the oldest), each once and in order.

        With jobs named it ends when all of them have; without, `filter` chooses as in job lists.
        Broken connections are taken up again.
        """
        names = [self.job_name(name) for name in jobs]
        query = WatchQuery(names, self.project, cursor, jobs_only, filter, reasons)
        return watch_events(self.transport, query, self.notify)

    def logs(self, query: LogQuery) -> AsyncGenerator[LogPiece, None]:
        """The log of one attempt, each byte once; broken connections are taken up again."""
        return read_logs(self.transport, query, self.notify)

    def job_name(self, name: str) -> str:
        """A job's full name, where a short one would be looked for in another project."""
        if "/" in name or self.project == settings.DEFAULT_PROJECT or _looks_like_uid(name):
            return name
        return f"projects/{self.project}/jobs/{name}"

    def _remember(self, job: job_pb2.Job) -> None:
        settings.remember(self.server.key, settings.Memory(job.created_by, job.name))


class AsyncJob:
    """A submitted job. `record` is what was last read of it."""

    def __init__(self, client: AsyncClient, record: job_pb2.Job) -> None:
        self.client = client
        self.record = record

    @property
    def name(self) -> str:
        """NAME-N."""
        return short_name(self.record.name)

    @property
    def state(self) -> str:
        """The state as last read, for example `RUNNING`."""
        return state_name(self.record.state)

    async def refresh(self) -> job_pb2.Job:
        """Read the record anew."""
        self.record = await self.client.get(self.record.name)
        return self.record

    async def wait(self, timeout: float | None = None) -> job_pb2.Job:
        """The record once the job has ended; raises DeadlineExceeded after `timeout` seconds.

        Servers and connections may go and come back meanwhile.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._ended()
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.name} has not ended after {timeout} s", remedy="wait again"
            ) from None

    async def _ended(self) -> job_pb2.Job:
        name = self.record.name
        async with aclosing(
            self.client.events(name, cursor=FROM_THE_OLDEST, jobs_only=True)
        ) as events:
            async for event in events:
                if isinstance(event, Resync) and (await self.refresh()).state in TERMINAL:
                    return self.record
        return await self.settled()

    async def settled(self) -> job_pb2.Job:
        """The record, asked for until the server is there and what it publishes is published."""
        while True:
            try:
                if not _publishing(await self.refresh()):
                    return self.record
                await self.client.transport.pause(PUBLISH_PAUSE)
            except Unavailable:
                await self.client.transport.pause(1.0)

    async def logs(
        self,
        *,
        follow: bool = False,
        stream: str = "",
        index: int = 0,
        attempt: int = 0,
        tail: int = 0,
    ) -> AsyncGenerator[LogPiece, None]:
        """What a task's attempt (0: the last one) wrote; with `follow` to its end."""
        query = LogQuery(self.record.name, index, attempt, stream, tail, follow)
        async with aclosing(self.client.logs(query)) as pieces:
            async for piece in pieces:
                yield piece

    async def metrics(self, *keys: str, index: int | None = None) -> Metrics:
        """Logged values as (step, value) by key; keys of an array's tasks are `key[index]`."""
        series = await self.series(*keys, index=index)
        tasks = {one.index for one in series}
        return Metrics(
            {
                one.key if len(tasks) < 2 else f"{one.key}[{one.index}]": [
                    (p.step, p.value) for p in one.points
                ]
                for one in series
            }
        )

    async def series(self, *keys: str, index: int | None = None) -> list[job_pb2.MetricSeries]:
        """Logged values with their times and attempts."""
        request = job_pb2.QueryMetricsRequest(job=self.record.name, keys=keys, index=index)
        return list((await self.client.call(request, job_pb2.QueryMetricsResponse)).series)

    async def cancel(self, reason: str = "", *, indices: str = "") -> job_pb2.CancelResult:
        """Want the job, or of an array these tasks (`0-4,7`), ended. Asking again does no harm."""
        results = await self.client.cancel(self.record.name, reason=reason, indices=indices)
        return results[0]

    async def update(
        self, *, priority: int | None = None, queue: str | None = None, etag: str = ""
    ) -> job_pb2.Job:
        """See AsyncClient.update."""
        name = self.record.name
        self.record = await self.client.update(name, priority=priority, queue=queue, etag=etag)
        return self.record

    async def hold(self) -> job_pb2.Job:
        """Keep back what has not started of it."""
        self.record = await self.client.hold(self.record.name)
        return self.record

    async def release(self) -> job_pb2.Job:
        """Let it go, if it is held."""
        self.record = await self.client.release(self.record.name)
        return self.record

    async def outputs(self, directory: str | Path, *, index: int | None = None) -> Path:
        """Fetch the job's outputs, or one task's, into a directory. Raises NotFound when there are
        none.
        """
        ref = await self._outputs_ref(index)
        if not ref.digest:
            raise NotFound(
                f"{self.name} has no outputs",
                remedy="a job keeps what it writes to its outputs directory",
            )
        await packing.fetch(self.client, ref, Path(directory))
        return Path(directory)

    async def _outputs_ref(self, index: int | None) -> common_pb2.ManifestRef:
        record = await self.refresh()
        if index is None and record.counts.total < 2:
            return record.outputs
        return (await self.task(index or 0)).outputs

    async def task(self, index: int) -> job_pb2.Task:
        """One task of the job; raises NotFound for an index it does not have."""
        request = job_pb2.ListTasksRequest(job=self.record.name, page_size=1000)
        while True:
            page = await self.client.call(request, job_pb2.ListTasksResponse)
            for task in page.tasks:
                if task.index == index:
                    return task
            request.page_token = page.next_page_token
            if not page.next_page_token:
                raise NotFound(f"{self.name} has no task {index}")

    async def rerun(
        self,
        *,
        params: Mapping[str, float | bool | str] | None = None,
        env: Mapping[str, str] | None = None,
        from_checkpoint: bool = False,
        failed_only: bool = False,
        overrides: job_pb2.JobSpec | None = None,
        override_fields: Sequence[str] | None = None,
    ) -> AsyncJob:
        """A new job like this one, with some parameters and variables replaced.

        Of `overrides` these top-level fields (None: all that are set) replace the old job's. With
        `failed_only` the tasks of an array that succeeded are taken over as they ended.
        """
        changes = job_pb2.JobSpec()
        for name, value in (params or {}).items():
            set_param(changes, name, value)
        request = job_pb2.RerunJobRequest(
            job=self.record.name,
            params=changes.params,
            env=env,
            from_checkpoint=from_checkpoint,
            failed_only=failed_only,
            overrides=overrides,
        )
        if override_fields is None and overrides is not None:
            override_fields = [field.name for field, _ in overrides.ListFields()]
        request.override_mask.paths.extend(override_fields or ())
        return AsyncJob(self.client, await self.client.call(request, job_pb2.Job))

    async def explain(self) -> job_pb2.Explanation:
        """Why the job is where it is."""
        return await self.client.explain(self.record.name)


def locate_server(choice: Choice, say: Callable[[str], None]) -> Server:
    """The server that is meant; an embedded one that does not run is started. Blocks."""
    return settings.find_server(choice) or start_embedded(settings.data_dir(), say)


def short_name(name: str) -> str:
    """The last part of a resource name."""
    return name.rpartition("/")[2]


def state_name(state: common_pb2.JobState.ValueType) -> str:
    """A state without its prefix."""
    return common_pb2.JobState.Name(state).removeprefix("JOB_STATE_")


def batches(items: Iterable[job_pb2.SubmitJobsItem]) -> list[list[job_pb2.SubmitJobsItem]]:
    """Items in parts that one call may carry."""
    every = list(items)
    return [every[start : start + MAX_BATCH] for start in range(0, len(every), MAX_BATCH)]


def _parcel(command: Sequence[str] | str, script: str | Path, options: SubmitOptions) -> Parcel:
    if bool(command) == bool(script):
        raise InvalidSpec("say either a command or a script")
    return build_parcel(["python", str(script)] if script else command, options)


def _publishing(job: job_pb2.Job) -> bool:
    """Whether its outputs are about to become a dataset version."""
    due = job.state == common_pb2.JOB_STATE_SUCCEEDED and job.spec.HasField("publish")
    return due and not job.published


def _looks_like_uid(name: str) -> bool:
    return len(name) == 36 and name.count("-") == 4
