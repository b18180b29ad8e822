"""One opened instance."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Sequence

from hatoba.v1 import job_pb2
from hatoba_plugins.aws import Unanswered
from hatoba_plugins.aws.logs import STREAM, CloudWatchLogs
from hatoba_plugins.backends.ecs.calls import LIMITS, EcsCalls
from hatoba_plugins.backends.ecs.definitions import RUN, job_definition, overrides
from hatoba_plugins.backends.ecs.deployments import EcsDeployments
from hatoba_plugins.backends.ecs.jobs import EcsJobs
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.checks import lacking
from hatoba_plugins.errors import BackendError, Invalid, Unsupported
from hatoba_plugins.values import (
    Capabilities,
    FindOutcome,
    Health,
    HealthStatus,
    LogChunk,
    Owned,
    Problem,
    Rate,
    Ref,
)


def capabilities_of(options: EcsOptions) -> Capabilities:
    """What an instance with these options can."""
    fenced = options.runner == "image"
    return Capabilities(
        runner=options.runner,
        gpus=bool(options.gpu_cluster),
        images=True,
        secrets=bool(options.secrets_prefix),
        memory_limit=True,
        inputs=fenced,
        # A runner in the image ships them itself, as they come.
        logs=bool(options.log_group) and not fenced,
        deployments=True,
        canary=True,
        replica_logs=bool(options.log_group),
        find_settles_after=options.find_settles_after,
        limits=(("launch", Rate(20.0, 100)), *LIMITS),
    )


class EcsBackend:
    """Jobs and deployments on the clusters of one account and region."""

    devices = None

    def __init__(
        self,
        jobs: EcsJobs,
        deployments: EcsDeployments,
        calls: EcsCalls,
        options: EcsOptions,
        logs: CloudWatchLogs | None,
    ) -> None:
        self.jobs = jobs
        self.deployments = deployments
        self._calls = calls
        self._options = options
        self._logs = logs

    def capabilities(self) -> Capabilities:
        """By its options."""
        return capabilities_of(self._options)

    async def health(self) -> Health:
        """Whether ECS answers, and its clusters are there."""
        try:
            missing = await self._calls.missing_clusters(self._options.clusters)
        except (BackendError, Unanswered) as error:
            return Health(HealthStatus.UNHEALTHY, str(error))
        if missing:
            names = ", ".join(missing)
            return Health(HealthStatus.UNHEALTHY, f"no active cluster {names}; make it or correct")
        return Health(HealthStatus.HEALTHY)

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """What it lacks, and what ECS would not take."""
        problems = lacking(spec, self.capabilities(), self._options.image)
        if len(spec.backend_options.fields):
            problems.append(Problem("backend_options", "ecs takes no options; leave them out"))
        return problems or self._too_much(spec)

    def _too_much(self, spec: job_pb2.JobSpec) -> list[Problem]:
        if not (spec.environment.image or self._options.image):
            return [Problem("environment.image", "is empty; name an image that has the command")]
        try:
            job_definition(self._options, spec, 0, {})
        except Invalid as error:
            return [Problem("resources", error.message)]
        fenced = self._options.runner == "image"
        try:
            overrides([*(RUN if fenced else ()), *spec.command], {} if fenced else spec.env)
        except Invalid as error:
            return [Problem("command", error.message)]
        return []

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """Live, by what tasks were started by."""
        return await self.jobs.find(refs)

    def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """Tasks with our tags."""
        return self.jobs.list_owned(cluster_id)

    async def logs(
        self, ref: Ref, stream: str, offset: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        """From CloudWatch; the driver tells stdout and stderr not apart, all is stdout."""
        if self._logs is None or not self.capabilities().logs:
            raise Unsupported("logs")
        if stream != STREAM:
            return
        look = functools.partial(self.jobs.log_source, ref)
        async for chunk in self._logs.of_attempt(ref.name, offset, follow, look):
            yield chunk
