"""Roll-outs to devices: groups, rates, thresholds, deadlines, and columns that add up."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest
from device_rows import PASSES, UNHEALTHY, Site, device
from hypothesis import settings as limits
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hatoba_scheduler.domain.deployments import Pause, RolloutState
from hatoba_scheduler.domain.device_rollouts import (
    MINUTE,
    FleetChange,
    Group,
    Policy,
    Stage,
    Word,
    grouped,
    next_look,
    retried,
    said,
)
from hatoba_scheduler.domain.records import Cause, LabelRequirement
from hatoba_scheduler.domain.rollouts import Refused, View, paused
from hatoba_scheduler.domain.states import CauseCode, Operator, Origin

S = Stage
TWO_GROUPS = Policy(groups=(Group(devices=2),), retries=0)


def test_all_get_it_and_it_succeeds() -> None:
    site = Site()
    assert site.names(S.OFFERED) == ["d0", "d1", "d2", "d3"]
    assert {one.generation for one in site.devices.values()} == {1}
    site.work(site.devices)
    assert site.state() is RolloutState.SUCCEEDED
    assert site.deployment.current == 1
    assert site.revisions[1].proven
    assert site.tally.succeeded == site.tally.total == 4


def test_groups_come_one_after_the_other() -> None:
    site = Site(TWO_GROUPS, size=6)
    first = site.names(S.OFFERED)
    assert len(first) == 2
    site.work(first[:1])
    assert site.tally.waiting == 4
    site.work(first[1:])
    assert site.tally.offered == 4
    assert site.rollout.step == 1
    site.work(site.names(S.OFFERED))
    assert site.state() is RolloutState.SUCCEEDED


def test_a_group_does_not_wait_for_ever_for_who_does_not_come() -> None:
    site = Site(TWO_GROUPS, size=6)
    site.work(site.names(S.OFFERED)[:1])
    assert next_look(site.fleet, site.now) == site.now + site.policy.group_wait
    site.pass_time(site.policy.group_wait)
    assert site.rollout.step == 1
    assert site.tally.offered == 5


def test_it_is_given_up_where_a_group_is_through_and_too_few_of_it_succeeded() -> None:
    site = Site(Policy(groups=(Group(devices=3),), retries=0), size=12)
    first = site.names(S.OFFERED)
    site.work(first)
    site.work(site.names(S.OFFERED))
    site.deploy(2)
    site.work(first[:2])
    # One of three is less than what may be judged by.
    site.fail(first[2:])
    assert site.state() is RolloutState.ROLLING_BACK
    assert site.rollout.cause is not None
    assert "works on 2 of 3 devices" in site.rollout.cause.message
    assert UNHEALTHY.message in site.rollout.cause.message
    assert {site.runs(name) for name in site.devices} == {1}


def test_a_group_that_needs_approval_waits_for_it() -> None:
    policy = Policy(groups=(Group(devices=1), Group(approve=True)))
    site = Site(policy)
    site.work(site.names(S.OFFERED))
    assert (site.state(), site.rollout.pause) == (RolloutState.PAUSED, Pause.APPROVAL)
    assert site.tally.waiting == 3
    site.resume()
    assert site.tally.offered == 3


def test_the_first_group_may_need_approval_too() -> None:
    site = Site(Policy(groups=(Group(devices=1, approve=True),)))
    assert (site.state(), site.rollout.pause) == (RolloutState.PAUSED, Pause.APPROVAL)
    assert not site.rows
    site.pass_time(MINUTE)
    site.resume()
    assert site.tally.offered == 1


def test_what_nobody_approves_is_given_up_in_the_end() -> None:
    site = Site(Policy(groups=(Group(devices=1), Group(approve=True))))
    site.work(site.devices)
    site.resume()
    site.work(site.devices)
    site.deploy(2)
    site.work(site.names(S.OFFERED))
    assert site.rollout.pause is Pause.APPROVAL
    assert next_look(site.fleet, site.now) == site.rollout.since + site.policy.approve_deadline
    site.pass_time(site.policy.approve_deadline - MINUTE)
    assert site.state() is RolloutState.PAUSED
    site.pass_time(MINUTE)
    assert site.state() is RolloutState.ROLLING_BACK
    assert site.rollout.cause is not None
    assert "in 30 days" in site.rollout.cause.message
    assert {site.runs(name) for name in site.devices} == {1}


def test_each_further_try_waits_twice_as_long() -> None:
    site = Site(Policy(retries=2))
    site.fail(["d0"], PASSES)
    site.pass_time(site.policy.retry_wait)
    assert site.stage("d0") is S.OFFERED
    site.fail(["d0"], PASSES)
    site.pass_time(site.policy.retry_wait)
    assert site.stage("d0") is S.WAITING
    site.pass_time(site.policy.retry_wait)
    assert site.stage("d0") is S.OFFERED


def test_groups_by_labels_and_shares_are_the_same_each_time() -> None:
    every = [replace(device(f"d{n}"), labels=(("ring", str(n % 2)),)) for n in range(10)]
    canary = Group(percent=50, require=(LabelRequirement("ring", Operator.IN, ("0",)),))
    places = grouped("uid", (canary, Group(percent=50)), every)
    assert Counter(places.values()) == {0: 3, 1: 4, 2: 3}
    assert all(int(name[1:]) % 2 == 0 for name, place in places.items() if place == 0)
    assert grouped("uid", (canary, Group(percent=50)), every[::-1]) == places


def test_so_many_a_minute_and_more_once_some_have_succeeded() -> None:
    site = Site(Policy(per_minute=2, growth=2.0, growth_after=4), size=20)
    assert site.tally.offered == 2
    site.work(site.names(S.OFFERED))
    assert site.tally.waiting == 18
    assert 0 < next_look(site.fleet, site.now) <= site.now + MINUTE
    site.pass_time(MINUTE)
    assert site.tally.offered == 2
    site.work(site.names(S.OFFERED))
    assert site.tally.offered == 2
    site.pass_time(MINUTE)
    assert site.tally.offered == 6


def test_it_is_given_up_over_the_devices_that_were_reached() -> None:
    site = Site(size=20)
    site.work(site.devices)
    site.deploy(2)
    assert {site.runs(name) for name in site.devices} == {2}
    names = sorted(site.devices)
    site.work(names[:7])
    site.fail(names[7:9])
    assert site.state() is RolloutState.RUNNING
    site.fail(names[9:10])
    assert site.state() is RolloutState.ROLLING_BACK
    assert site.rollout.cause is not None
    assert site.rollout.cause.message.startswith("Revision 2 failed on 3 of 10 devices")
    assert {site.runs(name) for name in site.devices} == {1}
    assert site.tally.superseded == 10
    site.report()
    assert site.state() is RolloutState.ROLLED_BACK
    assert site.tally.total == 20


def test_nobody_begins_after_it_was_given_up() -> None:
    site = Site(replace(TWO_GROUPS, abort_least=1), size=6)
    site.work(site.names(S.OFFERED))
    site.work(site.names(S.OFFERED))
    site.deploy(2)
    site.fail(site.names(S.OFFERED)[:1])
    offers = [row for row in site.told if row.stage is S.OFFERED and row.number == 2]
    assert len(offers) == 2
    site.pass_time(30 * 24 * 60 * MINUTE)
    site.join("late")
    site.settle()
    assert site.runs("late") == 1
    assert [row for row in site.told if row.stage is S.OFFERED and row.number == 2] == offers


def test_a_first_revision_that_fails_leaves_nothing() -> None:
    site = Site(Policy(retries=0))
    site.fail(site.devices)
    assert site.state() is RolloutState.FAILED
    assert {site.runs(name) for name in site.devices} == {0}


def test_without_a_roll_back_it_is_left_as_it_is() -> None:
    site = Site(Policy(rollback=False))
    site.work(site.devices)
    site.deploy(2)
    site.fail(site.devices)
    assert site.state() is RolloutState.FAILED
    assert {site.runs(name) for name in site.devices} == {2}


def test_who_is_not_reached_holds_nothing_up_and_gets_it_late() -> None:
    site = Site()
    site.work(["d0", "d1", "d2"])
    assert site.state() is RolloutState.RUNNING
    site.pass_time(site.policy.offer_deadline)
    assert site.state() is RolloutState.SUCCEEDED
    assert site.tally.not_reached == 1
    assert site.runs("d3") == 1
    site.work(["d3"])
    assert site.tally.succeeded == 4


def test_who_falls_silent_is_offered_it_anew_and_then_timed_out() -> None:
    site = Site(Policy(retries=1))
    site.say(["d0"], S.APPLYING)
    site.pass_time(site.policy.apply_deadline)
    assert (site.rows["d0"].stage, site.rows["d0"].tries) == (S.OFFERED, 1)
    assert site.devices["d0"].wants[0].tries == 1
    site.say(["d0"], S.APPLYING, S.BAKING)
    site.pass_time(site.policy.bake + site.policy.bake_margin)
    assert site.stage("d0") is S.TIMED_OUT
    cause = site.rows["d0"].cause
    assert cause is not None
    assert "stayed healthy within 660 s" in cause.message


def test_an_error_that_may_pass_is_tried_again_later() -> None:
    site = Site(Policy(retries=1))
    site.fail(["d0"], PASSES)
    assert site.stage("d0") is S.WAITING
    site.pass_time(site.policy.retry_wait)
    assert site.stage("d0") is S.OFFERED
    site.fail(["d0"], PASSES)
    assert site.stage("d0") is S.FAILED


def test_what_is_said_late_or_twice_or_of_something_else_changes_nothing() -> None:
    site = Site(Policy(retries=1))
    site.say(["d0"], S.APPLYING, S.BAKING)
    before = dict(site.rows)
    site.say(["d0"], S.APPLYING)
    assert site.rows == before
    site.fail(["d1"], PASSES)
    site.pass_time(site.policy.retry_wait)
    stale = [Word("d1", 1, S.SUCCEEDED, tries=0), Word("d1", 2, S.SUCCEEDED, tries=1)]
    assert said(site.fleet, stale, site.at()) == ()
    site.work(["d0"])
    site.fail(["d0"])
    assert site.stage("d0") is S.SUCCEEDED


def test_another_revision_takes_the_place_of_one_under_way() -> None:
    site = Site()
    site.work(["d0"])
    site.deploy(2)
    ended = [row.device for row in site.told if row.stage is S.SUPERSEDED]
    assert sorted(ended) == ["d1", "d2", "d3"]
    assert {site.runs(name) for name in site.devices} == {2}


def test_what_works_on_all_that_came_is_gone_back_to_though_one_is_away() -> None:
    site = Site(Policy(retries=0, abort_least=1))
    online = ["d0", "d1", "d2"]
    site.work(online)
    assert (site.deployment.current, site.state()) == (1, RolloutState.RUNNING)
    site.deploy(2)
    site.work(online)
    site.deploy(3)
    site.fail(online)
    assert (site.state(), site.rollout.from_revision) == (RolloutState.ROLLING_BACK, 2)
    assert {site.runs(name) for name in site.devices} == {2}


def test_what_fails_on_those_who_come_late_is_not_what_is_gone_back_to() -> None:
    site = Site(Policy(retries=0, abort_least=1))
    site.work(site.devices)
    site.deploy(2)
    site.work(["d0", "d1"])
    assert site.deployment.current == 2
    site.fail(["d2"])
    assert (site.state(), site.deployment.current) == (RolloutState.ROLLING_BACK, 1)
    assert {site.runs(name) for name in site.devices} == {1}


def test_a_roll_back_does_not_wait_for_who_never_took_it_up() -> None:
    site = Site(Policy(retries=0, abort_least=1))
    site.work(site.devices)
    site.deploy(2)
    site.fail(["d0", "d1"])
    assert site.state() is RolloutState.ROLLING_BACK
    for name in ("d0", "d1"):
        one = site.devices[name]
        site.devices[name] = replace(one, acked=one.generation, reported=one.generation)
    site.settle()
    assert site.state() is RolloutState.ROLLED_BACK


def test_five_releases_while_it_was_away_are_one_for_who_comes_back() -> None:
    site = Site()
    online = ["d0", "d1", "d2"]
    site.work(online)
    for number in range(2, 7):
        site.pass_time(3 * 24 * 60 * MINUTE)
        site.deploy(number)
        site.work(online)
    assert [want.revision for want in site.devices["d3"].wants] == [6]
    site.work(["d3"])
    said = [(row.number, row.stage) for row in site.told if row.device == "d3"]
    assert [number for number, stage in said if stage is S.SUPERSEDED] == [1, 2, 3, 4, 5]
    assert said[-1] == (6, S.SUCCEEDED)


def test_what_cannot_be_somewhere_is_refused_there_and_the_former_stays() -> None:
    site = Site()
    site.work(site.devices)
    why = Cause(CauseCode.NO_CAPACITY, Origin.CAPACITY, "it needs 410 MiB", False)
    site.refuse = lambda one: why if one.name == "d2" else None
    site.deploy(2)
    assert site.stage("d2") is S.REJECTED
    assert (site.runs("d2"), site.runs("d0")) == (1, 2)
    site.work(["d0", "d1", "d3"])
    assert site.state() is RolloutState.ROLLING_BACK


def test_what_was_refused_is_offered_once_it_fits_there() -> None:
    site = Site(Policy(abort_share=1.0))
    site.work(site.devices)
    why = Cause(CauseCode.NO_CAPACITY, Origin.CAPACITY, "it needs 410 MiB", False)
    site.refuse = lambda _: why
    site.deploy(2)
    site.roomier = {"d0", "gone"}
    site.settle()
    assert site.tally.rejected == 4
    site.refuse = lambda one: why if one.name == "d1" else None
    site.roomier = {"d0", "d1"}
    site.settle()
    row = site.rows["d0"]
    assert (row.stage, row.tries, row.cause) == (S.OFFERED, 0, None)
    assert [site.runs(f"d{number}") for number in range(4)] == [2, 1, 1, 1]
    site.work(["d0"])
    assert (site.tally.succeeded, site.tally.rejected) == (1, 3)


def test_what_a_device_refused_itself_is_not_offered_for_more_room() -> None:
    site = Site(Policy(abort_share=1.0, retries=0))
    site.say(["d0"], S.APPLYING, S.REJECTED, cause=PASSES)
    site.roomier = {"d0"}
    site.settle()
    assert site.stage("d0") is S.REJECTED


def test_who_does_not_belong_to_it_any_more_is_not_waited_for() -> None:
    site = Site()
    site.work(["d0", "d1"])
    for name in ("d2", "d3"):
        del site.devices[name]
    site.settle()
    assert site.state() is RolloutState.SUCCEEDED
    assert (site.tally.left, site.tally.total) == (2, 4)


def test_who_leaves_and_comes_back_gets_the_newest_as_who_comes_late_does() -> None:
    site = Site(Policy(groups=(Group(devices=4),)))
    site.work(site.devices)
    site.deploy(2)
    site.say(["d0"], S.APPLYING)
    site.leave("d0")
    site.leave("d1")
    assert (site.tally.left, site.stage("d0")) == (2, S.LEFT)
    site.work(["d2", "d3"])
    assert site.state() is RolloutState.SUCCEEDED
    for name in ("d0", "d1"):
        site.back(name)
        row = site.rows[name]
        assert (row.stage, row.group, row.tries) == (S.OFFERED, 1, 1)
        assert site.runs(name) == 2
    site.work(["d0", "d1"])
    assert (site.tally.succeeded, site.tally.total) == (4, 4)


def test_who_left_before_its_turn_waits_for_it_with_the_last() -> None:
    site = Site(Policy(groups=(Group(devices=1),)))
    waits = site.names(S.WAITING)[0]
    site.leave(waits)
    site.back(waits)
    row = site.rows[waits]
    assert (row.stage, row.group, row.tries, site.runs(waits)) == (S.WAITING, 1, 0, 0)


def test_a_pause_stops_starts_and_roll_backs_but_no_deadline() -> None:
    site = Site(Policy(per_minute=2, abort_least=1, retries=0))
    change = paused(View(site.deployment, site.revisions), site.at())
    assert change is not None
    site.take(FleetChange(change))
    site.fail(site.names(S.OFFERED)[:1])
    site.pass_time(2 * MINUTE)
    assert (site.tally.waiting, site.tally.failed) == (2, 1)
    assert site.state() is RolloutState.PAUSED
    site.pass_time(site.policy.offer_deadline)
    assert site.tally.not_reached == 1


def test_late_ones_keep_to_the_rate() -> None:
    site = Site(Policy(per_minute=4))
    site.work(site.devices)
    site.pass_time(MINUTE)
    for number in range(10):
        site.join(f"late{number}")
    site.settle()
    assert site.tally.offered == 4
    site.pass_time(MINUTE)
    assert site.tally.offered == 8


BAD_ONES = (S.FAILED, S.REJECTED, S.TIMED_OUT)


def test_it_is_tried_again_on_those_that_somebody_names_also_after_the_end() -> None:
    site = Site(Policy(retries=0, abort_share=1.0))
    site.work(site.devices)
    site.deploy(2)
    site.work(["d0", "d1"])
    site.fail(["d2", "d3"])
    assert (site.state(), site.tally.failed) == (RolloutState.SUCCEEDED, 2)
    change = retried(site.fleet, ["d0", "d2"], BAD_ONES, site.at())
    assert change is not None
    assert change.change is not None
    assert [one.message for one in change.change.events] == ["It is tried again on 1 device."]
    site.take(change)
    assert (site.stage("d2"), site.rows["d2"].tries) == (S.OFFERED, 1)
    assert retried(site.fleet, ["d0", "d2"], BAD_ONES, site.at()) is None
    site.work(["d2"])
    again = retried(site.fleet, [], BAD_ONES, site.at())
    assert again is not None
    assert [row.device for row in again.rows] == ["d3"]
    site.take(again)
    site.fail(["d3"])
    assert (site.state(), site.stage("d3")) == (RolloutState.SUCCEEDED, S.FAILED)
    assert site.tally.succeeded == 3


def test_who_was_not_reached_is_offered_it_for_as_long_again() -> None:
    site = Site()
    site.work(["d0", "d1", "d2"])
    site.pass_time(site.policy.offer_deadline)
    assert retried(site.fleet, [], BAD_ONES, site.at()) is None
    change = retried(site.fleet, [], [S.NOT_REACHED], site.at())
    assert change is not None
    site.take(change)
    row = site.rows["d3"]
    assert (row.stage, row.due) == (S.OFFERED, site.now + site.policy.offer_deadline)


def test_what_was_given_up_is_not_tried_again_and_nobody_else_is() -> None:
    site = Site(Policy(retries=0, abort_least=1))
    with pytest.raises(Refused, match="not for elsewhere"):
        retried(site.fleet, ["elsewhere", "d0"], BAD_ONES, site.at())
    site.work(site.devices)
    site.deploy(2)
    site.fail(site.devices)
    for _ in range(2):
        with pytest.raises(Refused, match="given up"):
            retried(site.fleet, [], BAD_ONES, site.at())
        site.report()
    assert site.state() is RolloutState.ROLLED_BACK


class Releases(RuleBasedStateMachine):
    """Whatever devices do and do not: columns add up, errors stop it, and nobody is waited for
    for ever."""

    @initialize(
        policy=st.builds(
            Policy,
            groups=st.lists(
                st.builds(
                    Group,
                    percent=st.just(0),
                    devices=st.integers(1, 3),
                    require=st.just(()),
                    approve=st.booleans(),
                ),
                max_size=2,
            ).map(tuple),
            per_minute=st.sampled_from([0, 1, 3]),
            retries=st.integers(0, 1),
            rollback=st.booleans(),
            abort_least=st.integers(0, 3),
        )
    )
    def begin(self, policy: Policy) -> None:
        self.site = Site(policy, size=6)
        self.newest = 1

    @rule(
        name=st.integers(0, 6).map(lambda n: f"d{n}"),
        stage=st.sampled_from([S.APPLYING, S.BAKING, S.SUCCEEDED, S.FAILED]),
        cause=st.sampled_from([UNHEALTHY, PASSES]),
    )
    def word(self, name: str, stage: Stage, cause: Cause) -> None:
        if name in self.site.rows and name in self.site.devices:
            self.site.say([name], stage, cause=cause)

    @rule(minutes=st.sampled_from([1, 5, 70, 20_000]))
    def time(self, minutes: int) -> None:
        self.site.pass_time(minutes * MINUTE)

    @rule()
    def deploy(self) -> None:
        self.newest += 1
        self.site.deploy(self.newest)

    @rule()
    def report(self) -> None:
        self.site.report()

    @rule(name=st.integers(0, 6).map(lambda n: f"d{n}"))
    def leave(self, name: str) -> None:
        self.site.leave(name)

    @rule(name=st.integers(0, 6).map(lambda n: f"d{n}"))
    def back(self, name: str) -> None:
        self.site.back(name)

    @rule()
    def retry(self) -> None:
        with suppress(Refused):
            change = retried(self.site.fleet, [], [*BAD_ONES, S.NOT_REACHED], self.site.at())
            if change is not None:
                self.site.take(change)

    @rule()
    def resume(self) -> None:
        if self.site.state() is RolloutState.PAUSED:
            self.site.resume()

    @invariant()
    def columns_add_up(self) -> None:
        if hasattr(self, "site"):
            assert self.site.tally.total == len(self.site.rows)

    @invariant()
    def what_is_not_over_has_a_deadline_or_a_turn_to_come(self) -> None:
        for row in self.site.rows.values() if hasattr(self, "site") else ():
            assert row.stage.over or row.stage is S.WAITING or row.due > self.site.now

    @invariant()
    def what_is_over_has_nobody_under_way_to_what_was_given_up(self) -> None:
        if hasattr(self, "site") and self.site.policy.rollback:
            over = self.site.state() in (RolloutState.ROLLED_BACK, RolloutState.FAILED)
            assert not over or not self.site.tally.under_way

    @invariant()
    def nobody_runs_what_was_given_up(self) -> None:
        if not hasattr(self, "site") or not self.site.policy.rollback:
            return
        given_up = {n for n, one in self.site.revisions.items() if one.cause is not None}
        for one in self.site.devices.values():
            assert not given_up & {want.revision for want in one.wants}

    def teardown(self) -> None:
        if not hasattr(self, "site"):
            return
        for _ in range(10):
            self.site.pass_time(30 * 24 * 60 * MINUTE)
        if not self.site.devices and not self.site.rows:
            # What is for nobody waits for the first one.
            return
        assert self.site.state().over
        if self.site.state() is RolloutState.SUCCEEDED:
            self.everybody_has_the_newest()

    def everybody_has_the_newest(self) -> None:
        for name in [*self.site.devices, *self.site.names(S.LEFT)]:
            self.site.back(name)
        for _ in range(len(self.site.devices)):
            self.site.pass_time(10 * MINUTE)
            self.site.work(self.site.devices)
        newest = self.site.rollout.to_revision
        assert {self.site.runs(name) for name in self.site.devices} <= {newest}
        tried = (S.SUCCEEDED, S.FAILED)
        assert all(self.site.stage(name) in tried for name in self.site.devices)


Releases.TestCase.settings = limits(max_examples=60, stateful_step_count=40, deadline=None)
TestReleases = Releases.TestCase
