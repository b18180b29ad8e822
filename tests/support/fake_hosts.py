"""Hosts on the real hub, played in this process, for tests of who gets which replica."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from domain_rows import new_job, rows_of

from hatoba.v1 import deployment_pb2, worker_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.hosts import HostsOptions, HostsType
from hatoba_plugins.backends.hosts.deployments import HostDeployments
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.rolling import parse_name
from hatoba_plugins.values import ReplicaSet, RevisionTarget, Target
from hatoba_scheduler.control.hub import Hub, Session
from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.domain.records import Attempt, AttemptWrite, Change, Host, Resources
from hatoba_scheduler.domain.states import AttemptState, Release
from hatoba_scheduler.store.base import ServerIdentity, Store

CLUSTER = "cluster"
UID = "0123456789abcdef" * 2
PENDING = deployment_pb2.REPLICA_STATE_PENDING
STARTING = deployment_pb2.REPLICA_STATE_STARTING
READY = deployment_pb2.REPLICA_STATE_READY
UNHEALTHY = deployment_pb2.REPLICA_STATE_UNHEALTHY
DRAINING = deployment_pb2.REPLICA_STATE_DRAINING


class KeptHosts:
    """The part of a store that the hub uses."""

    identity = ServerIdentity(CLUSTER, 1)

    def __init__(self) -> None:
        self.kept: dict[str, Host] = {}

    async def put_host(self, host: Host) -> None:
        """Keep it."""
        self.kept[host.name] = host

    async def hosts(self) -> list[Host]:
        """All that were kept."""
        return list(self.kept.values())


class FakeHost:
    """One host: takes orders and reports as it is told to."""

    def __init__(self, name: str, **hello: Any) -> None:
        self.name = name
        self.has: dict[str, deployment_pb2.Replica] = {}
        self.specs: dict[str, worker_pb2.ReplicaSpec] = {}
        self.order = 0
        self._hello = {"cpus": 4.0, "memory_bytes": 8 << 30, "slots": 8, **hello}
        self._hub: Hub | None = None
        self._session: Session | None = None

    async def connect(self, hub: Hub, *, report: bool = True) -> None:
        """Open a stream and say what is there."""
        hello = worker_pb2.WorkerHello(
            host=self.name, incarnation="incarnation", protocol=1, **self._hello
        )
        self._hub, self._session = hub, await hub.open(hello)
        hub.inventory_complete(self._session)
        if report:
            self.report()

    async def leave(self) -> None:
        """The stream ends."""
        assert self._hub is not None
        assert self._session is not None
        await self._hub.left(self._session)

    def orders(self) -> list[worker_pb2.ReplicaOrder]:
        """What was ordered on this stream and not obeyed yet."""
        assert self._session is not None
        items, self._session.out = self._session.out, []
        return [item.replicas for item in items if item.WhichOneof("item") == "replicas"]

    def obey(self, state: deployment_pb2.ReplicaState.ValueType = READY) -> None:
        """Carry out all orders: new ones are in this state at once, others gone."""
        for order in self.orders():
            assert order.order > self.order
            self.order = order.order
            for spec in order.replicas:
                assert not (spec.name in self.has and spec.serving.handler), "sent twice"
                if spec.name not in self.has:
                    assert spec.serving.handler, f"{spec.name} was ordered by its name alone"
                    self.specs[spec.name] = spec
                    self._put(spec, state)
            names = {spec.name for spec in order.replicas}
            self.has = {name: one for name, one in self.has.items() if name in names}
        self.report()

    def _put(self, spec: worker_pb2.ReplicaSpec, state: int) -> None:
        one = deployment_pb2.Replica(
            name=spec.name,
            revision=spec.revision,
            address=f"{self.name}:{7000 + len(self.specs)}",
            resources=spec.resources,
            gpus=spec.gpus,
        )
        one.state = cast(Any, state)
        self.has[spec.name] = one

    def put(self, name: str, state: int) -> None:
        """A replica changes, and that is told."""
        self.has[name].state = cast(Any, state)
        self._told(worker_pb2.ReplicaReport(order=self.order, replicas=[self.has[name]]))

    def report(self) -> None:
        """Say how all are."""
        replicas = list(self.has.values())
        self._told(worker_pb2.ReplicaReport(order=self.order, complete=True, replicas=replicas))

    def _told(self, report: worker_pb2.ReplicaReport) -> None:
        assert self._hub is not None
        assert self._session is not None
        self._hub.replicas_told(self._session, report)


class Core:
    """A hub with the backend on it, and a clock that is moved by hand."""

    def __init__(self, hub: Hub, clock: FakeClock, role: HostDeployments) -> None:
        self.hub = hub
        self.clock = clock
        self.role = role

    async def settle(self) -> None:
        """Let everything that is due now happen."""
        await self.clock.advance(0.0)

    async def apply(self, target: Target) -> None:
        """Apply a target and let it take effect."""
        await self.role.apply(target)
        await self.settle()

    async def obey(self, *hosts: FakeHost, state: Any = READY) -> None:
        """Have hosts carry out their orders, and let that be seen."""
        for host in hosts:
            host.obey(state)
        await self.settle()

    async def retire_all(self, uid: str = UID) -> None:
        """Retire what leaves."""
        await self.role.retire(uid, sorted((await self.seen(uid)).leaving))
        await self.settle()

    async def seen(self, uid: str = UID) -> ReplicaSet:
        """What a new watch tells of a deployment."""
        async for item in self.role.watch():
            if isinstance(item, ReplicaSet) and item.uid == uid:
                return item
            if not isinstance(item, ReplicaSet):
                break
        return ReplicaSet(uid, 0, ())


@asynccontextmanager
async def core_on(
    store: KeptHosts | None = None, clock: FakeClock | None = None
) -> AsyncIterator[Core]:
    """A core that starts; with the store of an earlier one it knows its hosts."""
    clock = clock or FakeClock()
    hub = Hub(cast(Store, store or KeptHosts()), clock, "0")
    await hub.recover()

    async def no_budget(operation: str) -> None:
        raise AssertionError(operation)

    async def no_secret(name: str) -> str:
        raise KeyError(name)

    rng = random.Random(7)
    ctx = BackendContext(clock, rng, CLUSTER, 1, "127.0.0.1:1", no_budget, no_secret, hub)
    async with HostsType().open("hosts", HostsOptions(), ctx) as backend:
        core = Core(hub, clock, backend.deployments)
        await core.settle()
        yield core


def template(**fields: Any) -> worker_pb2.ReplicaSpec:
    """What replicas are made from."""
    spec = worker_pb2.ReplicaSpec(deployment="projects/default/deployments/reader", **fields)
    spec.serving.handler = "serve:Model"
    return spec


def target(
    wanted: dict[int, int],
    generation: int = 1,
    made_from: worker_pb2.ReplicaSpec | None = None,
    **fields: Any,
) -> Target:
    """So many replicas of each revision."""
    revisions = []
    for revision, count in wanted.items():
        spec = worker_pb2.ReplicaSpec()
        spec.CopyFrom(made_from or template())
        spec.revision = revision
        revisions.append(RevisionTarget(revision, count, 100, spec))
    name = "projects/default/deployments/reader"
    return Target(name, UID, generation, tuple(revisions), **fields)


def attempt(name: str, host: str, reserved: Resources, gpus: tuple[str, ...] = ()) -> Attempt:
    """A job's attempt that holds something of a host."""
    return Attempt(
        name=name,
        job_uid="job",
        index=0,
        number=1,
        fence=1,
        backend="hosts",
        host=host,
        gpus=gpus,
        state=AttemptState.RUNNING,
        version=1,
        release=Release.HELD,
        fenced=True,
        span_id="",
        create_time=0,
        reserved=reserved,
    )


def committed(*attempts: Attempt) -> Commit:
    """A commit that changed these."""
    writes = tuple(AttemptWrite(one, 1) for one in attempts)
    rows = rows_of(new_job("job"))
    return Commit(rows.job, Change(rows.job, 1, attempts=writes), rows)


def revision_of(name: str) -> int:
    """The revision in a replica's name."""
    known = parse_name(name)
    assert known is not None
    return known.revision
