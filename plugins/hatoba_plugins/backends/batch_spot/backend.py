"""One opened instance: its jobs, what it can, how it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from hatoba.v1 import job_pb2
from hatoba_plugins.aws import AwsClients, open_aws
from hatoba_plugins.aws.logs import STREAM, CloudWatchLogs, Source
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.batch_spot.calls import LIMITS, BatchCalls
from hatoba_plugins.backends.batch_spot.checks import problems_of
from hatoba_plugins.backends.batch_spot.health import survey
from hatoba_plugins.backends.batch_spot.jobs import BatchJobs
from hatoba_plugins.backends.batch_spot.options import BatchOptions
from hatoba_plugins.backends.batch_spot.states import TERMINAL, log_stream
from hatoba_plugins.backends.batch_spot.watching import Sweeper
from hatoba_plugins.errors import BackendError, Unsupported
from hatoba_plugins.values import (
    Capabilities,
    FindOutcome,
    Health,
    HealthStatus,
    LogChunk,
    Owned,
    Problem,
    Ref,
)

LOG_GROUP = "/aws/batch/job"
"""Where Batch writes when a job definition names no other."""


def capabilities_of(options: BatchOptions) -> Capabilities:
    """What an instance with these options can."""
    fenced = options.runner == "image"
    return Capabilities(
        runner=options.runner,
        gpus=any(one.gpus for one in options.pools()),
        images=True,
        secrets=bool(options.secrets),
        memory_limit=True,
        inputs=fenced,
        # A runner in the image ships them itself, as they come.
        logs=not fenced,
        find_settles_after=options.settles_after,
        limits=LIMITS,
    )


class BatchBackend:
    """AWS Batch in one account and region."""

    deployments = None
    devices = None

    def __init__(self, ctx: BackendContext, options: BatchOptions, aws: AwsClients) -> None:
        self._options = options
        self._calls = BatchCalls(aws)
        self._logs = CloudWatchLogs(aws, ctx.clock, LOG_GROUP)
        self._capabilities = capabilities_of(options)
        self.sweeper = Sweeper(ctx, self._calls, options)
        self.jobs = BatchJobs(ctx, options, self._calls, self.sweeper, self._capabilities)

    def capabilities(self) -> Capabilities:
        """What this instance can."""
        return self._capabilities

    async def health(self) -> Health:
        """What its queues and compute environments say of themselves."""
        try:
            found = await survey(self._calls, self._options.pools())
        except BackendError as error:
            return Health(HealthStatus.UNHEALTHY, error.message)
        return found.health

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """What can never run here, and what Batch would not take."""
        return problems_of(spec, self._options, self._capabilities)

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """Live, by name, in all queues; Unsure while a submit may still show."""
        return await self.jobs.find(refs)

    def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """Everything with our tags that is not released."""
        return self.jobs.list_owned(cluster_id)

    async def logs(
        self, ref: Ref, stream: str, offset: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        """From CloudWatch; the driver tells stdout and stderr not apart, all is stdout."""
        if not self._capabilities.logs:
            raise Unsupported("logs")
        if stream != STREAM:
            return

        async def look() -> Source:
            detail = await self.jobs.detail(ref)
            if detail is None:
                return Source("", over=True)
            ended = float(detail.get("stoppedAt") or 0.0) / 1000.0
            return Source(log_stream(detail), detail["status"] in TERMINAL, ended)

        async for chunk in self._logs.of_attempt(ref.name, offset, follow, look):
            yield chunk


@asynccontextmanager
async def opened(options: BatchOptions, ctx: BackendContext) -> AsyncIterator[BatchBackend]:
    """Open one instance; it looks at its jobs until it is left."""
    services = ("batch",) if options.runner == "image" else ("batch", "logs")
    async with open_aws(options, ctx, services) as aws:
        backend = BatchBackend(ctx, options, aws)
        async with asyncio.TaskGroup() as tasks:
            sweeping = tasks.create_task(backend.sweeper.sweep_forever(), name="batch:sweep")
            try:
                yield backend
            finally:
                backend.sweeper.feed.end()
                sweeping.cancel()
