"""An opened instance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from hatoba.v1 import job_pb2
from hatoba_plugins.backends.iot_edge.streams import StreamDevices
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
    Ref,
)

CAPABILITIES = Capabilities(requirements=True, caller_interpreter=True, secrets=True)


class EdgeBackend:
    """Deployments to devices."""

    jobs = None
    deployments = None

    def __init__(self, devices: StreamDevices) -> None:
        self.devices = devices

    def capabilities(self) -> Capabilities:
        """What devices can."""
        return CAPABILITIES

    async def health(self) -> Health:
        """Healthy while the scheduler is; that a device is away is its nature."""
        return Health(HealthStatus.HEALTHY)

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """It runs no jobs."""
        del spec
        return [Problem("backend", "runs no jobs, only deployments to devices")]

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """It has no jobs."""
        return [Absent(ref.name) for ref in refs]

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """It has no jobs."""
        del cluster_id
        none: tuple[Owned, ...] = ()
        for one in none:
            yield one

    def logs(self, ref: Ref, stream: str, offset: int, follow: bool) -> AsyncIterator[LogChunk]:
        """Raises Unsupported."""
        del ref, stream, offset, follow
        raise Unsupported("logs of jobs")
