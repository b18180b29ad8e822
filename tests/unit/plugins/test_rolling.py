"""The replacement planner: bounds kept in every step, and every replacement comes to its end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from hatoba.v1 import worker_pb2
from hatoba_plugins.rolling import Plan, parse_name, plan, replica_name
from hatoba_plugins.values import ReplicaPhase, ReplicaView, RevisionTarget, Target

UID = "0" * 31 + "7"
READY = ReplicaPhase.READY
STARTING = ReplicaPhase.STARTING
UNHEALTHY = ReplicaPhase.UNHEALTHY
PENDING = ReplicaPhase.PENDING
DRAINING = ReplicaPhase.DRAINING


def target(
    wanted: dict[int, int], *, unavailable: int = 0, surge: int = 1, generation: int = 1
) -> Target:
    """A target of so many replicas of each revision."""
    revisions = tuple(
        RevisionTarget(revision, count, 0, worker_pb2.ReplicaSpec())
        for revision, count in wanted.items()
    )
    return Target(
        "projects/default/deployments/reader", UID, generation, revisions, unavailable, surge
    )


def views(*said: tuple[str, int, ReplicaPhase]) -> list[ReplicaView]:
    """Replicas, each newer than the one before."""
    return [
        ReplicaView(name, revision, phase, since=float(at))
        for at, (name, revision, phase) in enumerate(said)
    ]


def step(wanted: Target, replicas: Sequence[ReplicaView]) -> Plan:
    """The plan, with a seeded source of names."""
    return plan(wanted, replicas, random.Random(1))


def created(made: Plan) -> Counter[int]:
    """How many it makes of each revision."""
    return Counter(one.revision for one in made.create)


# -- names --------------------------------------------------------------------------------------


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**64))
def test_a_name_tells_deployment_and_revision_and_fits_everywhere(revision: int, seed: int) -> None:
    name = replica_name(UID, revision, random.Random(seed))
    assert parse_name(name) == (UID, revision)
    assert len(name) <= 63


def test_what_is_no_replica_of_ours_has_no_name_to_read() -> None:
    assert parse_name(f"a-{UID}-1-00000000") is None
    assert parse_name(f"r-{UID}-0-00000000") is None
    assert parse_name("r-short-1-00000000") is None


# -- single steps -------------------------------------------------------------------------------


def test_the_first_replicas_are_made_at_once() -> None:
    made = step(target({1: 3}), [])
    assert created(made) == {1: 3}
    assert len({one.name for one in made.create}) == 3
    assert not made.leaving
    assert not made.end


def test_a_new_revision_begins_with_its_surge_and_nothing_leaves() -> None:
    made = step(target({2: 3}), views(("a", 1, READY), ("b", 1, READY), ("c", 1, READY)))
    assert created(made) == {2: 1}
    assert not made.leaving


def test_a_new_one_that_is_ready_lets_one_old_one_leave() -> None:
    have = views(("a", 1, READY), ("b", 1, READY), ("c", 2, READY))
    made = step(target({2: 2}), have)
    assert len(made.leaving) == 1
    assert made.leaving <= {"a", "b"}
    # It is still there: no room for the second until it was retired.
    assert not made.create


def test_without_surge_an_old_one_leaves_first() -> None:
    wanted = target({2: 3}, unavailable=1, surge=0)
    have = views(("a", 1, READY), ("b", 1, READY), ("c", 1, READY))
    made = step(wanted, have)
    assert len(made.leaving) == 1
    assert not made.create
    gone = [one for one in have if one.name not in made.leaving]
    assert created(step(wanted, gone)) == {2: 1}


def test_an_old_one_that_is_down_leaves_before_any_that_is_ready() -> None:
    have = views(("a", 1, READY), ("b", 1, UNHEALTHY), ("c", 1, READY))
    assert step(target({1: 2}), have).leaving == {"b"}


def test_scaling_down_takes_the_newest_of_those_that_are_not_ready() -> None:
    have = views(("a", 1, STARTING), ("b", 1, READY), ("c", 1, STARTING))
    made = step(target({1: 2}), have)
    assert made.end == {"c"}
    assert not made.leaving


def test_scaling_down_takes_the_newest_of_those_that_are_ready() -> None:
    have = views(("a", 1, READY), ("b", 1, READY), ("c", 1, READY))
    assert step(target({1: 1}), have).leaving == {"b", "c"}


def test_a_target_of_none_lets_everything_go() -> None:
    have = views(("a", 1, READY), ("b", 1, STARTING), ("c", 2, UNHEALTHY), ("d", 2, DRAINING))
    made = step(target({}), have)
    assert made.leaving == {"a", "c"}
    assert made.end == {"b"}
    assert not made.create


def test_a_new_target_in_the_middle_ends_what_never_became_ready() -> None:
    have = views(("a", 1, READY), ("b", 1, READY), ("c", 2, STARTING))
    made = step(target({3: 2}, generation=3), have)
    assert made.end == {"c"}
    assert created(made) == {3: 1}
    assert not made.leaving


def test_a_rollback_in_the_middle_keeps_the_old_ones() -> None:
    have = views(("a", 1, READY), ("b", 2, UNHEALTHY))
    made = step(target({1: 2}, generation=3), have)
    assert made.leaving == {"b"}
    assert created(made) == {1: 1}


def test_a_canary_makes_room_for_itself() -> None:
    have = views(("a", 1, READY), ("b", 1, READY), ("c", 2, READY))
    assert step(target({1: 1, 2: 1}), have).leaving == {"b"}


def test_more_surge_than_allowed_waits_for_those_that_leave() -> None:
    have = views(*((name, 1, READY) for name in "abcd"))
    made = step(target({2: 1}), have)
    assert len(made.leaving) == 3
    assert not made.create


def evicted(have: Sequence[ReplicaView], *names: str) -> list[ReplicaView]:
    """The same, these on a place that is to be emptied."""
    return [replace(one, evicted=one.name in names) for one in have]


def test_one_that_is_evicted_stays_until_another_is_ready() -> None:
    have = evicted(views(("a", 1, READY), ("b", 1, READY)), "a")
    made = step(target({1: 2}), have)
    assert created(made) == {1: 1}
    assert not made.leaving
    starting = [*have, *views(("c", 1, STARTING))]
    assert step(target({1: 2}), starting) == Plan()
    made = step(target({1: 2}), [*have, *views(("c", 1, READY))])
    assert made.leaving == {"a"}
    assert not made.create


def test_one_that_is_evicted_and_not_ready_goes_at_once() -> None:
    have = evicted(views(("a", 1, STARTING), ("b", 1, READY), ("c", 1, UNHEALTHY)), "a", "c")
    made = step(target({1: 3}), have)
    assert made.end == {"a"}
    assert made.leaving == {"c"}
    assert created(made) == {1: 2}


def test_where_nothing_may_surge_one_that_is_evicted_leaves_first() -> None:
    have = evicted(views(("a", 1, READY), ("b", 1, READY)), "b")
    made = step(target({1: 2}, unavailable=1, surge=0), have)
    assert made.leaving == {"b"}
    assert not made.create


# -- every way to the end -----------------------------------------------------------------------


@dataclass
class World:
    """Replicas that start, crash and are retired as a script of numbers says."""

    wanted: Target
    replicas: dict[str, ReplicaView] = field(default_factory=dict)
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    time: float = 0.0

    def ready(self) -> int:
        """How many answer."""
        return sum(one.phase is READY for one in self.replicas.values())

    def live(self) -> int:
        """How many there are that do not drain."""
        return sum(one.phase is not DRAINING for one in self.replicas.values())

    def put(self, name: str, phase: ReplicaPhase) -> None:
        """A replica changes."""
        self.time += 1.0
        self.replicas[name] = replace(self.replicas[name], phase=phase, since=self.time)

    def carry_out(self) -> Plan:
        """One step of the planner, its bounds checked."""
        made = plan(self.wanted, self.replicas.values(), self.rng)
        for name in made.end:
            assert self.replicas[name].phase in (PENDING, STARTING)
            del self.replicas[name]
        for one in made.create:
            self.time += 1.0
            self.replicas[one.name] = ReplicaView(one.name, one.revision, PENDING, since=self.time)
        if made.create:
            assert self.live() <= self.wanted.wanted + self.wanted.max_surge
        staying = [
            one
            for one in self.replicas.values()
            if one.phase is READY and one.name not in made.leaving
        ]
        leaving_ready = [name for name in made.leaving if self.replicas[name].phase is READY]
        if leaving_ready:
            assert len(staying) >= self.wanted.wanted - self.wanted.max_unavailable
        return made

    def retire(self, names: Sequence[str]) -> None:
        """The core lets them go."""
        for name in names:
            self.put(name, DRAINING)

    def stir(self, pick: int) -> None:
        """Something happens to one replica, or some that leave are retired, or one is gone."""
        names = sorted(self.replicas)
        if not names:
            return
        name = names[pick % len(names)]
        phase = self.replicas[name].phase
        if phase is DRAINING:
            del self.replicas[name]
        elif pick % 5 == 0:
            self.retire(sorted(self.carry_out().leaving)[:1])
        elif pick % 7 == 0:
            self.replicas[name] = replace(self.replicas[name], evicted=True)
        elif pick % 3 == 0 and phase is READY:
            self.put(name, UNHEALTHY)
        else:
            self.put(name, READY if phase in (STARTING, UNHEALTHY) else STARTING)

    def settle(self) -> None:
        """Everything goes well from now on."""
        for _ in range(200):
            made = self.carry_out()
            self.retire(sorted(made.leaving))
            before = dict(self.replicas)
            for name, one in before.items():
                if one.phase is DRAINING:
                    del self.replicas[name]
                elif one.phase is not READY:
                    self.put(name, READY)
            if made == Plan() and before == self.replicas:
                return
        raise AssertionError("it does not settle")


_wanted = st.dictionaries(st.integers(1, 4), st.integers(0, 4), max_size=3)
_bounds = st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(lambda pair: pair != (0, 0))


@given(
    st.lists(st.tuples(_wanted, _bounds, st.lists(st.integers(0, 200), max_size=20)), min_size=1)
)
def test_bounds_hold_on_every_way_and_each_way_ends_at_the_target(
    story: list[tuple[dict[int, int], tuple[int, int], list[int]]],
) -> None:
    world = World(target({}))
    for generation, (wanted, (unavailable, surge), stirs) in enumerate(story, 1):
        world.wanted = target(wanted, unavailable=unavailable, surge=surge, generation=generation)
        for pick in stirs:
            world.carry_out()
            world.stir(pick)
    world.settle()
    assert not any(one.evicted for one in world.replicas.values())
    have = Counter(one.revision for one in world.replicas.values())
    assert have == Counter({at: count for at, count in story[-1][0].items() if count})


@given(_wanted, _wanted, _bounds)
def test_a_replacement_in_which_all_goes_well_never_dips(
    before: dict[int, int], after: dict[int, int], bounds: tuple[int, int]
) -> None:
    world = World(target(before, unavailable=bounds[0], surge=bounds[1]))
    world.settle()
    world.wanted = target(after, unavailable=bounds[0], surge=bounds[1], generation=2)
    floor = min(world.ready(), max(0, world.wanted.wanted - bounds[0]))
    for _ in range(100):
        made = world.carry_out()
        world.retire(sorted(made.leaving))
        assert world.ready() >= floor
        for name in sorted(world.replicas):
            if world.replicas[name].phase is PENDING:
                world.put(name, READY)
                break
