"""What the kit's tests of deployments are written with: a core that follows one backend."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from hatoba.v1 import worker_pb2
from hatoba_plugins.backend import Backend, DeploymentBackend
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance.harness import DeploymentHarness, Life
from hatoba_plugins.errors import BackendError
from hatoba_plugins.values import (
    DeploymentItem,
    Gap,
    NotYet,
    OwnedDeployment,
    ReplicaPhase,
    ReplicaSet,
    ReplicaView,
    RevisionTarget,
    Synced,
    Target,
)

PATIENCE = 120.0
"""Real seconds after which something that was waited for is taken not to come: model servers may
have to start one after the other.
"""
_REAL_STEP = 0.005
"""Seconds between two looks at what cannot wake us."""


@dataclass(frozen=True)
class Wish:
    """A deployment as the kit wants it, generation for generation."""

    uid: str = field(default_factory=lambda: uuid.uuid4().hex)

    def target(
        self,
        generation: int,
        *revisions: RevisionTarget,
        max_unavailable: int = 0,
        max_surge: int = 1,
    ) -> Target:
        """What it shall be."""
        name = "projects/default/deployments/conformance"
        return Target(name, self.uid, generation, revisions, max_unavailable, max_surge)


class Fleet:
    """What was told of a backend's deployments, followed by a watch as the core does it."""

    def __init__(self, harness: DeploymentHarness) -> None:
        self.harness = harness
        self.now: dict[str, ReplicaSet] = {}
        self.history: list[ReplicaSet] = []
        self.gaps = 0
        self.watches = 0
        self.unsound: list[str] = []
        self._news = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._follower: asyncio.Task[None] | None = None

    @property
    def backend(self) -> Backend:
        """The opened instance."""
        return self.harness.backend

    @property
    def role(self) -> DeploymentBackend:
        """Its deployment role."""
        role = self.backend.deployments
        assert role is not None, "the backend has no deployment role"
        return role

    def revision(
        self, number: int, replicas: int, weight: int = 100, life: Life = Life.READY
    ) -> RevisionTarget:
        """Replicas of one revision."""
        template = worker_pb2.ReplicaSpec()
        template.CopyFrom(self.harness.template(life))
        template.deployment, template.revision = "projects/default/deployments/conformance", number
        return RevisionTarget(number, replicas, weight, template)

    # -- following ------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Watch, and begin anew after a gap or an end, until cancelled."""
        while True:
            self.watches += 1
            await self._watch_once()
            await asyncio.sleep(0)

    async def _watch_once(self) -> None:
        before = set(self.now)
        async with watching(self.role) as items:
            async for item in items:
                self._take(item, before)
                if isinstance(item, Gap):
                    return

    async def reopen(self) -> None:
        """A restart of the core: whoever follows ends, the backend is opened anew."""
        follower = self._follower
        assert follower is not None, "it is followed"
        follower.cancel()
        await asyncio.wait([follower])
        await self.harness.reopen()
        self._begin()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow the backend; what a test leaves there is removed after it."""
        await self._tasks.__aenter__()
        self._begin()
        try:
            yield
        finally:
            with suppress(BackendError):
                for uid in await self.owned():
                    await self.remove(uid)
            if self._follower is not None:
                self._follower.cancel()
            await self._tasks.__aexit__(None, None, None)

    def _begin(self) -> None:
        self._follower = self._tasks.create_task(self.follow(), name="follower")

    def _take(self, item: DeploymentItem, before: set[str]) -> None:
        if isinstance(item, Synced):
            self.now = {uid: told for uid, told in self.now.items() if uid not in before}
        if isinstance(item, ReplicaSet):
            before.discard(item.uid)
            self.unsound += _unsound(item)
            self.now[item.uid] = item
            self.history.append(item)
        self.gaps += isinstance(item, Gap)
        self._news.set()

    async def until(self, holds: Callable[[], bool], why: str = "") -> None:
        """Let time go on until something holds. AssertionError when it does not come to that."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not holds() and not self.unsound:
                    await self._step()
        except TimeoutError:
            raise AssertionError(f"it never came to this: {why or holds}; {self.now}") from None
        assert not self.unsound

    async def _step(self) -> None:
        clock = self.harness.clock
        if isinstance(clock, FakeClock):
            if not await clock.advance_to_next():
                await asyncio.sleep(_REAL_STEP)
            return
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_REAL_STEP):
                await self._news.wait()

    # -- words ----------------------------------------------------------------------------------

    def seen(self, uid: str) -> ReplicaSet:
        """The newest that was told of a deployment; empty before anything was."""
        return self.now.get(uid, ReplicaSet(uid, 0, ()))

    def replicas(self, uid: str) -> dict[str, ReplicaView]:
        """All its replicas that do not drain, by name."""
        views = self.seen(uid).replicas
        return {one.name: one for one in views if one.phase is not ReplicaPhase.DRAINING}

    def ready(self, uid: str, revision: int = 0) -> set[str]:
        """Names of those that are ready, of one revision or of all."""
        return {
            one.name
            for one in self.seen(uid).replicas
            if one.phase is ReplicaPhase.READY and revision in (0, one.revision)
        }

    def ever(self, uid: str) -> set[str]:
        """Names of all that there ever were."""
        return {one.name for told in self.history if told.uid == uid for one in told.replicas}

    def settled(self, target: Target) -> bool:
        """Whether a deployment has what its target wants, ready, and nothing else."""
        seen = self.seen(target.uid)
        wanted = sum(one.replicas for one in target.revisions)
        return (
            seen.generation == target.generation
            and not seen.leaving
            and len(seen.replicas) == wanted
            and all(
                len(self.ready(target.uid, one.revision)) == one.replicas
                for one in target.revisions
            )
        )

    async def settle(self, target: Target) -> set[str]:
        """Apply it and play the core's part until it is settled; names of its replicas."""
        await self.role.apply(target)
        return await self.exchange(target)

    async def exchange(self, target: Target) -> set[str]:
        """Retire what leaves until it is settled; names of its replicas."""
        uid = target.uid
        while True:
            await self.until(
                lambda: self.settled(target) or bool(self._to_retire(uid)), "settled or leaving"
            )
            if self.settled(target):
                return set(self.replicas(uid))
            await self.role.retire(uid, sorted(going := self._to_retire(uid)))
            await self.until(lambda: not going & self._to_retire(uid), "what was retired goes")

    def _to_retire(self, uid: str) -> frozenset[str]:
        return self.seen(uid).leaving & self.replicas(uid).keys()

    async def remove(self, uid: str) -> None:
        """Remove a deployment until nothing is left of it. AssertionError when something stays."""
        try:
            async with asyncio.timeout(PATIENCE):
                while await self._is_left(uid):
                    pass
        except TimeoutError:
            raise AssertionError(f"{uid} is never released; {self.now}") from None

    async def _is_left(self, uid: str) -> bool:
        outcome = await self.role.remove(uid, None)
        assert outcome.name == uid
        if not isinstance(outcome, NotYet):
            return False
        assert outcome.after >= 0
        await self.harness.sleep(outcome.after)
        return True

    async def owned(self) -> dict[str, OwnedDeployment]:
        """Every deployment with our label."""
        listed = [one async for one in self.role.owned(self.harness.cluster_id)]
        assert len({one.uid for one in listed}) == len(listed), "listed twice"
        return {one.uid: one for one in listed}


