"""An opened instance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import DeviceBackend
from hatoba_plugins.backends.hosts.jobs import HostJobs
from hatoba_plugins.checks import lacking
from hatoba_plugins.errors import Unsupported
from hatoba_plugins.values import (
    Absent,
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

CAPABILITIES = Capabilities(
    images=True, requirements=True, caller_interpreter=True, secrets=True, memory_limit=True
)
_WITH_JOBS = replace(CAPABILITIES, runner="host", inputs=True, attach=True)
OF_JOBS = replace(_WITH_JOBS, images=False, caller_interpreter=False)
"""What a job may ask of a device: it is a process there, and the submitter's interpreter is not."""
_WITH_JOBS = replace(_WITH_JOBS, of_jobs=OF_JOBS)


async def healthy() -> Health:
    """Healthy while the scheduler is; that a device is away is its nature."""
    return Health(HealthStatus.HEALTHY)


class EdgeBackend:
    """Deployments to devices, and jobs on those whose transport carries any."""

    deployments = None

    def __init__(
        self,
        devices: DeviceBackend,
        health: Callable[[], Awaitable[Health]] = healthy,
        limits: tuple[tuple[str, Rate], ...] = (),
        jobs: HostJobs | None = None,
    ) -> None:
        self.devices = devices
        self.jobs = jobs
        self._health = health
        self._limits = limits

    def capabilities(self) -> Capabilities:
        """What devices can."""
        return replace(CAPABILITIES if self.jobs is None else _WITH_JOBS, limits=self._limits)

    async def health(self) -> Health:
        """That of the transport."""
        return await self._health()

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """Jobs name their devices, and are processes there."""
        if self.jobs is None:
            return [Problem("backend", "runs no jobs, only deployments to devices")]
        problems = lacking(spec, OF_JOBS)
        if not spec.HasField("devices"):
            problems.append(Problem("backend", "runs jobs that name their devices alone"))
        if len(spec.backend_options.fields):
            problems.append(Problem("backend_options", "devices take no options; leave them out"))
        return problems

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """What devices have told of jobs; Unsure of one whose stream for jobs is not open."""
        return self.jobs.find(refs) if self.jobs else [Absent(ref.name) for ref in refs]

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """What devices have of jobs, as they told."""
        if self.jobs is not None:
            async for one in self.jobs.list_owned(cluster_id):
                yield one

    def logs(self, ref: Ref, stream: str, offset: int, follow: bool) -> AsyncIterator[LogChunk]:
        """Devices push the logs of jobs to the scheduler. Raises Unsupported."""
        del ref, stream, offset, follow
        raise Unsupported("logs of its own")
