"""The mock world's deployments: each keeps its replicas by itself, as a provider's service does."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hatoba.v1 import common_pb2
from hatoba_plugins.backends.mock.ledger import Entry
from hatoba_plugins.backends.mock.replicas import (
    HOST,
    MockDeployment,
    MockReplica,
    ReplicaScript,
    script_data,
    script_of,
    target_data,
    target_of,
)
from hatoba_plugins.errors import Invalid, Stale
from hatoba_plugins.feed import Feed
from hatoba_plugins.rolling import Creation, parse_name, plan
from hatoba_plugins.values import (
    DeploymentItem,
    OwnedDeployment,
    ReplicaPhase,
    ReplicaSet,
    ReplicaView,
    Target,
)


class Record(Protocol):
    """Takes note in the ledger of what happened."""

    def __call__(self, event: str, name: str, **data: object) -> None:
        """`event` happened to `name` now."""
        ...


@dataclass(frozen=True, slots=True)
class Outside:
    """What the fleet needs of the world it is in."""

    now: Callable[[], float]
    until: Callable[[float], Awaitable[None]]
    spawn: Callable[[str, Coroutine[Any, Any, None]], None]
    lay_down: Callable[[str], None]
    record: Record
    quiet: Callable[[], bool]


class Fleet:
    """All deployments, and the faults that tests bring to their replicas."""

    def __init__(self, outside: Outside) -> None:
        self.feed: Feed[DeploymentItem] = Feed()
        self._outside = outside
        self._rng = random.Random(0)
        self._kept: dict[str, MockDeployment] = {}
        self._removed: set[str] = set()
        self._full = ""

    # -- opening --------------------------------------------------------------------------------

    def load(self, entries: Sequence[Entry]) -> None:
        """Begin with what the ledger tells."""
        self._rng = random.Random(len(entries))
        self._kept, self._removed = {}, set()
        for entry in entries:
            _replay(self._kept, self._removed, entry)

    def begin(self) -> None:
        """Let all replicas go on."""
        for kept in list(self._kept.values()):
            for one in list(kept.replicas.values()):
                self._begin(kept, one)
            self._converge(kept)

    # -- for tests ------------------------------------------------------------------------------

    def crash(self, name: str) -> None:
        """A replica ends by itself."""
        kept, one = self._find(name)
        self._outside.lay_down(name)
        self._crash(kept, one)
        self._begin(kept, one)

    def delete_behind(self, name: str) -> None:
        """Somebody removes a replica."""
        kept, _ = self._find(name)
        self._drop(kept, name)
        self._converge(kept)

    def refuse(self, why: str) -> None:
        """There is no room for new replicas, because of this; empty: there is again."""
        self._full = why
        for kept in list(self._kept.values()):
            self._converge(kept)

    def _find(self, name: str) -> tuple[MockDeployment, MockReplica]:
        parsed = parse_name(name)
        kept = self._kept[parsed.uid if parsed else name]
        return kept, kept.replicas[name]

    # -- what is asked of it --------------------------------------------------------------------

    def apply(self, cluster_id: str, target: Target) -> None:
        """Take a target in. Raises Stale and Invalid."""
        _require_scripts(target)
        known = self._kept.get(target.uid)
        if target.uid in self._removed:
            raise Stale(f"deployment {target.uid} was removed")
        if known and target.generation < known.target.generation:
            raise Stale(f"generation {known.target.generation} of {target.uid} was taken in before")
        kept = self._kept.setdefault(target.uid, MockDeployment(cluster_id, target))
        if known is None or known.target != target:
            self._record("apply", target.uid, cluster_id=cluster_id, **target_data(target))
        kept.target = target
        self._converge(kept)

    def retire(self, uid: str, replicas: Sequence[str]) -> None:
        """Drain those of them that are leaving."""
        kept = self._kept.get(uid)
        if kept is None or uid in self._removed:
            return
        for name in self._seen(kept).leaving.intersection(replicas):
            self._drain(kept, kept.replicas[name])
        self._converge(kept)

    def remove(self, uid: str) -> float | None:
        """Drain all of a deployment. None: nothing is left; else seconds that it may take."""
        if uid not in self._removed:
            self._removed.add(uid)
            self._record("remove", uid)
        kept = self._kept.get(uid)
        if kept is None:
            return None
        for one in list(kept.replicas.values()):
            if one.view.phase is not ReplicaPhase.DRAINING:
                self._drain(kept, one)
        self._tell(kept)
        left = [one.view.since + one.script.drains_for for one in kept.replicas.values()]
        return max(left) - self._outside.now() if left else None

    def owned(self) -> list[OwnedDeployment]:
        """Everything of which something is left."""
        return [kept.owned() for kept in self._kept.values()]

    def everything(self) -> list[DeploymentItem]:
        """How all are now."""
        return [self._seen(kept) for kept in self._kept.values()]

    # -- replacement ----------------------------------------------------------------------------

    def _converge(self, kept: MockDeployment) -> None:
        if kept.target.uid not in self._removed:
            step = plan(kept.target, kept.views(), self._rng)
            for name in step.end:
                self._drop(kept, name)
            for made in () if self._full else step.create:
                self._make(kept, made)
        self._tell(kept)

    def _make(self, kept: MockDeployment, made: Creation) -> None:
        (template,) = (
            one.template for one in kept.target.revisions if one.revision == made.revision
        )
        pending = ReplicaView(
            made.name, made.revision, ReplicaPhase.PENDING, HOST, since=self._outside.now()
        )
        one = MockReplica(pending, script_of(template))
        kept.replicas[made.name] = one
        self._record("replica", made.name, revision=made.revision, script=script_data(one.script))
        self._begin(kept, one)

    def _drain(self, kept: MockDeployment, one: MockReplica) -> None:
        name = one.view.name
        self._outside.lay_down(name)
        one.enter(ReplicaPhase.DRAINING, self._outside.now())
        self._record("drain", name)
        if one.script.drains_for:
            self._begin(kept, one)
        else:
            self._drop(kept, name)

    def _drop(self, kept: MockDeployment, name: str) -> None:
        self._outside.lay_down(name)
        del kept.replicas[name]
        self._record("gone", name)

    # -- lives ----------------------------------------------------------------------------------

    def _begin(self, kept: MockDeployment, one: MockReplica) -> None:
        draining = one.view.phase is ReplicaPhase.DRAINING
        life = self._end(kept, one) if draining else self._live(kept, one)
        self._outside.spawn(one.view.name, life)

    async def _live(self, kept: MockDeployment, one: MockReplica) -> None:
        script = one.script
        while True:
            if one.view.phase is ReplicaPhase.UNHEALTHY:
                await self._outside.until(one.view.since + script.restarts_in)
            if one.view.phase is not ReplicaPhase.READY and not await self._start(kept, one):
                return
            if not script.crash_after or one.view.restarts >= script.crashes:
                return
            await self._outside.until(one.view.since + script.crash_after)
            self._crash(kept, one)

    async def _start(self, kept: MockDeployment, one: MockReplica) -> bool:
        """Become ready; False when it never does, or was let go on the way."""
        self._enter(kept, one, ReplicaPhase.STARTING)
        if one.script.never_ready or one.view.name not in kept.replicas:
            return False
        await self._outside.until(one.view.since + one.script.starts_in)
        self._enter(kept, one, ReplicaPhase.READY)
        return one.view.name in kept.replicas

    async def _end(self, kept: MockDeployment, one: MockReplica) -> None:
        await self._outside.until(one.view.since + one.script.drains_for)
        self._drop(kept, one.view.name)
        self._converge(kept)

    def _crash(self, kept: MockDeployment, one: MockReplica) -> None:
        one.crash(self._outside.now())
        self._record("crash", one.view.name)
        self._converge(kept)

    def _enter(self, kept: MockDeployment, one: MockReplica, phase: ReplicaPhase) -> None:
        one.enter(phase, self._outside.now())
        self._record(phase.value, one.view.name)
        self._converge(kept)

    # -- news -----------------------------------------------------------------------------------

    def _seen(self, kept: MockDeployment) -> ReplicaSet:
        target, views = kept.target, kept.views()
        if target.uid in self._removed:
            return ReplicaSet(target.uid, target.generation, views)
        step = plan(target, views, self._rng)
        problem = _no_room(self._full) if self._full and step.create else None
        return ReplicaSet(target.uid, target.generation, views, step.leaving, problem=problem)

    def _tell(self, kept: MockDeployment) -> None:
        uid = kept.target.uid
        if uid in self._removed and not kept.replicas:
            self._kept.pop(uid, None)
        if not self._outside.quiet():
            self.feed.publish([self._seen(kept)])

    def _record(self, event: str, name: str, **data: object) -> None:
        self._outside.record(event, name, **data)


def _require_scripts(target: Target) -> None:
    try:
        for one in target.revisions:
            script_of(one.template)
    except ValueError as error:
        raise Invalid(str(error)) from error


def _no_room(why: str) -> common_pb2.Cause:
    code, origin = common_pb2.CAUSE_CODE_NO_CAPACITY, common_pb2.ORIGIN_CAPACITY
    return common_pb2.Cause(code=code, origin=origin, message=why, retryable=True)


def _replay(kept: dict[str, MockDeployment], removed: set[str], entry: Entry) -> None:
    data: dict[str, Any] = entry.data
    parsed = parse_name(entry.name)
    if entry.event == "apply":
        target = target_of(entry.name, data)
        kept.setdefault(entry.name, MockDeployment(data["cluster_id"], target)).target = target
    elif entry.event == "remove":
        removed.add(entry.name)
    elif parsed and parsed.uid in kept:
        _replay_on(kept[parsed.uid], entry)
    gone = [uid for uid in removed & kept.keys() if not kept[uid].replicas]
    for uid in gone:
        del kept[uid]


def _replay_on(kept: MockDeployment, entry: Entry) -> None:
    data: dict[str, Any] = entry.data
    if entry.event == "replica":
        view = ReplicaView(
            entry.name, data["revision"], ReplicaPhase.PENDING, HOST, since=entry.time
        )
        kept.replicas[entry.name] = MockReplica(view, ReplicaScript(**data["script"]))
    elif entry.event == "gone":
        kept.replicas.pop(entry.name, None)
    elif entry.event == "crash":
        kept.replicas[entry.name].crash(entry.time)
    elif entry.event in _PHASES:
        kept.replicas[entry.name].enter(_PHASES[entry.event], entry.time)


_PHASES = {
    "starting": ReplicaPhase.STARTING,
    "ready": ReplicaPhase.READY,
    "drain": ReplicaPhase.DRAINING,
}
