"""What must be true of the planner whatever happens, by long random stories."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from planner_yard import GIB, MAIN, NIGHT, SECOND, Yard, pool, uid

from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.model import (
    Assignment,
    Needs,
    PlannerRules,
    QueueKey,
    Running,
)
from hatoba_scheduler.domain.records import ANYWHERE, LabelRequirement, Placement, Resources
from hatoba_scheduler.domain.states import Operator, Strategy, WaitReason

DEEP: QueueKey = ("default", "deep")
QUEUES = (MAIN, NIGHT, DEEP)
PLACEMENTS = (
    ANYWHERE,
    Placement(strategy=Strategy.PACK),
    Placement(require=(LabelRequirement("zone", Operator.IN, ("x",)),)),
    Placement(prefer=(LabelRequirement("zone", Operator.EXISTS),)),
)
QUIET = PlannerRules(reservations=0, gap=10_000)
"""Neither keeps room nor has others give way: then nothing that fits may be left."""
POOLS = (
    PoolRoom("a", Resources(4.0, 8 * GIB, 2), ("0", "1"), labels=(("zone", "x"),)),
    PoolRoom("b", Resources(2.0, 2 * GIB)),
    PoolRoom("c", Resources(3.0, 16 * GIB, 1), ("0",)),
)


class Step(NamedTuple):
    """One thing that happens; `pick` chooses among what is there."""

    kind: str
    pick: int
    needs: Needs
    queue: QueueKey
    priority: int


NEEDS = st.tuples(
    st.sampled_from((0.5, 1.0, 2.0, 3.0)),
    st.sampled_from((0, GIB, 3 * GIB)),
    st.sampled_from((0, 0, 0, 1, 2)),
    st.sampled_from((1, 1, 1, 2, 3)),
    st.sampled_from(PLACEMENTS),
    st.sampled_from((0.0, 60.0, 600.0)),
).map(lambda one: Needs(("hosts",), Resources(*one[:3]), one[3], one[4], timeout=one[5]))
STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(
            ("put", "put", "put", "plan", "plan", "end", "end", "gone", "back", "limit", "wait")
        ),
        st.integers(0, 99),
        NEEDS,
        st.sampled_from(QUEUES),
        st.integers(-2, 2),
    ),
    max_size=60,
)


class Story:
    """A yard in which things happen, and what must be true after each."""

    def __init__(self, rules: PlannerRules) -> None:
        self.yard = Yard(*POOLS, rules=rules)
        self.pools = {one.name: one for one in POOLS}
        self.limits: dict[QueueKey, tuple[Resources, int]] = {}
        self.needs: dict[str, Needs] = {}
        self.log: list[object] = []
        self.yard.queue(DEEP, parent=NIGHT)

    def play(self, steps: Sequence[Step]) -> None:
        """All of them, in order."""
        for step in steps:
            getattr(self, step.kind)(step)

    def put(self, step: Step) -> None:
        name = self.yard.put(step.needs, queue=step.queue, priority=step.priority)
        self.needs[name] = step.needs

    def plan(self, step: Step) -> None:
        del step
        before = dict(self.yard.running)
        assignments, preemptions, _ = self.yard.round()
        self.log += [*assignments, *preemptions]
        self.check(assignments)
        for one in preemptions:
            self.check_victims([before[name] for name in one.victims], one.uid)
        self.yard.give_way(preemptions, self.needs)

    def end(self, step: Step) -> None:
        names = sorted({one.uid for one in self.yard.running.values()})
        if names:
            self.yard.end(names[step.pick % len(names)])

    def gone(self, step: Step) -> None:
        names = sorted(self.pools)
        if len(names) > 1:
            del self.pools[names[step.pick % len(names)]]
            self.yard.planner.describe("hosts", self.pools.values())

    def back(self, step: Step) -> None:
        one = POOLS[step.pick % len(POOLS)]
        self.pools[one.name] = one
        self.yard.planner.describe("hosts", self.pools.values())

    def limit(self, step: Step) -> None:
        quota = Resources(cpus=float(step.pick % 7))
        self.limits[step.queue] = (quota, step.pick % 5)
        parent = NIGHT if step.queue == DEEP else None
        self.yard.queue(step.queue, parent=parent, quota=quota, max_running=step.pick % 5)

    def wait(self, step: Step) -> None:
        self.yard.passes(step.pick * 10.0)

    # -- what must be true ------------------------------------------------------------------------

    def check(self, assignments: Sequence[Assignment]) -> None:
        self.check_capacity(assignments)
        self.check_limits(assignments)
        for one in assignments:
            assert len(one.places) == len(one.tasks) == one.needs.members, "a gang goes whole"
            assert len({place.backend for place in one.places}) == 1

    def check_capacity(self, assignments: Sequence[Assignment]) -> None:
        """Nothing was placed where it is more than there is, and no GPU was given twice."""
        used: dict[str, Resources] = defaultdict(Resources)
        gpus: dict[str, list[str]] = defaultdict(list)
        for one in self.yard.running.values():
            used[one.place.pool] = used[one.place.pool].plus(one.amount)
            gpus[one.place.pool] += one.place.gpus
        for place in (place for one in assignments for place in one.places):
            assert used[place.pool].within(self.pools[place.pool].total)
            assert len(gpus[place.pool]) == len(set(gpus[place.pool]))

    def check_limits(self, assignments: Sequence[Assignment]) -> None:
        """No queue that something was placed for has more than it may."""
        for key in {one.queue for one in assignments} | (
            {NIGHT} if any(one.queue == DEEP for one in assignments) else set()
        ):
            quota, most = self.limits.get(key, (Resources(), 0))
            below = {key, DEEP} if key == NIGHT else {key}
            mine = [one for one in self.yard.running.values() if one.queue in below]
            assert not most or len(mine) <= most
            assert not quota.cpus or sum(one.amount.cpus for one in mine) <= quota.cpus + 1e-9

    def check_victims(self, victims: Sequence[Running], uid: str) -> None:
        mine = self.yard.waiting.get(uid)
        assert mine is not None
        assert all(one.priority < mine.priority for one in victims)
        whole = Counter(one.gang for one in victims if one.gang)
        for gang, count in whole.items():
            assert count == self.needs[gang].members, "a gang gives way whole"


def settled(story: Story) -> None:
    while story.yard.plan():
        pass


@settings(max_examples=150)
@given(STEPS)
def test_nothing_is_given_that_is_not_there(steps: list[Step]) -> None:
    Story(PlannerRules(reserve_after=0.0)).play(steps)


@settings(max_examples=60)
@given(STEPS)
def test_the_same_story_has_the_same_end(steps: list[Step]) -> None:
    one, other = Story(PlannerRules(reserve_after=0.0)), Story(PlannerRules(reserve_after=0.0))
    one.play(steps)
    other.play(steps)
    assert one.log == other.log


@settings(max_examples=150)
@given(STEPS)
def test_what_was_learnt_step_by_step_is_what_is_seen_at_once(steps: list[Step]) -> None:
    """A planner that is told only of the end finds nothing that the other overlooked."""
    story = Story(QUIET)
    story.play(steps)
    settled(story)
    fresh = Yard(*story.pools.values(), rules=QUIET)
    fresh.queue(DEEP, parent=NIGHT)
    for key, (quota, most) in story.limits.items():
        parent = NIGHT if key == DEEP else None
        fresh.queue(key, parent=parent, quota=quota, max_running=most)
    for running in story.yard.running.values():
        fresh.planner.started(running)
    for entry in story.yard.waiting.values():
        fresh.planner.put(entry)
    assert fresh.planner.plan(story.yard.now, 10**6).assignments == ()


@settings(max_examples=100)
@given(STEPS)
def test_sums_are_kept(steps: list[Step]) -> None:
    story = Story(PlannerRules(reserve_after=0.0))
    story.play(steps)
    yard = story.yard
    for key in QUEUES:
        below = {key, DEEP} if key == NIGHT else {key}
        mine = [one.amount for one in yard.running.values() if one.queue in below]
        total = Resources()
        for amount in mine:
            total = total.plus(amount)
        share = yard.planner.share(key)
        assert share.reserved == total
        assert share.waiting == sum(one.queue == key for one in yard.waiting.values())
    yard.end(*{one.uid for one in yard.running.values()})
    assert all(yard.planner.share(key).reserved == Resources() for key in QUEUES)
    assert all(one.used == Resources() for one in yard.planner.pools("hosts"))


@settings(max_examples=100)
@given(STEPS)
def test_what_is_explained_is_what_is_planned(steps: list[Step]) -> None:
    """NEXT is said of those that the next round places, and of no others."""
    story = Story(PlannerRules(reserve_after=0.0, gap=10_000))
    story.play(steps)
    yard = story.yard
    yard.plan()
    for step in steps[:6]:
        story.put(step)
    said = {name for name in yard.waiting if yard.explain(name).reason is WaitReason.NEXT}
    assert said == {one.uid for one in yard.plan()}


@settings(max_examples=100)
@given(STEPS, NEEDS, st.sampled_from(QUEUES))
def test_what_would_start_now_does_when_it_is_put(
    steps: list[Step], needs: Needs, queue: QueueKey
) -> None:
    story = Story(PlannerRules(reserve_after=0.0, gap=10_000))
    story.play(steps)
    settled(story)
    name = uid(1000)
    told = story.yard.ask(needs, queue=queue, name=name)
    story.yard.put(needs, queue=queue, name=name)
    placed = {one.uid: one.places for one in story.yard.plan()}
    assert (told.reason is WaitReason.NONE) == (name in placed)
    assert told.places == placed.get(name, ())


@settings(max_examples=100)
@given(STEPS)
def test_those_who_give_way_make_room(steps: list[Step]) -> None:
    """When all victims are gone the preemptors start, whoever else waits."""
    story = Story(PlannerRules(reserve_after=0.0))
    story.play(steps)
    _, preemptions, _ = story.yard.round()
    story.yard.give_way(preemptions, story.needs)
    placed = {one.uid for one in story.yard.plan()}
    assert {one.uid for one in preemptions} <= placed


SMALL = st.lists(
    st.tuples(st.sampled_from((30.0, 120.0, 0.0)), st.sampled_from((0.5, 1.0))), max_size=40
)


@settings(max_examples=100)
@given(SMALL, st.lists(st.sampled_from((100.0, 300.0, 500.0)), min_size=1, max_size=4))
def test_a_reservation_is_never_delayed(
    arrivals: list[tuple[float, float]], limits: list[float]
) -> None:
    """However many small ones come, the head starts by the time that was told of it."""
    yard = Yard(pool("a", float(len(limits))), rules=PlannerRules(reserve_after=0.0))
    for limit in limits:
        yard.put(Needs(("hosts",), Resources(cpus=1.0), timeout=limit))
    yard.plan()
    head = yard.put(Needs(("hosts",), Resources(cpus=float(len(limits)))))
    yard.put(Needs(("hosts",), Resources(cpus=len(limits) + 0.5)))
    yard.plan()
    yard.plan()
    told = yard.explain(head).estimate
    assert told is not None
    for timeout, cpus in arrivals:
        yard.put(Needs(("hosts",), Resources(cpus=cpus), timeout=timeout))
    while yard.now < told:
        yard.plan()
        yard.passes(10.0)
        over = [
            one.uid
            for one in yard.running.values()
            if one.timeout and yard.now >= one.start + one.timeout * SECOND
        ]
        yard.end(*over)
    assert head in {one.uid for one in yard.plan()} | {one.uid for one in yard.running.values()}
