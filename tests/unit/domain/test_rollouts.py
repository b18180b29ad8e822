"""Roll-outs: every legal way through them, and what must hold on any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from rollout_rows import (
    BAKE,
    CRASHES,
    DEADLINE,
    SECOND,
    Course,
    bare,
    replica,
    revision,
    settings,
    steps,
    version,
)

from hatoba_scheduler.domain.deployments import (
    ALL,
    CanaryStep,
    DeploymentState,
    Figures,
    Pause,
    ReplicaState,
    RolloutState,
    Seen,
    SeenSet,
    Served,
    Share,
)
from hatoba_scheduler.domain.records import Cause
from hatoba_scheduler.domain.rollouts import (
    Refused,
    View,
    back_to,
    deleted,
    followed,
    handled,
    ignored,
    observed,
    paused,
    promoted,
    resumed,
    rolled_back,
    settled,
    state_of,
    step,
    traffic_set,
    trouble,
    updated,
    waiting_for,
)
from hatoba_scheduler.domain.routing import routes, served
from hatoba_scheduler.domain.states import CauseCode, Origin

READY, STARTING = ReplicaState.READY, ReplicaState.STARTING
UNHEALTHY, PENDING = ReplicaState.UNHEALTHY, ReplicaState.PENDING


def running(**strategy: object) -> Course:
    """A deployment whose first revision is the current one."""
    course = Course(settings(**strategy))  # type: ignore[arg-type]
    course.through()
    assert course.deployment.current == 1
    return course


# -- the plain way ---------------------------------------------------------------------------------


def test_the_first_rollout_becomes_ready_bakes_and_succeeds() -> None:
    course = Course()
    assert course.wanted_now == [(1, 2, 100)]
    assert (course.deployment.generation, course.deployment.current) == (1, 0)
    course.obey(ready=False)
    assert course.state() is RolloutState.RUNNING
    course.obey()
    assert course.state() is RolloutState.BAKING
    assert course.revisions[1].proven
    course.wait(4.9)
    assert course.state() is RolloutState.BAKING
    course.wait(0.1)
    assert course.state() is RolloutState.SUCCEEDED
    assert (course.deployment.current, course.rollout.end_time) == (1, course.time)
    assert state_of(course.deployment, course.seen) is DeploymentState.READY


def test_a_plain_update_is_one_generation_of_the_new_revision() -> None:
    course = running()
    course.deploy(2)
    assert (course.deployment.generation, course.wanted_now) == (2, [(2, 2, 100)])
    course.through()
    assert course.deployment.generation == 2
    assert course.deployment.current == 2
    assert [e.seq for change in course.changes for e in change.events] == list(
        range(1, course.deployment.events + 1)
    )


def test_what_an_older_generation_shows_is_no_readiness_of_the_new_one() -> None:
    course = running()
    course.deploy(2)
    course.seen = SeenSet(1, (replica(2, 0), replica(2, 1)))
    course.settle()
    assert course.state() is RolloutState.RUNNING
    assert waiting_for(course.view, course.time) == "backend 'mock' to take it in"


def test_a_replica_that_is_lost_while_it_bakes_begins_the_bake_anew() -> None:
    course = Course()
    course.obey()
    course.wait(4)
    course.show([replica(1, 0), replica(1, 1, UNHEALTHY)])
    course.wait(3)
    course.obey()
    course.wait(4)
    assert course.state() is RolloutState.BAKING
    course.wait(1)
    assert course.state() is RolloutState.SUCCEEDED


def test_without_replicas_a_rollout_succeeds_and_proves_nothing() -> None:
    course = Course(settings(0))
    course.through()
    assert not course.revisions[1].proven


# -- canary ----------------------------------------------------------------------------------------


def test_a_canary_grows_by_its_steps_and_old_replicas_stay_until_it_has_all() -> None:
    course = running(replicas=4, steps=steps((10, 60), (50, 30)))
    course.deploy(2)
    assert course.wanted_now == [(1, 4, 90), (2, 1, 10)]
    course.obey()
    course.wait(59)
    assert course.rollout.step == 0
    course.wait(1)
    assert (course.rollout.step, course.wanted_now) == (1, [(1, 4, 50), (2, 2, 50)])
    course.wait(100)
    assert course.rollout.step == 1, "the hold of a step begins when its replicas are ready"
    course.obey()
    course.wait(30)
    assert (course.rollout.step, course.wanted_now) == (2, [(2, 4, 100)])
    course.obey()
    assert course.state() is RolloutState.BAKING


def test_a_first_rollout_has_no_steps() -> None:
    course = Course(settings(steps=steps((10, 60))))
    assert course.wanted_now == [(1, 2, 100)]


def test_a_step_without_an_end_waits_for_somebody_and_is_still_watched() -> None:
    course = running(steps=steps((10, 0)))
    course.deploy(2)
    course.obey()
    assert (course.state(), course.rollout.pause) == (RolloutState.PAUSED, Pause.STEP)
    assert "somebody" in waiting_for(course.view, course.time)
    course.wait(10_000)
    assert course.state() is RolloutState.PAUSED
    course.take(resumed(course.view, course.now()))
    assert course.wanted_now == [(2, 2, 100)]
    again = running(steps=steps((10, 0)))
    again.deploy(2)
    again.obey()
    again.show([replica(1, 0), replica(1, 1), replica(2, 0, UNHEALTHY, cause=CRASHES)])
    assert again.state() is RolloutState.ROLLING_BACK


# -- pause, resume, promote, traffic ---------------------------------------------------------------


def test_a_paused_rollout_takes_no_step_and_does_not_roll_back() -> None:
    course = running(steps=steps((10, 5)))
    course.deploy(2)
    course.take(paused(course.view, course.now()))
    assert paused(course.view, course.now()) is None
    course.show([replica(2, 0, UNHEALTHY, cause=CRASHES)])
    course.wait(10_000)
    assert course.state() is RolloutState.PAUSED
    assert state_of(course.deployment, course.seen) is DeploymentState.PAUSED
    course.obey()
    course.take(resumed(course.view, course.now()))
    course.settle()
    assert (course.state(), course.rollout.step) == (RolloutState.RUNNING, 0)
    course.wait(5)
    assert course.rollout.step == 1


def test_promote_skips_the_steps_that_remain() -> None:
    course = running(steps=steps((10, 0), (50, 0)))
    course.deploy(2)
    course.take(promoted(course.view, course.now()))
    assert (course.rollout.step, course.wanted_now) == (2, [(2, 2, 100)])
    assert promoted(course.view, course.now()) is None
    course.through()


@pytest.mark.parametrize("act", [paused, resumed, promoted])
def test_without_a_rollout_nothing_is_paused_resumed_or_promoted(act: object) -> None:
    course = running()
    with pytest.raises(Refused, match="no roll-out is under way"):
        act(course.view, course.now())  # type: ignore[operator]


def test_traffic_by_hand_stops_the_steps_until_promote_ends_it() -> None:
    course = running(replicas=4, steps=steps((10, 5)))
    course.deploy(2)
    course.obey()
    course.take(traffic_set(course.view, {1: 30, 2: 70}, course.now()))
    assert course.wanted_now == [(1, 4, 30), (2, 3, 70)]
    course.obey()
    course.wait(1000)
    assert (course.state(), course.rollout.pause) == (RolloutState.PAUSED, Pause.TRAFFIC)
    with pytest.raises(Refused, match="by hand"):
        resumed(course.view, course.now())
    course.take(promoted(course.view, course.now()))
    course.through()
    assert course.wanted_now == [(2, 4, 100)]


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ({1: 60, 2: 30}, "add up to 90"),
        ({1: 50, 3: 50}, "revision 3 has no ready replicas"),
        ({1: 100, 9: 0}, "revision 9 has no ready replicas"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: dict[int, int], why: str) -> None:
    course = running(steps=steps((10, 5)))
    course.deploy(2)
    course.obey()
    with pytest.raises(Refused, match=why):
        traffic_set(course.view, weights, course.now())


# -- roll-backs ------------------------------------------------------------------------------------


def fails(course: Course, how: str) -> None:
    """The new revision goes wrong in one of the ways there are."""
    if how == "never ready":
        course.obey(ready=False)
        course.wait(300)
    elif how == "crash loop":
        course.show([replica(1, 0), replica(2, 0, UNHEALTHY, cause=CRASHES)])
    elif how == "ends twice":
        course.show([replica(1, 0), replica(2, 0, restarts=2)])
    elif how == "predictions fail":
        course.obey()
        course.figures = Figures(20, 2, "ValueError: no")
        course.settle()


WAYS = {
    "never ready": CauseCode.NOT_READY,
    "crash loop": CauseCode.CRASH_LOOP,
    "ends twice": CauseCode.CRASH_LOOP,
    "predictions fail": CauseCode.PREDICTIONS_FAIL,
}


@pytest.mark.parametrize(("how", "code"), WAYS.items())
def test_a_revision_that_fails_is_rolled_back_and_says_why(how: str, code: CauseCode) -> None:
    course = running()
    course.deploy(2)
    fails(course, how)
    assert course.state() is RolloutState.ROLLING_BACK
    assert (course.deployment.generation, course.wanted_now) == (3, [(1, 2, 100)])
    assert course.rollout.cause is not None
    assert course.rollout.cause.code is code
    assert course.revisions[2].cause == course.rollout.cause
    course.figures = Figures()
    course.obey()
    assert course.state() is RolloutState.ROLLED_BACK
    assert course.rollout.cause.code is code
    assert course.deployment.current == 1
    assert state_of(course.deployment, course.seen) is DeploymentState.READY


@pytest.mark.parametrize(
    "origin", [Origin.INFRASTRUCTURE, Origin.CAPACITY, Origin.PREEMPTION], ids=lambda one: one.name
)
def test_what_is_nobodys_fault_is_not_laid_to_the_revision(origin: Origin) -> None:
    course = running()
    course.deploy(2)
    lost = replace(CRASHES, code=CauseCode.HOST_LOST, origin=origin)
    course.show([replica(1, 0), replica(2, 0, UNHEALTHY, restarts=5, cause=lost)])
    assert course.state() is RolloutState.RUNNING
    course.show([replica(1, 0), replica(2, 0, UNHEALTHY, restarts=5, cause=CRASHES)])
    assert course.state() is RolloutState.ROLLING_BACK


@pytest.mark.parametrize(("how", "code"), WAYS.items())
def test_a_first_revision_that_fails_is_given_up(how: str, code: CauseCode) -> None:
    course = Course()
    course.seen = SeenSet(1)
    if how in ("crash loop", "ends twice"):
        restarts = 2 if how == "ends twice" else 0
        course.show([replica(1, 0, UNHEALTHY, restarts=restarts, cause=CRASHES)])
    else:
        fails(course, how)
    assert course.state() is RolloutState.FAILED
    assert course.wanted_now == [(1, 0, 100)]
    assert state_of(course.deployment, course.seen) is DeploymentState.FAILED
    cause = trouble(course.deployment, course.seen)
    assert cause is not None
    assert cause.code is code


def test_without_rollback_a_failed_rollout_stays_as_it_is_and_can_be_rolled_back_by_hand() -> None:
    course = running(rollback=False, steps=steps((50, 5)))
    course.deploy(2)
    course.show([replica(1, 0), replica(1, 1), replica(2, 0, UNHEALTHY, cause=CRASHES)])
    assert course.state() is RolloutState.FAILED
    assert course.wanted_now == [(1, 2, 50), (2, 1, 50)]
    to = back_to(course.view, 0, course.revisions.values())
    assert to == 1
    old = course.revisions[to]
    course.take(rolled_back(course.view, old, course.deployment.settings, "", course.now()))
    course.through()
    assert course.wanted_now == [(1, 2, 100)]


def test_a_share_of_errors_is_not_judged_by_a_few_requests_nor_below_its_limit() -> None:
    course = running()
    course.deploy(2)
    course.obey()
    for figures in (Figures(9, 9), Figures(1000, 50)):
        course.figures = figures
        course.settle()
        assert course.state() is RolloutState.BAKING
    course.figures = Figures(1000, 51)
    course.settle()
    assert course.state() is RolloutState.ROLLING_BACK


def test_the_cause_of_a_deadline_has_the_last_log_lines() -> None:
    course = running()
    course.deploy(2)
    lines = ("Traceback", "ImportError: no module named cv2")
    why = Cause(CauseCode.EXIT_CODE, Origin.USER, "It ended.", False, 1, last_log_lines=lines)
    course.show([replica(1, 0), replica(2, 0, UNHEALTHY, restarts=1, cause=why)])
    course.wait(300)
    assert course.rollout.cause is not None
    assert course.rollout.cause.last_log_lines == lines
    assert "after 300 s: It ended." in course.rollout.cause.message


def test_time_in_which_nobody_looked_does_not_count_against_a_revision() -> None:
    course = running()
    course.deploy(2)
    course.time += 2 * DEADLINE
    view = replace(course.view, seen=SeenSet(2, (replica(1, 0),)), watched_since=course.time)
    assert step(view, course.now()) is None
    assert step(view, course.now()._replace(time=course.time + DEADLINE)) is not None


def test_restarts_of_before_a_rollout_are_not_held_against_it() -> None:
    course = running()
    course.deploy(2)
    course.seen = SeenSet(2, (replica(2, 0, restarts=7), replica(2, 1)))
    change = step(replace(course.view, restarts={"r-2-0": 7}), course.now())
    assert change is not None
    assert change.deployment.rollout is not None
    assert change.deployment.rollout.state is RolloutState.BAKING


def test_a_rollback_that_cannot_become_ready_ends_all_the_same() -> None:
    course = running()
    course.deploy(2)
    fails(course, "crash loop")
    course.obey(ready=False)
    course.wait(299)
    assert course.state() is RolloutState.ROLLING_BACK
    course.wait(1)
    assert course.state() is RolloutState.ROLLED_BACK


# -- by hand, superseding, aliases -----------------------------------------------------------------


def test_a_rollback_by_hand_is_a_rollout_of_its_own_and_ends_following() -> None:
    course = running(model="projects/default/models/digits@production")
    course.take(followed(course.view, revision(2), course.now("alias digits@production")))
    course.through()
    assert course.deployment.following
    to = course.revisions[back_to(course.view, 0, course.revisions.values())]
    course.take(rolled_back(course.view, to, course.deployment.settings, "bad", course.now()))
    assert (course.rollout.number, course.rollout.from_revision, course.rollout.back) == (
        3,
        2,
        True,
    )
    course.through()
    assert (course.deployment.current, course.deployment.following) == (1, False)


def test_a_rollback_by_hand_needs_somewhere_to_go() -> None:
    course = running()
    with pytest.raises(Refused, match="no revision before 1"):
        back_to(course.view, 0, course.revisions.values())
    with pytest.raises(Refused, match="is what is deployed now"):
        back_to(course.view, 1, course.revisions.values())
    with pytest.raises(Refused, match="there is no revision 9"):
        back_to(course.view, 9, course.revisions.values())


def test_a_rollback_by_hand_in_a_rollout_goes_to_what_was_before() -> None:
    course = running()
    course.deploy(2)
    to = course.revisions[back_to(course.view, 0, course.revisions.values())]
    course.take(rolled_back(course.view, to, course.deployment.settings, "", course.now()))
    former = course.changes[-1].rollouts[0]
    assert former.state is RolloutState.SUPERSEDED
    assert former.end_time
    assert course.wanted_now == [(1, 2, 100)]
    fails_again = CRASHES
    course.show([replica(1, 0, UNHEALTHY, cause=fails_again)])
    assert course.state() is RolloutState.FAILED, "nobody wants what was given up"
    assert course.wanted_now == [(1, 2, 100)], "what was good once is not taken away"


def test_another_revision_takes_the_place_of_a_rollout_under_way() -> None:
    course = running()
    course.deploy(2)
    course.deploy(3)
    assert [one.state for one in course.changes[-1].rollouts] == [
        RolloutState.SUPERSEDED,
        RolloutState.RUNNING,
    ]
    assert (course.rollout.from_revision, course.rollout.to_revision) == (1, 3)
    course.obey()
    course.deploy(4, steps=steps((50, 5)))
    assert course.rollout.from_revision == 3, "it had all the traffic, and was well"
    assert course.wanted_now == [(3, 2, 50), (4, 1, 50)]


def test_scaling_is_no_revision_and_holds_in_the_middle_of_steps() -> None:
    course = running(steps=steps((25, 5)))
    course.deploy(2)
    bigger = replace(course.deployment.settings, replicas=8)
    course.take(updated(course.view, bigger, None, "", course.now()))
    assert course.wanted_now == [(1, 8, 75), (2, 2, 25)]
    assert course.deployment.newest == 2
    assert updated(course.view, bigger, None, "", course.now()) is None


def test_another_pace_is_another_generation() -> None:
    course = running()
    strategy = replace(course.deployment.settings.strategy, max_surge=3)
    new = replace(course.deployment.settings, strategy=strategy)
    course.take(updated(course.view, new, None, "", course.now()))
    assert course.deployment.generation == 2


def test_an_alias_that_moves_to_what_cannot_be_deployed_is_told_once() -> None:
    course = running(model="projects/default/models/digits@production")
    course.take(ignored(course.view, version(9), "digits:9 is not rolled out.", course.now()))
    assert course.deployment.followed == version(9)
    assert course.deployment.active is None


def test_deleting_ends_the_rollout_and_refuses_everything_else() -> None:
    course = running()
    course.deploy(2)
    course.take(deleted(course.view, course.now()))
    assert deleted(course.view, course.now()) is None
    assert course.state() is RolloutState.SUPERSEDED
    assert state_of(course.deployment, course.seen) is DeploymentState.DELETING
    with pytest.raises(Refused, match="taken away"):
        paused(course.view, course.now())
    with pytest.raises(Refused, match="taken away"):
        traffic_set(course.view, {1: 100}, course.now())


def test_a_handle_is_kept_once() -> None:
    course = Course()
    course.take(handled(course.view, "h", course.now()))
    assert handled(course.view, "h", course.now()) is None


def test_revisions_are_in_use_while_they_serve_or_a_rollback_would_go_to_them() -> None:
    course = running()
    for number in (2, 3):
        course.deploy(number)
        course.through()
    assert {n: one.in_use for n, one in course.revisions.items()} == {1: False, 2: True, 3: True}


# -- how it is -------------------------------------------------------------------------------------


def test_what_is_missing_is_progress_the_first_time_and_degraded_after() -> None:
    course = running()
    course.show([replica(1, 0), replica(1, 1, STARTING)])
    assert state_of(course.deployment, course.seen) is DeploymentState.PROGRESSING
    course.show([replica(1, 0), replica(1, 1, UNHEALTHY, restarts=1, cause=CRASHES)])
    assert state_of(course.deployment, course.seen) is DeploymentState.DEGRADED
    assert trouble(course.deployment, course.seen) == CRASHES
    assert not settled(course.deployment, course.seen)


def test_replicas_that_come_and_go_are_events() -> None:
    course = running()
    before = course.seen
    course.show([replica(1, 0, UNHEALTHY, restarts=1, cause=CRASHES), replica(1, 7)])
    change = observed(course.view, before, course.now("system"))
    assert change is not None
    told = [(one.kind, one.message.split(" ")[0].rstrip(":")) for one in change.events]
    assert told == [("replica", "r-1-0"), ("ready", "r-1-7"), ("replica", "r-1-1")]
    assert observed(course.view, course.seen, course.now()) is None
    assert observed(course.view, None, course.now()) is None


# -- routes ----------------------------------------------------------------------------------------


def weights(course: Course, leaving: tuple[str, ...] = ()) -> dict[int, int]:
    """Shares of what is seen."""
    assert course.seen is not None
    seen = replace(course.seen, leaving=frozenset(leaving))
    found = served(course.deployment, seen, (), settled=True)
    return {one.revision: one.weight for one in routes(course.deployment, found)}


def test_lingering_replicas_share_by_number() -> None:
    course = running(replicas=4)
    course.deploy(2)
    course.show([*(replica(1, n) for n in range(3)), replica(2, 0)])
    assert weights(course) == {1: 75, 2: 25}


def test_shares_of_revisions_without_ready_replicas_go_to_the_others() -> None:
    course = running(steps=steps((30, 5)))
    course.deploy(2)
    course.show([replica(1, 0), replica(2, 0, STARTING)])
    assert weights(course) == {1: 100}
    course.show([replica(1, 0), replica(2, 0)])
    assert weights(course) == {1: 70, 2: 30}
    course.show([replica(2, 0)])
    assert weights(course) == {2: 100}


def test_a_revision_that_was_given_up_serves_only_while_nothing_else_can() -> None:
    course = running()
    course.deploy(2)
    fails(course, "predictions fail")
    only_bad = [Served(2, "r-2-0", "a:1")]
    both = [*only_bad, Served(1, "r-1-0", "a:2")]
    given_up = frozenset({2})
    assert [one.weight for one in routes(course.deployment, only_bad, given_up)] == [100]
    assert [one.weight for one in routes(course.deployment, both, given_up)] == [100, 0]


def test_leaving_replicas_go_out_as_long_as_the_others_suffice() -> None:
    course = running()
    course.deploy(2)
    old, new = replica(1, 0), replica(2, 0)
    seen = SeenSet(2, (old, new, replica(1, 1)), frozenset({"r-1-0"}))
    names = [one.name for one in served(course.deployment, seen, (), settled=True)]
    assert names == ["r-1-1", "r-2-0"]
    crashed = SeenSet(2, (old, replica(2, 0, UNHEALTHY)), frozenset({"r-1-0"}))
    names = [one.name for one in served(course.deployment, crashed, (), settled=True)]
    assert names == ["r-1-0"], "the new one crashed before the old one was retired"


def test_after_a_restart_replicas_that_nobody_heard_of_yet_stay_in_the_table() -> None:
    course = running()
    known = [Served(1, "r-1-0", "h:1"), Served(1, "r-1-1", "h:2")]
    assert served(course.deployment, None, known, settled=False) == known
    away = SeenSet(1, (replica(1, 0, PENDING), replica(1, 1)))
    assert [one.name for one in served(course.deployment, away, known, settled=True)] == [
        "r-1-0",
        "r-1-1",
    ]
    empty = SeenSet(1)
    assert served(course.deployment, empty, known, settled=False) == known
    assert served(course.deployment, empty, known, settled=True) == []
    broken = SeenSet(1, (replica(1, 0, UNHEALTHY), replica(1, 1)))
    assert [one.name for one in served(course.deployment, broken, known, settled=False)] == [
        "r-1-1"
    ]


def test_what_is_taken_away_has_no_route() -> None:
    course = running()
    course.take(deleted(course.view, course.now()))
    assert served(course.deployment, course.seen, (), settled=True) == []


@given(
    shares=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    have=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 30)), max_size=30),
    given_up=st.frozensets(st.integers(1, 6)),
)
def test_weights_always_add_up_to_100(
    shares: list[int], have: list[tuple[int, int]], given_up: frozenset[int]
) -> None:
    wanted = tuple(Share(number, 1, weight) for number, weight in enumerate(shares, 1))
    deployment = bare(settings(), wanted=wanted)
    replicas = {Served(number, f"r-{number}-{n}", "h:1") for number, n in have}
    found = routes(deployment, replicas, given_up)
    assert sum(one.weight for one in found) == (100 if replicas else 0)
    assert {r for one in found for r in one.replicas} == replicas


# -- any course ------------------------------------------------------------------------------------


class AnyCourse(RuleBasedStateMachine):
    """Observations and wishes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.course = Course(settings(3))
        self.over: dict[int, RolloutState] = {}
        self.seen_changes = 0
        self.was_good = False

    @rule(data=st.data(), seconds=st.integers(0, 400))
    def something_is_seen(self, data: st.DataObject, seconds: int) -> None:
        self.course.time += seconds * SECOND
        states = st.sampled_from([PENDING, STARTING, READY, READY, UNHEALTHY])
        replicas = [
            replica(one.revision, n, data.draw(states), restarts=data.draw(st.integers(0, 3)))
            for one in self.course.deployment.wanted
            for n in range(one.replicas)
        ]
        self.course.show(replicas)

    @rule()
    def all_is_well(self) -> None:
        self.course.obey()

    @rule(seconds=st.integers(1, 100))
    def time_passes(self, seconds: int) -> None:
        self.course.wait(seconds)

    @rule(requests=st.integers(0, 100), errors=st.integers(0, 20))
    def routers_report(self, requests: int, errors: int) -> None:
        self.course.figures = Figures(requests, min(errors, requests))
        self.course.settle()
        self.course.figures = Figures()

    @rule(share=st.sampled_from([(), (10,), (25, 50)]), hold=st.sampled_from([0, 5]))
    def somebody_deploys(self, share: tuple[int, ...], hold: int) -> None:
        found = tuple(CanaryStep(one, hold * SECOND) for one in share)
        self.course.deploy(self.course.deployment.newest + 1, steps=found)

    @rule(size=st.integers(1, 6))
    def somebody_scales(self, size: int) -> None:
        new = replace(self.course.deployment.settings, replicas=size)
        self.course.take(updated(self.course.view, new, None, "", self.course.now()))

    @rule(act=st.sampled_from([paused, resumed, promoted]))
    def somebody_steers(self, act: object) -> None:
        try:
            self.course.take(act(self.course.view, self.course.now()))  # type: ignore[operator]
        except Refused:
            return

    @rule(weight=st.integers(0, 100))
    def somebody_sets_traffic(self, weight: int) -> None:
        newest = self.course.deployment.newest
        try:
            self.course.take(
                traffic_set(
                    self.course.view, {newest - 1: weight, newest: 100 - weight}, self.course.now()
                )
            )
        except Refused:
            return

    @rule()
    def somebody_goes_back(self) -> None:
        course = self.course
        try:
            to = course.revisions[back_to(course.view, 0, course.revisions.values())]
        except Refused:
            return
        change = rolled_back(course.view, to, course.deployment.settings, "", course.now())
        course.take(change)

    @invariant()
    def weights_add_up(self) -> None:
        assert sum(one.weight for one in self.course.deployment.wanted) == ALL

    @invariant()
    def never_fewer_than_wanted_are_asked_for(self) -> None:
        deployment = self.course.deployment
        self.was_good = self.was_good or deployment.current > 0
        if self.was_good:
            asked = sum(one.replicas for one in deployment.wanted)
            assert asked >= deployment.replicas

    @invariant()
    def what_is_over_stays_over_and_generations_grow(self) -> None:
        new = self.course.changes[self.seen_changes :]
        self.seen_changes += len(new)
        for change in new:
            for rollout in change.rollouts:
                known = self.over.get(rollout.number)
                assert known in (None, rollout.state)
                if rollout.state.over:
                    self.over[rollout.number] = rollout.state
        generations = [one.deployment.generation for one in self.course.changes]
        assert generations == sorted(generations)
        for one, other in zip(self.course.changes, self.course.changes[1:], strict=False):
            if one.deployment.wanted != other.deployment.wanted:
                assert one.deployment.generation < other.deployment.generation


