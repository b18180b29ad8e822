"""One opened instance: a namespace of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import structlog

from hatoba.v1 import common_pb2, job_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu.attach import Doors
from hatoba_plugins.backends.k8s_gpu.board import Board, JobFollower, PodFollower
from hatoba_plugins.backends.k8s_gpu.capacity import (
    Node,
    Quota,
    architectures,
    node_of,
    quota_of,
    shunned,
    snapshot,
    wanted_nodes,
)
from hatoba_plugins.backends.k8s_gpu.client import Kube, Refusal, Unreached, connected
from hatoba_plugins.backends.k8s_gpu.deployments import KubeDeployments
from hatoba_plugins.backends.k8s_gpu.jobs import KubeJobs, asked, handle_of
from hatoba_plugins.backends.k8s_gpu.logs import LogReader
from hatoba_plugins.backends.k8s_gpu.lookups import Lookups
from hatoba_plugins.backends.k8s_gpu.manifest import Maker
from hatoba_plugins.backends.k8s_gpu.objects import SeenJob, SeenPod
from hatoba_plugins.backends.k8s_gpu.options import K8sOptions
from hatoba_plugins.backends.k8s_gpu.states import chosen, observed
from hatoba_plugins.backends.k8s_gpu.tending import Faults, Tender
from hatoba_plugins.backends.k8s_gpu.validation import problems
from hatoba_plugins.backends.k8s_gpu.watch import Kind, Reflector
from hatoba_plugins.lanes import Lanes
from hatoba_plugins.values import (
    Absent,
    Capabilities,
    FindOutcome,
    Found,
    Health,
    HealthStatus,
    LogChunk,
    Owned,
    Phase,
    Problem,
    Rate,
    Ref,
    Unsure,
)

T = TypeVar("T")
log = structlog.get_logger(__name__)
CAPACITY_EVERY = 30.0
LANES = 16
"""Native calls at once."""
_LIMITS = (
    ("apply", Rate(100.0, 200)),
    ("create", Rate(400.0, 400)),
    ("patch", Rate(200.0, 400)),
    ("delete", Rate(400.0, 400)),
    ("read", Rate(400.0, 800)),
    ("list", Rate(10.0, 20)),
    ("watch", Rate(5.0, 20)),
)


def capabilities_of(options: K8sOptions) -> Capabilities:
    """What an instance with these options can."""
    return Capabilities(
        runner=options.runner,
        gpus=True,
        images=True,
        secrets=True,
        memory_limit=True,
        inputs=options.runner == "pod",
        gangs=True,
        attach=True,
        logs=True,
        deployments=True,
        canary=True,
        replica_logs=True,
        find_settles_after=options.settles_after,
        limits=_LIMITS,
    )


class KubeBackend:
    """Jobs in one namespace."""

    devices = None

    def __init__(self, kube: Kube, options: K8sOptions, ctx: BackendContext) -> None:
        self._kube = kube
        self._options = options
        self._ctx = ctx
        self._board = Board(ctx.clock)
        self._faults = Faults(ctx, options.device_fault_pause)
        self._nodes: list[Node] = []
        self._quota = Quota()
        self._unknown: set[str] = set()
        """Why room could not be looked at, as it was logged."""
        self._lookups = Lookups(kube, ctx, self._board, options.namespace, options.settles_after)
        self._logs = LogReader(kube, ctx, self._lookups)
        self._lanes = Lanes(LANES)
        maker = Maker(ctx, options)
        self._doors = Doors(kube, ctx, self._lookups.core_path("pods"), self._logs.pod_of)
        self.jobs = KubeJobs(
            kube, ctx, maker, self._board, self._lookups, self._lanes, self._shunned, self._doors
        )
        self.deployments = KubeDeployments(
            kube, ctx, options, self._board, self._lookups, self._architectures
        )
        self._reflectors = self._followed()

    def _followed(self) -> list[Reflector]:
        """The two watches of a namespace."""
        lookups, board = self._lookups, self._board
        jobs = Kind("jobs", lookups.jobs_path, lookups.ours())
        pods = Kind("pods", lookups.core_path("pods"), lookups.ours())
        return [
            Reflector(self._kube, jobs, JobFollower(board), self._ctx),
            Reflector(self._kube, pods, PodFollower(board), self._ctx),
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[KubeBackend]:
        """Follow the namespace until left."""
        tender = Tender(self._board, self.jobs, self._ctx, self._faults)
        async with asyncio.TaskGroup() as tasks:
            self._doors.tasks = tasks
            following = [tasks.create_task(one.run(), name="k8s:watch") for one in self._reflectors]
            following += [
                tasks.create_task(self._open_board(), name="k8s:open"),
                tasks.create_task(self._look_at_nodes(), name="k8s:capacity"),
                tasks.create_task(tender.run(), name="k8s:tend"),
                tasks.create_task(self.deployments.run(), name="k8s:replicas"),
                tasks.create_task(self.deployments.look(), name="k8s:missing"),
            ]
            try:
                yield self
            finally:
                self._doors.close()
                self._board.feed.end()
                self.deployments.end()
                for task in following:
                    task.cancel()

    async def _open_board(self) -> None:
        """Tell nothing before both watches have listed, and the room is known."""
        for reflector in self._reflectors:
            await reflector.synced.wait()
        await self._measure()
        self._board.open()

    # -- capacity -------------------------------------------------------------------------------

    async def _look_at_nodes(self) -> None:
        while True:
            await self._ctx.clock.sleep(CAPACITY_EVERY)
            await self._measure()

    async def _measure(self) -> None:
        """Look at nodes and quota; without the right to, or an answer, nothing changes."""
        self._nodes = await self._looked(self._read_nodes(), self._nodes)
        self._quota = await self._looked(self._read_quota(), self._quota)
        now, faulty = self._ctx.clock.time(), self._faults.now()
        self._board.describe(snapshot(self._nodes, self._quota, self._options, faulty, now))

    async def _looked(self, look: Awaitable[T], before: T) -> T:
        try:
            return await look
        except (Refusal, Unreached) as error:
            if str(error) not in self._unknown:
                self._unknown.add(str(error))
                log.warning("k8s.capacity_unknown", error=str(error))
            return before

    def _architectures(self, needs: common_pb2.Resources) -> list[str]:
        return architectures(self._nodes, self._options, needs.gpus)

    async def _read_nodes(self) -> list[Node]:
        await self._ctx.budget("list")
        found = self._kube.every("/api/v1/nodes", {})
        nodes = [node_of(told, self._options) async for told in found]
        return wanted_nodes(nodes, self._options)

    async def _read_quota(self) -> Quota:
        await self._ctx.budget("list")
        found = self._kube.every(self._lookups.core_path("resourcequotas"), {})
        return quota_of([told async for told in found], self._options)

    def _shunned(self) -> list[str]:
        return shunned(self._nodes, self._faults.now())

    # -- what the core asks ---------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """What this instance can."""
        return capabilities_of(self._options)

    async def health(self) -> Health:
        """Whether the API server answers, with the rights that are needed, and is followed."""
        try:
            await self._lookups.require_answer()
        except Unreached as error:
            return Health(HealthStatus.UNHEALTHY, str(error))
        except Refusal as error:
            promised = error.error()
            return Health(HealthStatus.UNHEALTHY, promised.message if promised else str(error))
        behind = [one.problem for one in self._reflectors if one.problem]
        if behind:
            return Health(HealthStatus.DEGRADED, behind[0])
        return Health(HealthStatus.HEALTHY)

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """What of it can never run here, as far as that is known."""
        return problems(spec, self._options, self.capabilities(), self._nodes, self._quota)

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """Live, by name."""
        return await self._lanes.each(refs, self._find)

    async def _find(self, ref: Ref) -> FindOutcome:
        job = await asked(self._lookups.find(ref))
        if job is not None:
            self._lookups.settling.seen(job.name)
            # Whoever launches it again finds it, and makes it whole.
            if job.half:
                return Absent(ref.name)
            return Found(ref.name, handle_of(job))
        after = self._lookups.settling.settled_in(ref.name)
        return Unsure(ref.name, after) if after > 0 else Absent(ref.name)

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """All attempts that have a Job of this installation."""
        pods = await asked(self._lookups.every_pod(cluster_id))
        for job in await asked(self._lookups.every_job(cluster_id)):
            for index in range(len(job.members)):
                yield _owned(job, index, pods.get(job.name, []))

    def logs(self, ref: Ref, stream: str, offset: int, follow: bool) -> AsyncIterator[LogChunk]:
        """What the command wrote, both streams as one, as long as its pod is there."""
        return self._logs.read(ref, stream, offset, follow)


@asynccontextmanager
async def opened(options: K8sOptions, ctx: BackendContext) -> AsyncIterator[KubeBackend]:
    """An instance that follows its namespace until left. Raises Fatal."""
    async with connected(options) as kube, KubeBackend(kube, options, ctx).running() as backend:
        yield backend


def _owned(job: SeenJob, index: int, pods: Sequence[SeenPod]) -> Owned:
    seen = observed(job, index, pods)
    owner = job.owner
    pod = chosen([one for one in pods if one.index == index], job.finished)
    return Owned(
        seen.name,
        owner.cluster,
        owner.job,
        index if len(job.members) > 1 else owner.index,
        owner.number,
        handle_of(job),
        ended=seen.phase is Phase.ENDED,
        pool=pod.node if pod else "",
    )
