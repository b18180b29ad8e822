"""A DeploymentStore in memory, and a deployment backend that does what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from hatoba_plugins.backend import DeploymentBackend
from hatoba_plugins.errors import BackendError
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
    Synced,
    Target,
)
from hatoba_scheduler.domain.deployments import (
    Change,
    Deployment,
    DeploymentEvent,
    Prediction,
    Revision,
    Served,
)
from hatoba_scheduler.domain.device_rollouts import Row
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.store.base import Duplicate, RequestKey, Stale
from hatoba_scheduler.store.deployments import DeploymentStore, Kept, KnownRouter, Taken


@dataclass
class MemoryDeployments:
    """Guards every write as a real store does; it outlives the book that uses it."""

    kept: dict[str, Deployment] = field(default_factory=dict)
    kept_revisions: dict[tuple[str, int], Revision] = field(default_factory=dict)
    log: list[tuple[str, DeploymentEvent]] = field(default_factory=list)
    routes: dict[str, tuple[int, tuple[Served, ...]]] = field(default_factory=dict)
    known_routers: dict[str, KnownRouter] = field(default_factory=dict)
    requests: dict[RequestKey, str] = field(default_factory=dict)
    rows: dict[tuple[str, int, str], Row] = field(default_factory=dict)
    fail_with: Exception | None = None
    """Raised by the next writes, until it is taken away."""

    def as_store(self) -> DeploymentStore:
        """For those who ask for the whole protocol."""
        return cast(DeploymentStore, self)

    async def load(self) -> list[Kept]:
        """All of them."""
        return [
            Kept(one, self._revisions(uid), self.routes.get(uid, (0, ()))[1])
            for uid, one in self.kept.items()
        ]

    def _revisions(self, uid: str) -> tuple[Revision, ...]:
        return tuple(one for (own, _), one in self.kept_revisions.items() if own == uid)

    async def apply(
        self, change: Change, request: RequestKey | None = None, rows: Sequence[Row] = ()
    ) -> Stale | Taken | Duplicate | None:
        """Write what its guard lets through."""
        self._fail()
        if request is not None and request in self.requests:
            return Duplicate(self.requests[request])
        one = change.deployment
        known = self.kept.get(one.uid)
        if (known.version if known else 0) != change.expected:
            return Stale.STALE
        named = {(other.project, other.name) for other in self.kept.values()}
        if known is None and (one.project, one.name) in named:
            return Taken.TAKEN
        self.kept[one.uid] = one
        self.kept_revisions |= {(one.uid, r.revision): r for r in change.revisions}
        self.log += [(one.uid, event) for event in change.events]
        self.rows |= {(row.deployment, row.number, row.device): row for row in rows}
        if request is not None:
            self.requests[request] = one.uid
        return None

    async def remove(self, uid: str) -> None:
        """Forget it."""
        self._fail()
        del self.kept[uid]
        self.routes.pop(uid, None)

    async def revision(self, uid: str, number: int) -> Revision | None:
        """One revision."""
        return self.kept_revisions.get((uid, number))

    async def put_route(self, uid: str, cursor: int, served: Sequence[Served]) -> None:
        """Keep it."""
        self._fail()
        self.routes[uid] = (cursor, tuple(served))

    async def newest_cursor(self) -> int:
        """The highest there is."""
        return max((cursor for cursor, _ in self.routes.values()), default=0)

    async def put_router(self, router: KnownRouter) -> None:
        """Keep it."""
        self.known_routers[router.url] = router

    async def routers(self) -> list[KnownRouter]:
        """All of them."""
        return list(self.known_routers.values())

    async def prediction(self, trace_id: str) -> Prediction | None:
        """None is kept here."""
        del trace_id
        return None

    def kinds(self) -> list[str]:
        """Kinds of all events, in order."""
        return [event.kind for _, event in self.log]

    def _fail(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with


@dataclass
class Tokens:
    """Who may ask for predictions, as the authenticator tells it."""

    records: list[TokenRecord] = field(default_factory=list)
    notify: list[Callable[[], None]] = field(default_factory=list)

    def access(self) -> list[TokenRecord]:
        """All of them."""
        return self.records

    def on_access(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Remember whom to tell."""
        self.notify.append(notify)
        return lambda: None

    def changed(self) -> None:
        """Tell that it is another list now."""
        for one in self.notify:
            one()


@dataclass
class ScriptedBackend:
    """What it is asked for is remembered; what it shows, a test says."""

    applied: list[Target] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    errors: list[BackendError] = field(default_factory=list)
    """Raised by the next calls, one each."""
    hang: set[str] = field(default_factory=set)
    """Deployments (resource names) whose apply never returns."""
    not_yet: int = 0
    """So many removals are not over yet."""
    tell: asyncio.Queue[DeploymentItem] = field(default_factory=asyncio.Queue)

    def as_backend(self) -> DeploymentBackend:
        """For those who ask for the whole protocol."""
        return cast(DeploymentBackend, self)

    async def apply(self, target: Target) -> Handle:
        """Take it in, or do what was said."""
        if self.errors:
            raise self.errors.pop(0)
        if target.deployment in self.hang:
            await asyncio.Event().wait()
        self.applied.append(target)
        return Handle(1, target.uid)

    async def watch(self) -> AsyncIterator[DeploymentItem]:
        """What a test tells."""
        while True:
            yield await self.tell.get()

    async def retire(self, uid: str, replicas: Sequence[str]) -> None:
        """Remember them."""
        del uid
        self.retired += replicas

    async def remove(self, uid: str, handle: Handle | None) -> ReleaseOutcome:
        """Over, or not yet."""
        assert handle is not None
        if self.not_yet:
            self.not_yet -= 1
            return NotYet(uid, 1.0)
        self.removed.append(uid)
        return Released(uid)

    async def owned(self, cluster_id: str) -> AsyncIterator[OwnedDeployment]:
        """Nothing."""
        del cluster_id
        for one in tuple[OwnedDeployment, ...]():
            yield one

    def replica_logs(self, replica: str, stream: str, tail_lines: int) -> AsyncIterator[LogChunk]:
        """It keeps none."""
        raise NotImplementedError

    @property
    def newest(self) -> Target:
        """What it was asked for last."""
        return self.applied[-1]

    def show(self, *replicas: ReplicaView, leaving: Sequence[str] = ()) -> None:
        """All there is of the deployment that it was asked for last."""
        told = ReplicaSet(self.newest.uid, self.newest.generation, replicas, frozenset(leaving))
        self.tell.put_nowait(told)

    def synced(self) -> None:
        """It has told everything."""
        self.tell.put_nowait(Synced())


def up(revision: int, index: int = 0, **fields: object) -> ReplicaView:
    """A replica that is ready."""
    address = f"127.0.0.1:{9000 + revision * 10 + index}"
    made = ReplicaView(f"r-{revision}-{index}", revision, ReplicaPhase.READY, "h", address)
    return replace(made, **fields)  # type: ignore[arg-type]
