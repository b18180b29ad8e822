"""Deployments on hosts: which replicas each host shall have, and what becomes of them.

A host keeps to what it was ordered by itself, restarts included. Here is decided where replicas
are; what is known of them is what hosts report, so that nothing has to be remembered over a restart
of the core: a replica's name tells its deployment and revision.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import cast

from hatoba.host_names import server_name
from hatoba.v1 import common_pb2, deployment_pb2, worker_pb2
from hatoba_plugins.backend import BackendContext, HostRoom
from hatoba_plugins.backends.hosts.placement import Needs, choose, taken, why_nowhere
from hatoba_plugins.errors import Invalid, Retry, Stale
from hatoba_plugins.feed import Feed
from hatoba_plugins.rolling import Creation, parse_name, plan
from hatoba_plugins.values import (
    DeploymentItem,
    Handle,
    LogChunk,
    NotYet,
    OwnedDeployment,
    Released,
    ReleaseOutcome,
    ReplicaPhase,
    ReplicaSet,
    ReplicaView,
    Target,
)

HANDLE_VERSION = 1
FIRST_REPORTS = 30.0
"""Seconds after its opening in which hosts are waited for before anything is placed anew."""
LOOK_EVERY = 1.0
ASK_AGAIN = 0.25
MARKS = 100_000
"""Removed deployments that are remembered, to refuse a late apply."""

Replicas = Mapping[str, deployment_pb2.Replica]
_PHASES = {
    deployment_pb2.REPLICA_STATE_STARTING: ReplicaPhase.STARTING,
    deployment_pb2.REPLICA_STATE_READY: ReplicaPhase.READY,
    deployment_pb2.REPLICA_STATE_UNHEALTHY: ReplicaPhase.UNHEALTHY,
    deployment_pb2.REPLICA_STATE_DRAINING: ReplicaPhase.DRAINING,
}


@dataclass(frozen=True, slots=True)
class _Placed:
    """A replica that a host shall have, since when, and its order: whole, or the name alone."""

    host: str
    revision: int
    since: float
    spec: worker_pb2.ReplicaSpec


@dataclass(slots=True)
class _Kept:
    """A deployment: the newest target, and the replicas that shall be, by name."""

    target: Target
    placed: dict[str, _Placed] = field(default_factory=dict)
    problem: common_pb2.Cause | None = None
    told: ReplicaSet | None = None
    removed: bool = False


class HostDeployments:
    """Keeps deployments running on the hosts of this scheduler."""

    def __init__(self, ctx: BackendContext, away_after: float) -> None:
        self._hub = ctx.workers
        self._clock = ctx.clock
        self._rng = ctx.rng
        self._cluster_id = ctx.cluster_id
        self._away_after = away_after
        self._opened = ctx.clock.monotonic()
        self._feed: Feed[DeploymentItem] = Feed()
        self._kept: dict[str, _Kept] = {}
        self._removed: OrderedDict[str, None] = OrderedDict()
        self._reported: dict[str, dict[str, Replicas]] = {}
        self._let_go: set[str] = set()
        self._left_at: dict[str, float] = {}
        self._away: set[str] = set()
        self._draining: frozenset[str] = frozenset()
        self._settled = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def running(
        cls, ctx: BackendContext, away_after: float
    ) -> AsyncIterator[HostDeployments]:
        """One that follows the hosts until it is left."""
        made = cls(ctx, away_after)
        for room in ctx.workers.hosts_for_replicas():
            made._host_changed(room.name)
        made._settle()
        async with asyncio.TaskGroup() as tasks:
            following = [
                tasks.create_task(made._follow(), name="hosts:replicas"),
                tasks.create_task(made._look(), name="hosts:away"),
            ]
            try:
                yield made
            finally:
                made._feed.end()
                made._settled.set()
                for task in following:
                    task.cancel()

    # -- what the core asks ---------------------------------------------------------------------

    async def apply(self, target: Target) -> Handle:
        """Take it in; hosts are told at once. Raises Stale, Invalid."""
        known = self._kept.get(target.uid)
        if target.uid in self._removed:
            raise Stale(f"deployment {target.uid} was removed")
        if known and target.generation < known.target.generation:
            raise Stale(f"generation {known.target.generation} of {target.uid} was taken in before")
        _require_runnable(target)
        if known is None:
            known = self._kept[target.uid] = _Kept(target)
        known.target = target
        for host, reported in self._reported.items():
            self._adopt(known, host, reported.get(target.uid, {}))
        self._converge(known)
        return Handle(HANDLE_VERSION, target.uid)

    async def watch(self) -> AsyncIterator[DeploymentItem]:
        """All there are once hosts have told what they have, Synced, then each that changes."""
        await self._settled.wait()
        feed = cast(AsyncGenerator[DeploymentItem, None], self._feed.watch(self._all))
        async with aclosing(feed) as items:
            async for item in items:
                yield item

    def _all(self) -> list[ReplicaSet]:
        return [self._seen(kept) for kept in self._kept.values()]

    async def retire(self, uid: str, replicas: Sequence[str]) -> None:
        """Those that leave are to drain and end."""
        kept = self._kept.get(uid)
        if kept is None or kept.removed:
            return
        leaving = plan(kept.target, self._planned(kept), self._rng).leaving
        self._drop(kept, leaving.intersection(replicas))
        self._converge(kept)

    async def remove(self, uid: str, handle: Handle | None) -> ReleaseOutcome:
        """End all of it. Released when no host has anything of it any more."""
        del handle
        self._removed[uid] = None
        while len(self._removed) > MARKS:
            self._removed.popitem(last=False)
        kept = self._kept.get(uid)
        if kept is not None:
            kept.removed, kept.problem = True, None
            self._drop(kept, set(kept.placed))
            self._converge(kept)
        for host in self._hosts_of(uid):
            self._order(host)
        if self._hosts_of(uid) or not self._settled.is_set():
            return NotYet(uid, ASK_AGAIN)
        self._bury(uid)
        return Released(uid)

    async def owned(self, cluster_id: str) -> AsyncIterator[OwnedDeployment]:
        """All that hosts report and all that is wanted; they serve one installation only."""
        if cluster_id != self._cluster_id:
            return
        uids = dict.fromkeys(self._kept)
        for reported in self._reported.values():
            uids |= dict.fromkeys(reported)
        for uid in uids:
            kept = self._kept.get(uid)
            generation = kept.target.generation if kept else 0
            yield OwnedDeployment(uid, cluster_id, generation, Handle(HANDLE_VERSION, uid))

    async def replica_logs(
        self, replica: str, stream: str, tail_lines: int
    ) -> AsyncIterator[LogChunk]:
        """The last lines that its host has. Raises Invalid for an unknown one, and Retry."""
        name = parse_name(replica)
        uid = name.uid if name else ""
        hosts = [h for h, known in self._reported.items() if replica in known.get(uid, {})]
        if not hosts:
            raise Invalid(f"no host has a replica {replica!r}; its last lines are in its cause")
        found = await self._hub.replica_tail(hosts[0], replica, stream, tail_lines)
        if found is None:
            raise Retry(f"host {hosts[0]!r} does not answer", after=ASK_AGAIN)
        if found.data:
            yield found

    # -- what hosts tell ------------------------------------------------------------------------

    async def _follow(self) -> None:
        async for host in self._hub.watch_replicas():
            self._host_changed(host)

    def _host_changed(self, host: str) -> None:
        """Something of a host changed: take in its replicas, and see to whom that matters."""
        before, was = self._reported.get(host, {}), self._standing(host)
        now = self._reported[host] = _by_deployment(self._hub.replicas(host) or {})
        self._let_go -= _names(before) - _names(now)
        self._note_connection()
        for uid in before.keys() | now.keys():
            if before.get(uid) != now.get(uid):
                self._replicas_changed(host, uid)
        self._order(host)
        if was != self._standing(host):
            self._converge_all(host)
        self._settle()
        for kept in list(self._kept.values()):
            if kept.problem is not None:
                self._converge(kept)

    def _standing(self, host: str) -> tuple[bool, bool]:
        return host in self._away, host in self._draining

    def _replicas_changed(self, host: str, uid: str) -> None:
        kept = self._kept.get(uid)
        if kept is not None:
            self._adopt(kept, host, self._reported[host].get(uid, {}))
            self._miss(kept, host)
            self._converge(kept)
        if uid in self._removed and not self._hosts_of(uid):
            self._bury(uid)

    async def _look(self) -> None:
        """Notice what nobody tells: that time goes by."""
        while True:
            await self._clock.sleep(LOOK_EVERY)
            before = frozenset(self._away)
            self._note_connection()
            self._settle()
            for host in before ^ self._away:
                self._converge_all(host)

    def _note_connection(self) -> None:
        now = self._clock.monotonic()
        rooms = self._hub.hosts_for_replicas()
        self._draining = frozenset(room.name for room in rooms if room.draining)
        for room in rooms:
            if room.connected or room.declared_gone:
                self._left_at.pop(room.name, None)
                self._away.discard(room.name)
            elif now - self._left_at.setdefault(room.name, now) >= self._away_after:
                self._away.add(room.name)
            if room.declared_gone:
                self._forget_host(room.name)

    def _forget_host(self, host: str) -> None:
        for kept in self._kept.values():
            lost = [name for name, one in kept.placed.items() if one.host == host]
            for name in lost:
                del kept.placed[name]
            if lost:
                self._converge(kept)

    def _converge_all(self, host: str) -> None:
        for kept in list(self._kept.values()):
            if any(one.host == host for one in kept.placed.values()):
                self._converge(kept)

    def _settle(self) -> None:
        """Begin to place once all hosts have told what they have, or were given the time to."""
        if self._settled.is_set():
            return
        waited = self._clock.monotonic() - self._opened >= FIRST_REPORTS
        rooms = self._hub.hosts_for_replicas()
        heard = all(room.name in self._reported and self._has_told(room) for room in rooms)
        if waited or heard:
            self._settled.set()
            for kept in list(self._kept.values()):
                self._converge(kept)

    def _has_told(self, room: HostRoom) -> bool:
        return room.declared_gone or self._hub.replicas(room.name) is not None

    # -- converging -----------------------------------------------------------------------------

    def _adopt(self, kept: _Kept, host: str, reported: Replicas) -> None:
        """Replicas of former orders are wanted until the planner says otherwise."""
        for name, replica in reported.items():
            known = kept.placed.get(name)
            if known is not None or name in self._let_go or kept.removed:
                continue
            if replica.state != deployment_pb2.REPLICA_STATE_DRAINING:
                spec = _spec(kept.target, Creation(name, replica.revision), replica.gpus)
                kept.placed[name] = _Placed(host, replica.revision, self._clock.time(), spec)

    def _miss(self, kept: _Kept, host: str) -> None:
        """A host lost what only it knew: that cannot be made again, something else will be."""
        has = self._hub.replicas(host) or {}
        for name, one in list(kept.placed.items()):
            if one.host == host and name not in has and not one.spec.serving.handler:
                del kept.placed[name]

    def _converge(self, kept: _Kept) -> None:
        """One step towards the target, and tell of it."""
        if self._settled.is_set() and not kept.removed:
            step = plan(kept.target, self._planned(kept), self._rng)
            self._drop(kept, step.end)
            kept.problem = self._place(kept, step.create)
        told = self._seen(kept)
        if told != kept.told:
            kept.told = told
            self._feed.publish([told])

    def _place(self, kept: _Kept, wanted: Sequence[Creation]) -> common_pb2.Cause | None:
        """Find hosts for new replicas; why that was not possible for all."""
        if not wanted:
            return None
        rooms = {room.name: room for room in self._hub.hosts_for_replicas()}
        have = Counter(one.host for one in kept.placed.values())
        touched: dict[str, None] = {}
        problem: common_pb2.Cause | None = None
        for one in wanted:
            needs = Needs.of(_template(kept.target, one.revision))
            found = choose(needs, filter(self._may_be_asked, rooms.values()), have)
            if found is None:
                problem = problem or _no_room(one, why_nowhere(needs, list(rooms.values())))
                continue
            spec = _spec(kept.target, one, found.free_gpus[: needs.share.gpus])
            kept.placed[one.name] = _Placed(found.name, one.revision, self._clock.time(), spec)
            rooms[found.name] = taken(found, needs)
            have[found.name] += 1
            touched[found.name] = None
        for host in touched:
            self._order(host)
        return problem

    def _may_be_asked(self, room: HostRoom) -> bool:
        return self._hub.replicas(room.name) is not None

    def _drop(self, kept: _Kept, names: Iterable[str]) -> None:
        """Let replicas go: their hosts drain and end them."""
        gone = [(name, one.host) for name in names if (one := kept.placed.pop(name, None))]
        self._let_go |= {name for name, host in gone if name in (self._hub.replicas(host) or {})}
        for host in dict.fromkeys(host for _, host in gone):
            self._order(host)

    def _order(self, host: str) -> None:
        """Tell a host what it shall have, and keep what nobody has asked for yet."""
        specs = {
            name: one.spec
            for kept in self._kept.values()
            for name, one in kept.placed.items()
            if one.host == host
        }
        for uid, reported in self._reported.get(host, {}).items():
            if uid not in self._kept and uid not in self._removed:
                specs |= {name: worker_pb2.ReplicaSpec(name=name) for name in reported}
        if specs or self._hub.replicas(host):
            self._hub.order_replicas(host, [specs[name] for name in sorted(specs)])

    def _hosts_of(self, uid: str) -> list[str]:
        """Hosts that have something of a deployment, or may yet."""
        names = [room.name for room in self._hub.hosts_for_replicas()]
        return [n for n in names if uid in _by_deployment(self._hub.replicas(n) or {})]

    def _bury(self, uid: str) -> None:
        """Nothing is left of a removed deployment: tell it once."""
        kept = self._kept.pop(uid, None)
        if kept is not None:
            self._feed.publish([ReplicaSet(uid, kept.target.generation, ())])

    # -- seeing ---------------------------------------------------------------------------------

    def _planned(self, kept: _Kept) -> list[ReplicaView]:
        """Replicas that the planner counts: those on a host that is away for long are replaced, and
        those on one that is drained once others are ready."""
        return [
            replace(one, evicted=one.host in self._draining)
            for one in self._views(kept)
            if one.host not in self._away
        ]

    def _seen(self, kept: _Kept) -> ReplicaSet:
        target, leaving = kept.target, frozenset[str]()
        if self._settled.is_set() and not kept.removed:
            leaving = plan(target, self._planned(kept), self._rng).leaving
        views = tuple(self._views(kept))
        return ReplicaSet(target.uid, target.generation, views, leaving, problem=kept.problem)

    def _views(self, kept: _Kept) -> list[ReplicaView]:
        """All that there is and all that shall be, by name."""
        uid = kept.target.uid
        views = {
            name: ReplicaView(
                name,
                one.revision,
                ReplicaPhase.PENDING,
                host=one.host,
                since=one.since,
                gpus=tuple(one.spec.gpus),
            )
            for name, one in kept.placed.items()
        }
        for host, reported in self._reported.items():
            for name, replica in reported.get(uid, {}).items():
                views[name] = self._view(kept, host, replica)
        return [views[name] for name in sorted(views)]

    def _view(self, kept: _Kept, host: str, replica: deployment_pb2.Replica) -> ReplicaView:
        phase = _PHASES.get(replica.state, ReplicaPhase.PENDING)
        cause = replica.cause if replica.HasField("cause") else None
        placed = kept.placed.get(replica.name)
        if placed is None:
            phase = ReplicaPhase.DRAINING
        elif host in self._away and phase is not ReplicaPhase.DRAINING:
            phase, cause = ReplicaPhase.UNHEALTHY, _host_away(host, self._away_after)
        since = replica.since.ToNanoseconds() / 1e9
        return ReplicaView(
            replica.name,
            replica.revision,
            phase,
            host=host,
            address=replica.address if phase is ReplicaPhase.READY else "",
            restarts=replica.restarts,
            since=since or (placed.since if placed else 0.0),
            cause=cause,
            server_name=server_name(host) if replica.secure else "",
            gpus=tuple(replica.gpus),
        )


def _by_deployment(replicas: Replicas) -> dict[str, Replicas]:
    found: dict[str, dict[str, deployment_pb2.Replica]] = {}
    for name, replica in replicas.items():
        known = parse_name(name)
        if known is not None:
            found.setdefault(known.uid, {})[name] = replica
    return dict(found)


def _names(reported: Mapping[str, Replicas]) -> set[str]:
    return {name for replicas in reported.values() for name in replicas}


def _template(target: Target, revision: int) -> worker_pb2.ReplicaSpec:
    return next(one.template for one in target.revisions if one.revision == revision)


def _spec(target: Target, one: Creation, gpus: Iterable[str]) -> worker_pb2.ReplicaSpec:
    """What a host is told of a replica; of one that no template is known for its name alone."""
    spec = worker_pb2.ReplicaSpec(name=one.name)
    if any(each.revision == one.revision for each in target.revisions):
        spec.CopyFrom(_template(target, one.revision))
        spec.name = one.name
        spec.gpus[:] = gpus
    return spec


def _require_runnable(target: Target) -> None:
    """Raise Invalid for what no host can ever run."""
    for one in target.revisions:
        if not one.template.serving.handler:
            raise Invalid(f"revision {one.revision} has no handler; register the model with one")


def _no_room(one: Creation, why: str) -> common_pb2.Cause:
    return common_pb2.Cause(
        code=common_pb2.CAUSE_CODE_NO_CAPACITY,
        origin=common_pb2.ORIGIN_CAPACITY,
        message=why,
        retryable=True,
        evidence={"revision": str(one.revision)},
    )


def _host_away(host: str, seconds: float) -> common_pb2.Cause:
    return common_pb2.Cause(
        code=common_pb2.CAUSE_CODE_HOST_LOST,
        origin=common_pb2.ORIGIN_INFRASTRUCTURE,
        message=f"Host {host!r} has been away for more than {seconds:g} s.",
        retryable=True,
    )