def bounded(told: ReplicaSet, target: Target) -> bool:
    """Whether what was told keeps to what a target allows while replicas are exchanged.

    Those that leave count as gone already, since the core may retire them any moment.
    """
    staying = {
        one.name
        for one in told.replicas
        if one.phase is ReplicaPhase.READY and one.name not in told.leaving
    }
    all_of_it = [one for one in told.replicas if one.phase is not ReplicaPhase.DRAINING]
    enough = len(staying) >= target.wanted - target.max_unavailable
    return enough and len(all_of_it) <= target.wanted + target.max_surge


@asynccontextmanager
async def deployed(harness: DeploymentHarness) -> AsyncIterator[Fleet]:
    """The backend open and followed; what a test leaves there is removed after it."""
    await harness.__aenter__()
    try:
        fleet = Fleet(harness)
        async with fleet.following():
            yield fleet
        assert not fleet.unsound
    finally:
        # Not told of the test's own failure: task groups of the backend would wrap it.
        await harness.__aexit__(None, None, None)


@asynccontextmanager
async def watching(role: DeploymentBackend) -> AsyncIterator[AsyncIterator[DeploymentItem]]:
    """A watch that is closed at the end."""
    items = role.watch()
    try:
        yield items
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


async def until_synced(role: DeploymentBackend) -> dict[str, ReplicaSet]:
    """What a new watch tells before Synced, by deployment."""
    told: dict[str, ReplicaSet] = {}
    async with asyncio.timeout(PATIENCE), watching(role) as items:
        async for item in items:
            if isinstance(item, Synced):
                return told
            if isinstance(item, ReplicaSet):
                told[item.uid] = item
    raise AssertionError("the watch ended before Synced")


def _unsound(told: ReplicaSet) -> list[str]:
    """What can never be so, whatever was asked for."""
    names = [one.name for one in told.replicas]
    ready = [one for one in told.replicas if one.phase is ReplicaPhase.READY]
    return [
        *(f"{name} is told twice" for name in set(names) if names.count(name) > 1),
        *(f"{name} leaves and is not there" for name in told.leaving - set(names)),
        *(f"{one.name} is ready without an address" for one in ready if ":" not in one.address),
    ]
