"""An opened instance."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import DeviceBackend
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


async def healthy() -> Health:
    """Healthy while the scheduler is; that a device is away is its nature."""
    return Health(HealthStatus.HEALTHY)


class EdgeBackend:
    """Deployments to devices, which are reached by one transport."""

    jobs = None
    deployments = None

    def __init__(
        self,
        devices: DeviceBackend,
        health: Callable[[], Awaitable[Health]] = healthy,
        limits: tuple[tuple[str, Rate], ...] = (),
    ) -> None:
        self.devices = devices
        self._health = health
        self._limits = limits

    def capabilities(self) -> Capabilities:
        """What devices can."""
        return replace(CAPABILITIES, limits=self._limits)

    async def health(self) -> Health:
        """That of the transport."""
        return await self._health()

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
