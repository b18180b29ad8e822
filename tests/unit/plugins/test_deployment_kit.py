"""The kit of deployments must be able to fail: backends that break one rule each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from hatoba.v1 import worker_pb2
from hatoba_plugins.backends.mock import MockType, MockWorld
from hatoba_plugins.backends.mock import fleet as fleets
from hatoba_plugins.backends.mock.deployments import MockDeployments
from hatoba_plugins.backends.mock.fleet import Fleet
from hatoba_plugins.backends.mock.replicas import MockDeployment, MockReplica
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance import DeploymentConformance, FaultInjector, Life, ReplicaHarness
from hatoba_plugins.conformance import fleets as kit
from hatoba_plugins.errors import Retry
from hatoba_plugins.rolling import Plan, plan, replica_name
from hatoba_plugins.values import (
    DeploymentItem,
    Handle,
    OwnedDeployment,
    Released,
    ReleaseOutcome,
    ReplicaPhase,
    ReplicaSet,
    ReplicaView,
    Target,
)

LIVES = {
    Life.READY: '{"starts_in": 1, "drains_for": 1}',
    Life.NEVER_READY: '{"never_ready": true}',
    Life.CRASHES: '{"crash_after": 5, "crashes": 2}',
}
Break = Callable[[pytest.MonkeyPatch], None]
CAUGHT = (AssertionError, pytest.fail.Exception)


class Faults(FaultInjector):
    """Those that the broken backends are caught with."""

    def __init__(self, world: MockWorld) -> None:
        self._world = world

    async def reply_lost_after_effect(self) -> None:
        self._world.lose_reply("apply")

    async def land_late(self, seconds: float) -> None:
        self._world.land_late(seconds, "apply")

    async def delete_behind(self, name: str) -> None:
        self._world.delete_replica(name)

    async def gap(self) -> None:
        self._world.gap()

    async def unreachable_for(self, seconds: float) -> None:
        self._world.cut(seconds)


class Harness(ReplicaHarness):
    """A mock, honest until a test breaks it."""

    def __init__(self) -> None:
        world = MockWorld()
        super().__init__(MockType(world), clock=FakeClock(), faults=Faults(world))

    def template(self, life: Life) -> worker_pb2.ReplicaSpec:
        return worker_pb2.ReplicaSpec(env={"MOCK_REPLICA": LIVES[life]})


def believes_every_generation(patch: pytest.MonkeyPatch) -> None:
    honest = Fleet.apply

    def apply(self: Fleet, cluster_id: str, target: Target) -> None:
        known = self._kept.get(target.uid)
        newest = known.target.generation if known else 0
        honest(self, cluster_id, replace(target, generation=max(newest, target.generation)))

    patch.setattr(Fleet, "apply", apply)


def makes_all_anew_at_each_apply(patch: pytest.MonkeyPatch) -> None:
    honest = Fleet.apply

    def apply(self: Fleet, cluster_id: str, target: Target) -> None:
        for name in list(known.replicas) if (known := self._kept.get(target.uid)) else []:
            self._drop(self._kept[target.uid], name)
        honest(self, cluster_id, target)

    patch.setattr(Fleet, "apply", apply)


def retires_whatever_is_named(patch: pytest.MonkeyPatch) -> None:
    def retire(self: Fleet, uid: str, replicas: Sequence[str]) -> None:
        if (kept := self._kept.get(uid)) is not None:
            for name in kept.replicas.keys() & set(replicas):
                self._drain(kept, kept.replicas[name])
            self._converge(kept)

    patch.setattr(Fleet, "retire", retire)


def ends_what_leaves_by_itself(patch: pytest.MonkeyPatch) -> None:
    def impatient(target: Target, replicas: Iterable[ReplicaView], rng: Any) -> Plan:
        step = plan(target, list(replicas), rng)
        return replace(step, leaving=frozenset(), end=step.end | step.leaving)

    patch.setattr(fleets, "plan", impatient)


def lets_all_go_at_once(patch: pytest.MonkeyPatch) -> None:
    def careless(target: Target, replicas: Iterable[ReplicaView], rng: Any) -> Plan:
        return plan(replace(target, max_unavailable=target.wanted), replicas, rng)

    patch.setattr(fleets, "plan", careless)


def makes_all_at_once(patch: pytest.MonkeyPatch) -> None:
    def lavish(target: Target, replicas: Iterable[ReplicaView], rng: Any) -> Plan:
        return plan(replace(target, max_surge=100), replicas, rng)

    patch.setattr(fleets, "plan", lavish)


def ignores_revisions(patch: pytest.MonkeyPatch) -> None:
    def blind(target: Target, replicas: Iterable[ReplicaView], rng: Any) -> Plan:
        newest = target.revisions[-1].revision
        return plan(target, [replace(one, revision=newest) for one in replicas], rng)

    patch.setattr(fleets, "plan", blind)


def calls_what_starts_ready(patch: pytest.MonkeyPatch) -> None:
    honest = MockReplica.enter

    def enter(self: MockReplica, phase: ReplicaPhase, now: float) -> None:
        honest(self, ReplicaPhase.READY if phase is ReplicaPhase.STARTING else phase, now)

    patch.setattr(MockReplica, "enter", enter)


def counts_no_restarts(patch: pytest.MonkeyPatch) -> None:
    changes_crashed(patch, lambda view: replace(view, restarts=0))


def gives_no_cause(patch: pytest.MonkeyPatch) -> None:
    changes_crashed(patch, lambda view: replace(view, cause=None))


def changes_crashed(patch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    honest = MockReplica.crash

    def crash(self: MockReplica, now: float) -> None:
        honest(self, now)
        self.view = change(self.view)

    patch.setattr(MockReplica, "crash", crash)


def comes_back_under_another_name(patch: pytest.MonkeyPatch) -> None:
    honest = Fleet._crash

    def crash(self: Fleet, kept: MockDeployment, one: MockReplica) -> None:
        honest(self, kept, one)
        del kept.replicas[one.view.name]
        other = replica_name(kept.target.uid, one.view.revision, self._rng)
        one.view = replace(one.view, name=other)
        kept.replicas[other] = one

    patch.setattr(Fleet, "_crash", crash)


def gives_no_address(patch: pytest.MonkeyPatch) -> None:
    honest = MockReplica.enter

    def enter(self: MockReplica, phase: ReplicaPhase, now: float) -> None:
        honest(self, phase, now)
        self.view = replace(self.view, address="")

    patch.setattr(MockReplica, "enter", enter)


def revives_what_was_removed(patch: pytest.MonkeyPatch) -> None:
    honest = Fleet.apply

    def apply(self: Fleet, cluster_id: str, target: Target) -> None:
        self._removed.discard(target.uid)
        honest(self, cluster_id, target)

    patch.setattr(Fleet, "apply", apply)


def calls_removed_what_drains(patch: pytest.MonkeyPatch) -> None:
    async def remove(self: MockDeployments, uid: str, handle: Handle | None) -> ReleaseOutcome:
        await self._world.remove(uid)
        return Released(uid)

    patch.setattr(MockDeployments, "remove", remove)


def watches_only_what_comes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fleet, "everything", lambda self: [])


def watches_only_what_is_there(patch: pytest.MonkeyPatch) -> None:
    honest = Fleet.everything

    def everything(self: Fleet) -> list[DeploymentItem]:
        return [one for one in honest(self) if isinstance(one, ReplicaSet) and one.replicas]

    patch.setattr(Fleet, "everything", everything)


def misses_nothing_that_was_deleted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fleet, "delete_behind", lambda self, name: None)


def lists_every_cluster(patch: pytest.MonkeyPatch) -> None:
    async def owned(self: MockDeployments, cluster_id: str) -> AsyncIterator[OwnedDeployment]:
        for one in await self._world.list_deployments():
            yield one

    patch.setattr(MockDeployments, "owned", owned)


def calls_a_lost_reply_refused(patch: pytest.MonkeyPatch) -> None:
    honest = MockWorld.apply

    async def apply(self: MockWorld, cluster_id: str, target: Target) -> None:
        try:
            await honest(self, cluster_id, target)
        except OSError as error:
            raise Retry("try again") from error

    patch.setattr(MockWorld, "apply", apply)


def forgets_all_when_closed(patch: pytest.MonkeyPatch) -> None:
    honest = Fleet.load

    def load(self: Fleet, entries: Sequence[Any]) -> None:
        honest(self, entries)
        self._kept.clear()

    patch.setattr(Fleet, "load", load)


def replaces_what_it_cannot_reach(patch: pytest.MonkeyPatch) -> None:
    honest = MockWorld.cut

    def cut(self: MockWorld, seconds: float) -> None:
        honest(self, seconds)
        for kept in self._fleet._kept.values():
            for name in list(kept.replicas):
                self._fleet.delete_behind(name)

    patch.setattr(MockWorld, "cut", cut)


def names_replicas_its_own_way(patch: pytest.MonkeyPatch) -> None:
    def other(uid: str, revision: int, rng: Any) -> str:
        return replica_name(uid, revision + 1, rng)

    patch.setattr("hatoba_plugins.rolling.replica_name", other)


def spends_no_budget(patch: pytest.MonkeyPatch) -> None:
    async def apply(self: MockDeployments, target: Target) -> Handle:
        self._ctx.budget.asked.set()  # type: ignore[attr-defined]
        await self._world.apply(self._ctx.cluster_id, target)
        return Handle(1, target.uid)

    patch.setattr(MockDeployments, "apply", apply)


BROKEN: list[tuple[Break, str]] = [
    (believes_every_generation, "test_a_lower_generation_is_stale"),
    (believes_every_generation, "test_a_call_that_lands_late_is_stale"),
    (makes_all_anew_at_each_apply, "test_apply_is_idempotent"),
    (retires_whatever_is_named, "test_only_what_leaves_is_retired"),
    (retires_whatever_is_named, "test_a_retire_that_comes_too_late_does_nothing"),
    (ends_what_leaves_by_itself, "test_what_leaves_answers_until_it_is_retired"),
    (ends_what_leaves_by_itself, "test_fewer_replicas"),
    (lets_all_go_at_once, "test_a_broken_revision_displaces_nothing"),
    (calls_what_starts_ready, "test_what_is_never_ready_is_never_told_ready"),
    (counts_no_restarts, "test_a_crashed_replica_comes_back"),
    (gives_no_cause, "test_a_crashed_replica_comes_back"),
    (comes_back_under_another_name, "test_a_crashed_replica_comes_back"),
    (gives_no_address, "test_replicas_become_ready"),
    (names_replicas_its_own_way, "test_names_say_whose_a_replica_is"),
    (revives_what_was_removed, "test_removed_is_removed"),
    (calls_removed_what_drains, "test_remove_ends_all"),
    (watches_only_what_comes, "test_a_watch_begins_with_all_there_is"),
    (watches_only_what_is_there, "test_a_watch_begins_with_all_there_is"),
    (misses_nothing_that_was_deleted, "test_deleted_behind_us_is_replaced"),
    (lists_every_cluster, "test_owned_tells_what_carries_our_label"),
    (calls_a_lost_reply_refused, "test_a_lost_reply_is_asked_for_again"),
    (forgets_all_when_closed, "test_a_restart_of_the_core_doubles_nothing"),
    (replaces_what_it_cannot_reach, "test_out_of_reach_is_not_gone"),
    (spends_no_budget, "test_the_budget_is_asked_before_each_call"),
]


@pytest.mark.parametrize(
    ("sabotage", "rule"), BROKEN, ids=lambda one: getattr(one, "__name__", one)
)
async def test_a_broken_backend_fails_its_rule(
    monkeypatch: pytest.MonkeyPatch, sabotage: Break, rule: str
) -> None:
    await getattr(DeploymentConformance(), rule)(Harness())
    await fails(monkeypatch, sabotage, getattr(DeploymentConformance(), rule))


@pytest.mark.parametrize("sabotage", [lets_all_go_at_once, makes_all_at_once, ignores_revisions])
async def test_a_careless_exchange_is_caught(
    monkeypatch: pytest.MonkeyPatch, sabotage: Break
) -> None:
    async def exchange(harness: Harness) -> None:
        await DeploymentConformance().test_an_exchange_keeps_its_bounds(harness, 0, 1)

    await exchange(Harness())
    await fails(monkeypatch, sabotage, exchange)


async def fails(patch: pytest.MonkeyPatch, sabotage: Break, rule: Any) -> None:
    sabotage(patch)
    patch.setattr(kit, "PATIENCE", 0.3)
    with pytest.raises(CAUGHT):
        await rule(Harness())


def test_every_rule_has_its_sentence() -> None:
    rules = [rule for name, rule in vars(DeploymentConformance).items() if name.startswith("test_")]
    assert len(rules) >= 40
    assert [rule.__name__ for rule in rules if not rule.__doc__] == []