TestAnyCourse = AnyCourse.TestCase


def test_a_view_without_sight_decides_nothing() -> None:
    course = Course()
    assert step(View(course.deployment), course.now()) is None
    assert BAKE < DEADLINE
    assert isinstance(replica(1), Seen)


def test_it_is_ready_only_once_nothing_else_serves() -> None:
    course = running()
    course.deploy(2)
    course.through()
    new, old = [replica(2, 0), replica(2, 1)], replica(1, 0)
    course.show([*new, old], leaving=("r-1-0",))
    assert state_of(course.deployment, course.seen) is DeploymentState.PROGRESSING
    course.show([*new, replace(old, state=ReplicaState.DRAINING)])
    assert state_of(course.deployment, course.seen) is DeploymentState.READY


@pytest.mark.parametrize("dead", [False, True])
def test_requests_that_a_dying_replica_lost_are_laid_to_its_death(dead: bool) -> None:
    course = running()
    course.deploy(2)
    ended = replace(CRASHES, code=CauseCode.EXIT_CODE)
    down = replica(2, 1, UNHEALTHY if dead else READY, restarts=0 if dead else 1, cause=ended)
    course.show([replica(2, 0), down])
    course.figures = Figures(20, 10, "connection reset")
    course.settle()
    cause = course.rollout.cause
    assert cause is not None
    assert cause.code is CauseCode.CRASH_LOOP
    assert "ended once, last: It ended with exit code 1." in cause.message


def test_no_replica_is_wanted_of_a_lingering_revision_that_gets_nothing() -> None:
    course = running()
    course.deploy(2)
    course.show([replica(1, 0), replica(2, 0), replica(2, 1)])
    course.take(traffic_set(course.view, {1: 0, 2: 100}, course.now()))
    assert course.wanted_now == [(2, 2, 100)]


def test_time_in_which_nobody_looked_does_not_count_as_healthy() -> None:
    course = Course()
    course.obey()
    course.time += 100 * SECOND
    view = replace(course.view, watched_since=course.time - SECOND)
    assert step(view, course.now()) is None
    assert waiting_for(view, course.time).endswith("healthy for 4 s more")
    course.time += 4 * SECOND
    assert step(replace(view, deployment=course.deployment), course.now()) is not None
