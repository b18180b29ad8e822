"""Deployments: a ReplicaSet of one for each replica, made and removed as `rolling.plan` says.

What exists is in the cluster; here is remembered what is wanted, and which replicas were let go.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import cast

import structlog

from hatoba.v1 import common_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu import names, replicas
from hatoba_plugins.backends.k8s_gpu.board import Board
from hatoba_plugins.backends.k8s_gpu.client import Kube, Refusal, Unreached
from hatoba_plugins.backends.k8s_gpu.jobs import asked
from hatoba_plugins.backends.k8s_gpu.logs import Tail
from hatoba_plugins.backends.k8s_gpu.lookups import Lookups
from hatoba_plugins.backends.k8s_gpu.options import K8sOptions
from hatoba_plugins.errors import Invalid, Retry, Stale
from hatoba_plugins.feed import Feed
from hatoba_plugins.rolling import Creation, parse_name, plan
from hatoba_plugins.values import (
    DeploymentItem,
    Gap,
    Handle,
    LogChunk,
    NotYet,
    OwnedDeployment,
    Released,
    ReleaseOutcome,
    ReplicaSet,
    ReplicaView,
    Target,
)

log = structlog.get_logger(__name__)
HANDLE_VERSION = 1
ASK_AGAIN = 0.3
TRY_AGAIN = 1.0
LOOK_AFTER = 5.0
"""Seconds without a pod after which a replica is looked for itself."""
MARKS = 100_000
"""Removed deployments that are remembered, to refuse a late apply."""


@dataclass(slots=True)
class _Kept:
    """A deployment: the newest target, and what was told of it."""

    target: Target
    problem: common_pb2.Cause | None = None
    told: ReplicaSet | None = None
    removed: bool = False


@dataclass(slots=True)
class _Made:
    """A replica that has, or is about to have, a ReplicaSet."""

    uid: str
    revision: int
    since: float
    let_go: bool = False
    deleted: bool = False
    """The cluster was told to delete it."""
    looked: float = 0.0
    run: str = ""
    """The pod that it was last seen in, and restarts of those before it."""
    restarts: int = 0
    counted: int = 0


class KubeDeployments:
    """Its deployment role."""

    def __init__(
        self,
        kube: Kube,
        ctx: BackendContext,
        options: K8sOptions,
        board: Board,
        lookups: Lookups,
        architectures: Callable[[common_pb2.Resources], Sequence[str]],
    ) -> None:
        self._kube = kube
        self._ctx = ctx
        self._options = options
        self._board = board
        self._lookups = lookups
        self._architectures = architectures
        self._path = f"/apis/apps/v1/namespaces/{options.namespace}/replicasets"
        self._feed: Feed[DeploymentItem] = Feed()
        self._kept: dict[str, _Kept] = {}
        self._made: dict[str, _Made] = {}
        self._removed: OrderedDict[str, None] = OrderedDict()
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        board.others = self._pods_changed
        board.gap = self._missed

    # -- what the core asks ---------------------------------------------------------------------

    def architectures(self, needs: common_pb2.Resources) -> Sequence[str]:
        """Those of the nodes that may have such a replica."""
        return self._architectures(needs)

    async def apply(self, target: Target) -> Handle:
        """Take it in; replicas follow. Raises Stale, Invalid."""
        await self._ctx.budget("apply")
        known = self._kept.get(target.uid)
        if target.uid in self._removed:
            raise Stale(f"deployment {target.uid} was removed")
        if known and target.generation < known.target.generation:
            raise Stale(f"generation {known.target.generation} of {target.uid} was taken in before")
        replicas.require_runnable(target, self._options)
        if known is None:
            known = self._kept[target.uid] = _Kept(target)
        known.target = target
        self._touch(target.uid)
        return Handle(HANDLE_VERSION, target.uid)

    async def watch(self) -> AsyncIterator[DeploymentItem]:
        """All there are once the cluster has told what it has, Synced, then each that changes."""
        await self._settled.wait()
        feed = cast(AsyncGenerator[DeploymentItem, None], self._feed.watch(self._all))
        async with aclosing(feed) as items:
            async for item in items:
                yield item

    def _all(self) -> list[ReplicaSet]:
        return [self._seen(kept) for kept in self._kept.values()]

    async def retire(self, uid: str, retired: Sequence[str]) -> None:
        """Those that leave are to drain and end."""
        await self._settled.wait()
        kept = self._kept.get(uid)
        if kept is None or kept.removed:
            return
        leaving = plan(kept.target, self._views(uid), self._ctx.rng).leaving
        self._let_go(leaving.intersection(retired))
        self._touch(uid)

    async def remove(self, uid: str, handle: Handle | None) -> ReleaseOutcome:
        """End all of it. Released when the cluster has nothing of it any more. Raises Retry."""
        del handle
        self._removed[uid] = None
        while len(self._removed) > MARKS:
            self._removed.popitem(last=False)
        if kept := self._kept.get(uid):
            kept.removed, kept.problem = True, None
        await self._settled.wait()
        self._let_go(name for name, made in self._made.items() if made.uid == uid)
        self._touch(uid)
        if await asked(self._anything_of(uid)):
            return NotYet(uid, ASK_AGAIN)
        self._bury(uid)
        return Released(uid)

    async def _anything_of(self, uid: str) -> bool:
        """Whether the cluster has a ReplicaSet or a pod of it."""
        query = {"labelSelector": self._lookups.ours(**{names.DEPLOYMENT: uid}), "limit": "1"}
        for path in (self._path, self._lookups.core_path("pods")):
            await self._ctx.budget("read")
            if (await self._kube.get(path, query))["items"]:
                return True
        return False

    async def owned(self, cluster_id: str) -> AsyncIterator[OwnedDeployment]:
        """All that the cluster has, and all that is wanted. Raises Retry."""
        uids: dict[str, None] = {}
        if cluster_id == self._ctx.cluster_id:
            uids |= dict.fromkeys(self._kept)
        for _, uid, _ in await asked(self._sets(cluster_id)):
            uids[uid] = None
        for uid in uids:
            kept = self._kept.get(uid)
            generation = kept.target.generation if kept else 0
            yield OwnedDeployment(uid, cluster_id, generation, Handle(HANDLE_VERSION, uid))

    async def replica_logs(
        self, replica: str, stream: str, tail_lines: int
    ) -> AsyncIterator[LogChunk]:
        """The last lines of its newest pod: the kubelet keeps both streams as one, so either
        is answered with both. Raises Invalid, Retry.
        """
        pods = self._board.pods_of(replica)
        if not pods or parse_name(replica) is None:
            raise Invalid(f"there is no pod of a replica {replica!r}")
        pod = max(pods, key=lambda one: one.created)
        query = {"container": names.MAIN, "tailLines": str(tail_lines), "timestamps": "true"}
        path, tail = f"{self._lookups.core_path('pods')}/{pod.name}/log", Tail()
        try:
            await self._ctx.budget("read")
            async with self._kube.lines(path, query, 30.0) as lines:
                told = [tail.take(replica, stream, line) async for line in lines]
        except (Refusal, Unreached) as error:
            raise Retry(str(error)) from error
        for chunk in told:
            if chunk is not None:
                yield chunk
        if tail.cursor.refused:
            raise Retry(f"node {pod.node}: {tail.cursor.refused.decode(errors='replace').strip()}")

    # -- converging -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry out what is wanted, until cancelled."""
        await self._board.opened.wait()
        await self._adopt()
        self._settled.set()
        while True:
            while self._dirty:
                uid = next(iter(self._dirty))
                del self._dirty[uid]
                await self._converge(uid)
            self._wake.clear()
            await self._wake.wait()

    async def look(self) -> None:
        """Look now and then after replicas without a pod: they may have been deleted behind us."""
        while True:
            await self._ctx.clock.sleep(TRY_AGAIN)
            now = self._ctx.clock.monotonic()
            for name, made in list(self._made.items()):
                if self._board.pods_of(name) or made.looked + LOOK_AFTER > now:
                    continue
                made.looked = now
                await self._look_for(name)

    async def _look_for(self, name: str) -> None:
        try:
            await self._ctx.budget("read")
            await self._kube.get(f"{self._path}/{name}")
        except Refusal as refusal:
            if refusal.status == 404 and not self._lookups.settling.under_way(name):
                self._forget(name)
        except Unreached:
            return

    async def _adopt(self) -> None:
        """Take in what there is, for as long as it takes to be told."""
        while True:
            try:
                found = await self._sets(self._ctx.cluster_id)
            except (Refusal, Unreached) as error:
                log.warning("k8s.replicas_unknown", error=str(error))
                await self._ctx.clock.sleep(TRY_AGAIN)
                continue
            for name, uid, revision in found:
                self._made.setdefault(name, _Made(uid, revision, self._ctx.clock.time()))
                self._touch(uid)
            return

    async def _sets(self, cluster_id: str) -> list[tuple[str, str, int]]:
        await self._ctx.budget("list")
        query = {"labelSelector": f"{names.CLUSTER}={cluster_id}"}
        async with aclosing(self._kube.every(self._path, query)) as found:
            return [one async for told in found if (one := replicas.told_set(told))]

    async def _converge(self, uid: str) -> None:
        """One step towards the target, and tell of it."""
        kept = self._kept.get(uid)
        if kept is not None:
            self._tell(kept)
        try:
            if kept is not None and not kept.removed:
                step = plan(kept.target, self._views(uid), self._ctx.rng)
                self._let_go(step.end)
                for creation in step.create:
                    await self._create(kept.target, creation)
            for name, made in list(self._made.items()):
                if made.uid == uid and made.let_go and not made.deleted:
                    await self._delete(name, made)
            if kept is not None:
                kept.problem = None
        except (Refusal, Unreached) as error:
            self._note(uid, error)
        if kept is not None:
            self._tell(kept)

    def _note(self, uid: str, error: Refusal | Unreached) -> None:
        """It is tried again; meanwhile the deployment says why it is not as it should be."""
        log.warning("k8s.replicas_failed", deployment=uid, error=str(error))
        kept = self._kept.get(uid)
        if kept is not None and isinstance(error, Refusal):
            kept.problem = common_pb2.Cause(
                code=common_pb2.CAUSE_CODE_BACKEND_FAILED,
                origin=common_pb2.ORIGIN_INFRASTRUCTURE,
                message=error.message[:1000],
                retryable=True,
            )
        after = error.after if isinstance(error, Refusal) else None
        loop = asyncio.get_running_loop()
        loop.call_later(after or TRY_AGAIN, self._touch, uid)

    async def _create(self, target: Target, creation: Creation) -> None:
        """Make a replica; a reply that is lost is found out by its name."""
        now = self._ctx.clock
        made = _Made(target.uid, creation.revision, now.time(), looked=now.monotonic())
        self._made[creation.name] = made
        await self._ctx.budget("create")
        manifest = replicas.replica_set(self._ctx, self._options, target, creation)
        try:
            await self._kube.create(self._path, manifest)
        except Refusal:
            self._made.pop(creation.name, None)
            raise
        except Unreached as error:
            if error.sent:
                self._lookups.settling.asked(creation.name)
            else:
                self._made.pop(creation.name, None)
            raise

    async def _delete(self, name: str, made: _Made) -> None:
        await self._ctx.budget("delete")
        try:
            await self._kube.delete(f"{self._path}/{name}", {"propagationPolicy": "Background"})
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            if self._lookups.settling.under_way(name):
                # What made it was not answered and may take effect yet: nobody would end it then.
                asyncio.get_running_loop().call_later(TRY_AGAIN, self._touch, made.uid)
                return
        made.deleted = True
        if not self._board.pods_of(name):
            self._forget(name)

    def _let_go(self, leaving: Iterable[str]) -> None:
        for name in leaving:
            self._made[name].let_go = True

    # -- what pods tell -------------------------------------------------------------------------

    def _pods_changed(self, name: str) -> None:
        """Something of a replica's pods changed."""
        made = self._made.get(name)
        if made is None:
            return
        pods = self._board.pods_of(name)
        if made.deleted and not pods:
            self._forget(name)
        self._count(made, name)
        made.looked = self._ctx.clock.monotonic() - LOOK_AFTER + TRY_AGAIN
        self._touch(made.uid)

    def _missed(self) -> None:
        self._feed.publish([Gap()])

    def _count(self, made: _Made, name: str) -> None:
        """Restarts over all its pods: a new pod is a restart as well."""
        for pod in self._board.pods_of(name):
            if pod.deleting or pod.over:
                continue
            if made.run and made.run != pod.uid:
                made.counted, made.restarts = made.counted + made.restarts + 1, 0
            made.run, made.restarts = pod.uid, max(made.restarts, pod.main.restarts)

    def _forget(self, name: str) -> None:
        made = self._made.pop(name, None)
        if made is not None:
            self._touch(made.uid)

    def _bury(self, uid: str) -> None:
        for name in [name for name, made in self._made.items() if made.uid == uid]:
            del self._made[name]
        kept = self._kept.pop(uid, None)
        if kept is not None:
            self._feed.publish([ReplicaSet(uid, kept.target.generation, ())])

    def _touch(self, uid: str) -> None:
        self._dirty[uid] = None
        self._wake.set()

    # -- telling --------------------------------------------------------------------------------

    def _views(self, uid: str) -> list[ReplicaView]:
        return [self._view(name, made) for name, made in self._made.items() if made.uid == uid]

    def _view(self, name: str, made: _Made) -> ReplicaView:
        pods = self._board.pods_of(name)
        seen = replicas.view_of(name, made.revision, pods, made.let_go, made.since)
        return replace(seen, restarts=made.counted + made.restarts)

    def _seen(self, kept: _Kept) -> ReplicaSet:
        uid, views = kept.target.uid, self._views(kept.target.uid)
        leaving: frozenset[str] = frozenset()
        if not kept.removed:
            leaving = plan(kept.target, views, self._ctx.rng).leaving
        problem = self._no_room(uid) or kept.problem
        return ReplicaSet(uid, kept.target.generation, tuple(views), leaving, "us", problem)

    def _no_room(self, uid: str) -> common_pb2.Cause | None:
        for name, made in self._made.items():
            if made.uid == uid:
                for pod in self._board.pods_of(name):
                    if cause := replicas.no_room(pod):
                        return cause
        return None

    def _tell(self, kept: _Kept) -> None:
        told = self._seen(kept)
        if told != kept.told:
            kept.told = told
            self._feed.publish([told])

    def end(self) -> None:
        """End every watch."""
        self._feed.end()
        self._settled.set()
