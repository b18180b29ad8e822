"""`hosts`: processes and containers on Linux machines that run our worker, reached through the
worker hub."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import API_VERSION, BackendContext, BackendType, WorkerHub
from hatoba_plugins.backends.hosts.deployments import HostDeployments
from hatoba_plugins.backends.hosts.jobs import HostJobs
from hatoba_plugins.backends.hosts.placement import runs_containers
from hatoba_plugins.checks import lacking, out_of_range
from hatoba_plugins.errors import Unsupported
from hatoba_plugins.spec import hookimpl
from hatoba_plugins.values import (
    BackendOptions,
    Capabilities,
    FindOutcome,
    Health,
    HealthStatus,
    LogChunk,
    Owned,
    Problem,
    Ref,
)


@dataclass(frozen=True, slots=True)
class HostsOptions(BackendOptions):
    """Hosts bring their own settings; here is what replicas on them need."""

    away_after: float = 30.0
    """Replicas of a host that is away for so many seconds are replaced on other hosts."""

    @classmethod
    def check(cls, options: dict[str, object]) -> list[Problem]:
        """Problems of these options."""
        known = super(HostsOptions, cls).check(options)
        return known or out_of_range(options, "away_after", 1, 86_400)


CAPABILITIES = Capabilities(
    runner="host",
    gpus=True,
    requirements=True,
    caller_interpreter=True,
    secrets=True,
    memory_limit=True,
    inputs=True,
    gangs=True,
    attach=True,
    deployments=True,
    canary=True,
    replica_logs=True,
)
"""What every host can."""
_WITH_IMAGES = replace(CAPABILITIES, images=True)


class HostsBackend:
    """Jobs and deployments on the hosts that are connected to this scheduler."""

    devices = None

    def __init__(self, hub: WorkerHub, deployments: HostDeployments) -> None:
        self._hub = hub
        self.jobs = HostJobs(hub)
        self.deployments = deployments

    def capabilities(self) -> Capabilities:
        """What every host can; images, once a host has a container engine."""
        rooms = self._hub.hosts_for_replicas()
        return _WITH_IMAGES if any(map(runs_containers, rooms)) else CAPABILITIES

    async def health(self) -> Health:
        """Healthy while the scheduler is; that no host is connected is a matter of capacity."""
        return Health(HealthStatus.HEALTHY)

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """Images need a host with a container engine."""
        images = spec.environment.image
        problems = lacking(spec, self.capabilities() if images else CAPABILITIES)
        if len(spec.backend_options.fields):
            problems.append(Problem("backend_options", "hosts take no options; leave them out"))
        return problems

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """What the hosts' inventories say; Unsure of a host that is not connected."""
        return self.jobs.find(refs)

    def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """What hosts have, told by their inventories; they serve one installation only."""
        return self.jobs.list_owned(cluster_id)

    def logs(self, ref: Ref, stream: str, offset: int, follow: bool) -> AsyncIterator[LogChunk]:
        """Workers push logs to the scheduler. Raises Unsupported."""
        del ref, stream, offset, follow
        raise Unsupported("logs of its own")


class HostsType:
    """The type as it is registered."""

    name = "hosts"
    api = API_VERSION
    options: type[BackendOptions] = HostsOptions

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[HostsBackend]:
        """Open on the core's hub."""
        del instance
        assert isinstance(options, HostsOptions)
        async with HostDeployments.running(ctx, options.away_after) as deployments:
            yield HostsBackend(ctx.workers, deployments)


class HostsPlugin:
    """Registers `hosts`."""

    @hookimpl
    def hatoba_backend_types(self) -> list[BackendType]:
        """The one type."""
        return [HostsType()]


plugin = HostsPlugin()
