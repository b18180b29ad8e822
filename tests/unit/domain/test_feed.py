"""What the planner is told of jobs: seen by what it then decides, and against a feed begun anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from domain_rows import MANIFEST, NOW, intent, new_job
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from memory_store import parked_of

from hatoba_scheduler.domain import causes, gangs
from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.planning.feed import Feed, job_of, needs_of, turn_of
from hatoba_scheduler.domain.planning.model import Assignment
from hatoba_scheduler.domain.planning.planner import Planner
from hatoba_scheduler.domain.preempting import give_way, preempted
from hatoba_scheduler.domain.records import (
    Adapted,
    Change,
    Checkpoint,
    Job,
    Placement,
    Resources,
    RetryPolicy,
    Terms,
)
from hatoba_scheduler.domain.states import AttemptState, GangPolicy, JobState, Release, Spot
from hatoba_scheduler.domain.transitions import (
    Now,
    Outcome,
    Rows,
    Settings,
    cancel,
    checkpointed,
    hold,
    launch,
    released,
    running,
    updated,
)

Decide = Callable[[Rows], Change | None]
SECOND = 1_000_000
GOOD = Outcome(AttemptState.SUCCEEDED, None)
LOST = Outcome(*causes.judge(Ending(ExitKind.LOST)))


@dataclass
class Yard:
    """Jobs in memory, a planner with one pool, and the feed between them."""

    slots: int = 100
    cpus: float = 0.0
    jobs: dict[str, Rows] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.planner = Planner()
        self.planner.describe("null", [PoolRoom("pool", Resources(self.cpus, slots=self.slots))])
        self.feed = Feed(self.planner, self.jobs.get)
        self.now = NOW.time

    def submit(self, job: Job) -> None:
        rows = self.jobs[job.uid] = Rows(job, {}, {})
        self.feed.take(None, Change(job, 0), rows)

    def decide(self, uid: str, decide: Decide) -> Change | None:
        before = self.jobs[uid]
        change = decide(before)
        if change is not None:
            tasks = dict(before.tasks) | {row.index: row for row, _ in change.tasks}
            attempts = dict(before.attempts) | {row.index: row for row, _ in change.attempts}
            rows = self.jobs[uid] = Rows(change.job, tasks, attempts)
            self.feed.take(before.job, change, rows)
        return change

    def plan(self) -> list[Assignment]:
        self.feed.pass_to(self.now)
        decided: list[Assignment] = []
        while True:
            found = self.planner.plan(self.now)
            self.feed.planned(found.assignments)
            decided += found.assignments
            if not found.more:
                return decided

    def launch(self, assignment: Assignment) -> Change | None:
        def decide(rows: Rows) -> Change | None:
            intents = [
                replace(intent(rows, task), reserved=assignment.needs.resources)
                for task in assignment.tasks
            ]
            if rows.job.terms.gang:
                return gangs.launch_all(rows, intents, Now(self.now))
            return launch(rows, intents[0], Now(self.now))

        change = self.decide(job_of(assignment.uid), decide)
        if change is None:
            self.feed.reject(assignment)
        return change

    def go(self) -> list[tuple[str, tuple[int, ...]]]:
        """Launch all that may be; which tasks of which jobs that was."""
        found = self.plan()
        for assignment in found:
            assert self.launch(assignment) is not None
        return [(job_of(one.uid), one.tasks) for one in found]

    def end(self, uid: str, index: int = 0, outcome: Outcome = GOOD) -> None:
        def step(rows: Rows) -> Change | None:
            view = rows.view(index)
            return gangs.ended(view, outcome, Now(self.now)) if view else None

        self.decide(uid, step)

    def release(self, uid: str, index: int = 0) -> None:
        def step(rows: Rows) -> Change | None:
            view = rows.view(index)
            return released(view) if view else None

        self.decide(uid, step)

    def used(self) -> Resources:
        (pool,) = self.planner.pools("null")
        return pool.used


def job(uid: str, *, size: int = 1, **fields: Any) -> Job:
    return replace(new_job(uid, size=size), **fields)


# -- what a job needs -----------------------------------------------------------------------------


def test_jobs_of_one_shape_are_one_class() -> None:
    assert needs_of(job("a")) == needs_of(job("b"))
    assert needs_of(job("a")).resources == Resources(slots=1)
    apart = Terms(placement=Placement(apart=True))
    assert needs_of(job("a", terms=apart)) != needs_of(job("b", terms=apart))


def test_what_retries_changed_is_a_class_of_its_own() -> None:
    wanted = job("a", resources=Resources(cpus=2.0, memory=100))
    adapted = Adapted(memory=200, avoid=("h-1",), on_demand=True)
    needs = needs_of(wanted, adapted)
    assert needs.resources == Resources(cpus=2.0, memory=200)
    assert (needs.avoid, needs.spot) == (("h-1",), Spot.NEVER)


def test_several_backends_are_told_in_their_order() -> None:
    assert needs_of(job("a")).backends == ("null",)
    assert needs_of(job("a", terms=Terms(backends=("spot", "gpu")))).backends == ("spot", "gpu")


# -- what waits -----------------------------------------------------------------------------------


def test_a_job_is_planned_once() -> None:
    yard = Yard()
    yard.submit(job("a"))
    (assignment,) = yard.plan()
    assert yard.plan() == []
    yard.decide("a", lambda rows: updated(rows, Settings(priority=5), NOW))
    assert yard.plan() == []
    yard.launch(assignment)
    assert yard.plan() == []
    assert yard.used() == Resources(slots=1)


def test_what_was_not_committed_waits_again() -> None:
    yard = Yard(slots=1)
    yard.submit(job("a"))
    (assignment,) = yard.plan()
    assert yard.feed.reject(assignment)
    assert yard.used() == Resources()
    assert yard.go() == [("a", (0,))]


def test_what_is_not_in_memory_is_to_be_brought() -> None:
    yard = Yard()
    parked = job("a")
    yard.feed.take_parked([parked_of(parked)])
    (assignment,) = yard.plan()
    assert not yard.feed.reject(assignment)
    assert yard.plan() == []
    yard.feed.recover(Rows(parked, {}, {}))
    assert [one.uid for one in yard.plan()] == ["a"]


def test_what_is_alike_and_not_in_memory_waits_as_each_alone_would() -> None:
    for terms in (Terms(timeout=5.0), Terms(placement=Placement(apart=True))):
        one, other = job("a", terms=terms), job("b", terms=terms)
        yard = Yard()
        yard.feed.take_parked([parked_of(one)._replace(uids=["a", "b"])])
        assert {plan.uid: plan.needs for plan in yard.plan()} == {
            "a": needs_of(one),
            "b": needs_of(other),
        }


def test_what_was_found_committed_after_all_keeps_what_it_holds() -> None:
    yard = Yard()
    yard.submit(job("a"))
    (assignment,) = yard.plan()
    yard.launch(assignment)
    held = yard.planner.share(("default", "default")).reserved
    assert held == Resources(slots=1)
    assert yard.feed.reject(assignment)
    assert yard.planner.share(("default", "default")).reserved == held
    assert yard.used() == held
    assert yard.plan() == []


def test_an_array_keeps_to_what_it_may_run() -> None:
    yard = Yard()
    yard.submit(job("a", size=10, max_parallel=3))
    assert [tasks for _, tasks in yard.go()] == [(0,), (1,), (2,)]
    yard.end("a", 1)
    assert [tasks for _, tasks in yard.go()] == [(3,)]


def test_a_task_whose_needs_changed_waits_apart_from_its_siblings() -> None:
    yard = Yard(cpus=4.0)
    memory = RetryPolicy(user=3)
    yard.submit(job("a", size=4, resources=Resources(cpus=1.0), retries=memory, max_parallel=2))
    assert [tasks for _, tasks in yard.go()] == [(0,), (1,)]
    yard.end("a", 0, replace(LOST, gone=True))

    def avoid(rows: Rows) -> Change | None:
        from hatoba_scheduler.domain.changing import changed
        from hatoba_scheduler.domain.records import TaskWrite

        task = rows.tasks[0]
        after = changed(task, version=task.version + 1, adapted=Adapted(avoid=("pool",)))
        change = updated(rows, Settings(priority=1), NOW)
        assert change is not None
        return changed(change, tasks=(TaskWrite(after, task.version),))

    yard.decide("a", avoid)
    rows = yard.jobs["a"]
    assert turn_of(rows.job, rows.tasks[0]).needs != needs_of(rows.job)
    found = {tasks for _, tasks in yard.go()}
    assert found & {(0,), (2,)}
    assert sum(rows.job.counts[JobState.LAUNCHING : JobState.SUCCEEDED]) <= 2


def test_a_back_off_is_waited_out() -> None:
    yard = Yard()
    yard.submit(job("a"))
    yard.go()
    yard.end("a", 0, replace(LOST, gone=True, wait=30.0))
    assert yard.go() == []
    assert yard.feed.next_due == yard.now + 30 * SECOND
    yard.now += 30 * SECOND
    assert yard.go() == [("a", (0,))]
    assert yard.feed.next_due is None


def test_nothing_starts_before_its_start_after() -> None:
    yard = Yard()
    yard.submit(job("a", terms=Terms(start_after=NOW.time + 60 * SECOND)))
    yard.submit(job("b", size=2, terms=Terms(start_after=NOW.time + 90 * SECOND)))
    assert yard.go() == []
    yard.now += 60 * SECOND
    assert yard.go() == [("a", (0,))]
    yard.now += 30 * SECOND
    assert yard.go() == [("b", (0,)), ("b", (1,))]


def test_what_is_held_and_let_go_is_looked_at_as_a_whole() -> None:
    yard = Yard()
    yard.submit(job("a", size=3))
    yard.go()
    for index in range(3):
        yard.end("a", index, replace(LOST, gone=True))
    yard.decide("a", lambda rows: hold(rows, True, NOW))
    assert yard.go() == []
    yard.decide("a", lambda rows: hold(rows, False, NOW))
    assert [tasks for _, tasks in yard.go()] == [(0,), (1,), (2,)]


def test_the_next_attempt_waits_for_the_release_of_the_last() -> None:
    yard = Yard()
    yard.submit(job("a"))
    yard.go()
    yard.end("a", 0, LOST)
    assert yard.go() == []
    assert yard.used() == Resources(slots=1)
    yard.release("a")
    assert yard.go() == [("a", (0,))]


def test_whose_place_was_taken_goes_before_its_class() -> None:
    yard = Yard(slots=1)
    for uid in ("a", "b", "c"):
        yard.submit(job(uid, priority={"a": 0}.get(uid, 0)))
    yard.go()
    yard.decide("a", lambda rows: running_step(rows, 0))
    yard.decide("a", lambda rows: give_way(rows, [0], preempted("For x."), NOW))
    yard.submit(job("0-older"))
    yard.end("a", 0, replace(LOST, gone=True))
    assert yard.go() == [("a", (0,))]


def running_step(rows: Rows, index: int) -> Change | None:
    view = rows.view(index)
    return running(view, NOW.time, "", NOW) if view else None


def test_a_gang_is_planned_as_one_and_again_when_all_of_it_is_gone() -> None:
    yard = Yard(slots=3)
    terms = Terms(gang=True, gang_policy=GangPolicy.RESTART)
    yard.submit(job("g", size=4, terms=terms))
    assert yard.go() == []
    yard.planner.describe("null", [PoolRoom("pool", Resources(slots=4))])
    assert yard.go() == [("g", (0, 1, 2, 3))]
    assert yard.used() == Resources(slots=4)
    yard.end("g", 2, replace(LOST, gone=True))
    for index in (0, 1, 3):
        yard.end("g", index, LOST)
    assert yard.jobs["g"].job.counts[JobState.QUEUED] == 4
    for index in (0, 1):
        yard.release("g", index)
        assert yard.go() == []
    yard.release("g", 3)
    assert yard.go() == [("g", (0, 1, 2, 3))]


def test_a_gang_that_is_not_committed_gives_all_its_places_back() -> None:
    yard = Yard(slots=4)
    yard.submit(job("g", size=4, terms=Terms(gang=True)))
    (assignment,) = yard.plan()
    yard.feed.reject(assignment)
    assert yard.used() == Resources()
    assert yard.go() == [("g", (0, 1, 2, 3))]


class Feeding(RuleBasedStateMachine):
    """Whatever happens to jobs, the planner has of them what a new one would be told."""

    def __init__(self) -> None:
        super().__init__()
        self.yard = Yard(slots=5)
        self.count = 0
        self.planned: list[Assignment] = []

    def some(self, pick: int) -> str | None:
        uids = sorted(uid for uid, rows in self.yard.jobs.items() if not rows.job.state.terminal)
        return uids[pick % len(uids)] if uids else None

    def live(self, pick: int) -> tuple[str, int] | None:
        found = sorted(
            (uid, index)
            for uid, rows in self.yard.jobs.items()
            for index, attempt in rows.attempts.items()
            if attempt.release is not Release.RELEASED
        )
        return found[pick % len(found)] if found else None

    @rule(size=st.sampled_from([1, 1, 1, 3]), gang=st.booleans(), limit=st.sampled_from([0, 2]))
    def submit(self, size: int, gang: bool, limit: int) -> None:
        terms = Terms(gang=True) if gang and size > 1 else Terms()
        fields: dict[str, Any] = {"terms": terms, "retries": RetryPolicy(infrastructure=9)}
        if size > 1 and not gang:
            fields["max_parallel"] = limit
        self.count += 1
        self.yard.submit(job(f"{self.count:04}", size=size, **fields))

    @rule()
    def plan(self) -> None:
        self.planned += self.yard.plan()

    @rule(commit=st.booleans(), pick=st.integers(0, 99))
    def settle(self, commit: bool, pick: int) -> None:
        if not self.planned:
            return
        assignment = self.planned.pop(pick % len(self.planned))
        if commit:
            self.yard.launch(assignment)
        else:
            self.yard.feed.reject(assignment)

    @rule(pick=st.integers(0, 99), wait=st.sampled_from([0.0, 5.0]), gone=st.booleans())
    def lose(self, pick: int, wait: float, gone: bool) -> None:
        found = self.live(pick)
        if found is not None:
            self.yard.end(*found, replace(LOST, wait=wait, gone=gone))

    @rule(pick=st.integers(0, 99), gone=st.booleans())
    def succeed(self, pick: int, gone: bool) -> None:
        found = self.live(pick)
        if found is not None:
            self.yard.end(*found, replace(GOOD, gone=gone))

    @rule(pick=st.integers(0, 99))
    def release(self, pick: int) -> None:
        found = self.live(pick)
        if found is not None:
            self.yard.release(*found)

    @rule(pick=st.integers(0, 99))
    def save(self, pick: int) -> None:
        found = self.live(pick)
        if found is None:
            return

        def step(rows: Rows) -> Change | None:
            view = rows.view(found[1])
            saved = Checkpoint(1, 1, MANIFEST, create_time=self.yard.now)
            return checkpointed(view, saved) if view else None

        self.yard.decide(found[0], step)

    @rule(pick=st.integers(0, 99))
    def take_place(self, pick: int) -> None:
        found = self.live(pick)
        if found is not None:
            cause = preempted("For x.")
            self.yard.decide(found[0], lambda rows: give_way(rows, [found[1]], cause, NOW))

    @rule(pick=st.integers(0, 99), what=st.sampled_from(["hold", "free", "up", "move", "cancel"]))
    def change(self, pick: int, what: str) -> None:
        uid = self.some(pick)
        if uid is None:
            return
        decide: dict[str, Decide] = {
            "hold": lambda rows: hold(rows, True, NOW),
            "free": lambda rows: hold(rows, False, NOW),
            "up": lambda rows: updated(rows, Settings(priority=rows.job.priority + 1), NOW),
            "move": lambda rows: updated(rows, Settings(queue="night"), NOW),
            "cancel": lambda rows: cancel(rows, causes.cancelled("ada", ""), NOW),
        }
        self.yard.decide(uid, decide[what])

    @rule(seconds=st.integers(1, 10))
    def pass_time(self, seconds: int) -> None:
        self.yard.now += seconds * SECOND

    @invariant()
    def no_more_is_held_than_by_live_attempts_and_plans(self) -> None:
        live = sum(
            attempt.release is not Release.RELEASED
            for rows in self.yard.jobs.values()
            for attempt in rows.attempts.values()
        )
        planned = sum(len(one.tasks) for one in self.planned)
        assert self.yard.used().slots == live + planned

    def teardown(self) -> None:
        """With room for all, what the planner decides is what one begun anew decides."""
        for assignment in self.planned:
            self.yard.feed.reject(assignment)
        self.yard.planner.describe("null", [PoolRoom("pool", Resources(slots=1000))])
        anew = Yard(slots=1000, jobs=dict(self.yard.jobs))
        anew.now = self.yard.now
        for rows in anew.jobs.values():
            anew.feed.recover(rows)
        assert sorted(decided(self.yard)) == sorted(decided(anew))


def decided(yard: Yard) -> list[tuple[str, tuple[int, ...], tuple[str, str], bool]]:
    """What would be launched now; of arrays as much as may run at once."""
    found = []
    for one in yard.plan():
        uid = job_of(one.uid)
        rows = yard.jobs[uid]
        known = all(index in rows.tasks for index in one.tasks)
        found.append((uid, one.tasks, one.queue, known))
    return found


Feeding.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestFeeding = Feeding.TestCase


# -- devices --------------------------------------------------------------------------------------


def places(found: list[Assignment]) -> dict[int, str]:
    """Where each task goes."""
    return {one.tasks[0]: one.places[0].pool for one in found}


def devices(*names: str, slots: int = 8) -> list[PoolRoom]:
    """These have come."""
    return [PoolRoom(name, Resources(slots=slots)) for name in names]


def test_each_task_goes_to_its_own_device_and_waits_for_it() -> None:
    yard = Yard()
    yard.planner.describe("null", devices("b", "a"))
    yard.submit(job("x", size=3, terms=Terms(devices=("a", "b", "c"))))
    found = yard.plan()
    assert places(found) == {0: "a", 1: "b"}
    for one in found:
        yard.launch(one)
    assert yard.plan() == []
    yard.planner.describe("null", devices("a", "b", "c"))
    assert places(yard.plan()) == {2: "c"}


def test_every_attempt_of_a_task_goes_to_the_same_device() -> None:
    yard = Yard()
    policy = RetryPolicy(infrastructure=3, backoff=0.0)
    yard.planner.describe("null", devices("a", "b"))
    yard.submit(job("x", size=2, terms=Terms(devices=("a", "b")), retries=policy))
    for one in yard.plan():
        yard.launch(one)
    yard.end("x", 1, LOST)
    assert yard.plan() == []
    yard.release("x", 1)
    assert places(yard.plan()) == {1: "b"}


def test_a_job_for_one_device_stands_in_line_for_it() -> None:
    yard = Yard()
    yard.planner.describe("null", devices("a", "b", slots=1))
    for name in ("x", "y"):
        yard.submit(job(name, terms=Terms(devices=("b",))))
    assert [(one.uid, one.places[0].pool) for one in yard.plan()] == [("x", "b")]
    parked = job("z", terms=Terms(devices=("a",)))
    yard.feed.take_parked([parked_of(parked)])
    assert [(one.uid, one.places[0].pool) for one in yard.plan()] == [("z", "a")]
