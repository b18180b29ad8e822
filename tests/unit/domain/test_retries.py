"""Whether another attempt follows, when, what is changed for it, and how that is said."""

from __future__ import annotations

import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from domain_rows import CANCEL, MANIFEST, NOW, after, intent, new_job, rows_of, view_of
from hypothesis import given, settings

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.records import (
    Cause,
    Checkpoint,
    Event,
    Resources,
    RetryMutation,
    RetryPolicy,
    RetryRule,
    Task,
)
from hatoba_scheduler.domain.retries import MOST_AVOIDED, back_off
from hatoba_scheduler.domain.states import (
    AttemptState,
    CauseCode,
    JobState,
    Origin,
    RetryAction,
)
from hatoba_scheduler.domain.transitions import (
    Outcome,
    Rows,
    cancel,
    checkpointed,
    ended,
    launch,
)

J = JobState
RNG = random.Random(1)
GIB = 1 << 30


def outcome(
    kind: ExitKind, *, code: int = 1, wait: float = 0.0, most: int = 0, spot: bool = False
) -> Outcome:
    """Nothing is left of an attempt that ended so."""
    state, cause = causes.judge(Ending(kind, code=code, signal=9, spot=spot))
    return Outcome(state, cause, wait=wait, gone=True, most_memory=most)


def fault(code: CauseCode, origin: Origin = Origin.INFRASTRUCTURE) -> Outcome:
    """As `outcome`, of any cause."""
    return Outcome(AttemptState.FAILED, Cause(code, origin, "So.", True), gone=True)


FULL = Outcome(
    AttemptState.REFUSED,
    causes.refused(CauseCode.NO_CAPACITY, Origin.CAPACITY, "No room."),
    wait=5.0,
    gone=True,
    charged=False,
)


def ending(rows: Rows, how: Outcome, host: str = "pool") -> tuple[Rows, Event]:
    """One more attempt, ended so; and the event that tells of its end."""
    rows = after(rows, launch(rows, replace(intent(rows), host=host), NOW))
    change = ended(view_of(rows), how, NOW)
    assert change is not None
    return after(rows, change), change.events[-1]


def ruled(*rules: RetryRule, **policy: int) -> Rows:
    job = new_job(retries=RetryPolicy(rules=rules, **policy))
    return rows_of(replace(job, resources=Resources(memory=4 * GIB)))


def notes(rows: Rows, *hows: Outcome) -> list[str]:
    told = []
    for how in hows:
        rows, event = ending(rows, how)
        told.append(event.note)
    return told


def test_every_decision_says_whose_budget_pays_and_what_is_left() -> None:
    lost, left = outcome(ExitKind.LOST, wait=4.2), outcome(ExitKind.PREEMPTED)
    assert notes(ruled(infrastructure=1), lost, left, FULL, lost) == [
        "Retry 1 of 1 for infrastructure in 4.2 s.",
        "Retry 1 of 10 for preemption in 0.0 s.",
        "Tried again without charge in 5.0 s.",
        "No retry: the budget of 1 for infrastructure is spent.",
    ]


def test_a_user_error_has_no_budget_unless_asked_for() -> None:
    told = notes(ruled(), outcome(ExitKind.EXITED))
    assert told == ["No retry: the budget of 0 for user errors is spent."]


def test_what_would_come_again_is_not_tried_again() -> None:
    told = notes(ruled(user=5), outcome(ExitKind.NOT_FOUND))
    assert told == ["No retry: COMMAND_NOT_FOUND would come again."]


def test_a_rule_that_names_such_a_cause_is_taken_at_its_word() -> None:
    rule = RetryRule(causes=(CauseCode.RUN_TIMEOUT,), limit=1)
    rows, event = ending(ruled(rule), outcome(ExitKind.RUN_TIMEOUT))
    assert (rows.job.state, event.note) == (J.QUEUED, "Retry 1 of 1 by rule 1 in 0.0 s.")


def test_more_memory_after_running_out_of_it_up_to_the_rules_most() -> None:
    rule = RetryRule(
        (CauseCode.OUT_OF_MEMORY,),
        limit=3,
        mutate=RetryMutation(memory_factor=2.0, memory_max=12 * GIB),
    )
    out = outcome(ExitKind.OUT_OF_MEMORY)
    rows = ruled(rule)
    assert notes(rows, out, out, out, out) == [
        "Retry 1 of 3 by rule 1 in 0.0 s; memory 4 GiB -> 8 GiB by rule 1.",
        "Retry 2 of 3 by rule 1 in 0.0 s; memory 8 GiB -> 12 GiB by rule 1.",
        "Retry 3 of 3 by rule 1 in 0.0 s.",
        "No retry: the limit of 3 of rule 1 is reached.",
    ]


def test_no_retry_asks_for_more_than_the_largest_place_has() -> None:
    rule = RetryRule(origins=(Origin.USER,), limit=2, mutate=RetryMutation(memory_factor=4.0))
    rows, _ = ending(ruled(rule), outcome(ExitKind.OUT_OF_MEMORY, most=6 * GIB))
    assert rows.tasks[0].adapted.memory == 6 * GIB
    rows, _ = ending(rows, outcome(ExitKind.OUT_OF_MEMORY, most=5 * GIB))
    assert rows.tasks[0].adapted.memory == 6 * GIB


def test_a_rules_retries_are_not_taken_from_the_users_budget() -> None:
    rule = RetryRule((CauseCode.OUT_OF_MEMORY,), limit=1)
    rows, _ = ending(ruled(rule, user=1), outcome(ExitKind.OUT_OF_MEMORY))
    rows, event = ending(rows, outcome(ExitKind.EXITED))
    assert (rows.job.state, event.note) == (J.QUEUED, "Retry 1 of 1 for user errors in 0.0 s.")


def test_a_rules_limit_stands_beside_the_budget_of_infrastructure() -> None:
    rule = RetryRule(origins=(Origin.INFRASTRUCTURE,), limit=5)
    lost = outcome(ExitKind.LOST)
    told = notes(ruled(rule, infrastructure=1), lost, lost)
    assert told[-1] == "No retry: the budget of 1 for infrastructure is spent."


def test_the_first_rule_that_matches_decides() -> None:
    rules = (
        RetryRule(exit_codes=(75,), limit=1),
        RetryRule(origins=(Origin.USER,), action=RetryAction.FAIL),
    )
    retried, _ = ending(ruled(*rules, user=3), outcome(ExitKind.EXITED, code=75))
    failed, event = ending(ruled(*rules, user=3), outcome(ExitKind.EXITED, code=76))
    assert (retried.job.state, failed.job.state) == (J.QUEUED, J.FAILED)
    assert event.note == "No retry: rule 2 says to fail."


def test_exit_codes_speak_of_commands_that_exited() -> None:
    rule = RetryRule(exit_codes=(0, 9), limit=3)
    rows, _ = ending(ruled(rule), outcome(ExitKind.SIGNALED))
    assert rows.job.state is J.FAILED


def test_a_rule_may_say_not_to_wait_for_capacity() -> None:
    rule = RetryRule(causes=(CauseCode.NO_CAPACITY,), action=RetryAction.FAIL)
    rows, event = ending(ruled(rule), FULL)
    assert (rows.job.state, event.note) == (J.FAILED, "No retry: rule 1 says to fail.")


def test_a_faulty_device_is_left_behind() -> None:
    rows, event = ending(ruled(), fault(CauseCode.DEVICE_FAULT), host="gpu-3")
    assert rows.tasks[0].adapted.avoid == ("gpu-3",)
    assert event.note.endswith("; not on gpu-3 while there is another.")


def test_hosts_are_avoided_once_and_not_without_end() -> None:
    rule = RetryRule(origins=(Origin.INFRASTRUCTURE,), mutate=RetryMutation(other_host=True))
    rows = ruled(rule, infrastructure=100)
    for number in range(MOST_AVOIDED + 3):
        for _ in range(2):
            rows, _ = ending(rows, outcome(ExitKind.LOST), host=f"h{number}")
    assert rows.tasks[0].adapted.avoid == tuple(f"h{n}" for n in range(3, MOST_AVOIDED + 3))


def test_after_so_many_losses_of_spot_capacity_none_any_more() -> None:
    rule = RetryRule((CauseCode.SPOT_RECLAIMED,), mutate=RetryMutation(on_demand_after=2))
    rows, event = ending(ruled(rule), outcome(ExitKind.PREEMPTED, spot=True))
    assert not rows.tasks[0].adapted.on_demand
    rows, event = ending(rows, outcome(ExitKind.PREEMPTED))
    assert not rows.tasks[0].adapted.on_demand
    rows, event = ending(rows, outcome(ExitKind.PREEMPTED, spot=True))
    assert rows.tasks[0].adapted.on_demand
    assert "no spot capacity after 2 losses of it by rule 1" in event.note


def test_what_is_being_cancelled_is_not_tried_again() -> None:
    rows = ruled(infrastructure=3)
    rows = after(rows, launch(rows, intent(rows), NOW))
    rows = after(rows, cancel(rows, CANCEL, NOW))
    rows = after(rows, ended(view_of(rows), outcome(ExitKind.LOST), NOW))
    assert rows.job.state is J.CANCELLED


@pytest.mark.parametrize(("failures", "ceiling"), [(0, 1.0), (1, 2.0), (3, 8.0), (50, 60.0)])
def test_back_off_doubles_up_to_its_ceiling(failures: int, ceiling: float) -> None:
    job = new_job(retries=RetryPolicy(backoff=1.0, max_backoff=60.0))
    task = Task(job.uid, 0, J.RUNNING, 1, 1, infrastructure_failures=failures)
    waits = [back_off(job, task, RNG) for _ in range(200)]
    assert 0.8 * ceiling < max(waits) <= ceiling
    assert min(waits) < 0.2 * ceiling


CODES = st.sampled_from(
    [CauseCode.EXIT_CODE, CauseCode.LOST, CauseCode.SPOT_RECLAIMED, CauseCode.DEVICE_FAULT]
)
MUTATIONS = st.builds(
    RetryMutation,
    memory_factor=st.sampled_from([0.0, 1.5, 16.0]),
    memory_max=st.sampled_from([0, 5 * GIB]),
    other_host=st.booleans(),
    on_demand_after=st.integers(0, 2),
)
RULES = st.builds(
    RetryRule,
    causes=st.lists(CODES, max_size=2).map(tuple),
    origins=st.lists(st.sampled_from(Origin), max_size=2).map(tuple),
    exit_codes=st.sampled_from([(), (1,), (1, 2)]),
    action=st.sampled_from(RetryAction),
    limit=st.one_of(st.none(), st.integers(0, 3)),
    mutate=MUTATIONS,
)
POLICIES = st.builds(
    RetryPolicy,
    user=st.integers(0, 3),
    infrastructure=st.integers(0, 3),
    preemption=st.integers(0, 3),
    rules=st.lists(RULES, max_size=4).map(tuple),
)
ENDINGS = st.sampled_from(
    [
        outcome(ExitKind.EXITED),
        outcome(ExitKind.EXITED, code=2),
        outcome(ExitKind.OUT_OF_MEMORY, most=32 * GIB),
        outcome(ExitKind.NOT_FOUND),
        outcome(ExitKind.LOST),
        outcome(ExitKind.PREEMPTED),
        fault(CauseCode.DEVICE_FAULT),
        fault(CauseCode.LOST, Origin.UNKNOWN),
    ]
)


@settings(max_examples=150, deadline=None)
@given(policy=POLICIES, hows=st.lists(ENDINGS, min_size=30, max_size=30))
def test_attempts_are_bounded_by_budgets_and_limits(
    policy: RetryPolicy, hows: list[Outcome]
) -> None:
    """Without a checkpoint: no more attempts than the budgets and limits add up to."""
    limits = [rule.limit or 0 for rule in policy.rules]
    most = 1 + policy.user + policy.infrastructure + policy.preemption + sum(limits)
    rows = ruled(*policy.rules, user=policy.user, infrastructure=policy.infrastructure)
    rows = replace(rows, job=replace(rows.job, retries=policy))
    for how in hows:
        rows, event = ending(rows, how)
        task = rows.tasks[0]
        assert event.note
        assert min(task.user_failures, task.infrastructure_failures, task.preemptions) >= 0
        for rule, uses in zip(policy.rules, task.adapted.rule_uses, strict=False):
            assert rule.limit is None or uses <= rule.limit
        if rows.job.state.terminal:
            break
    assert rows.job.state is J.FAILED
    assert rows.tasks[0].attempt <= most


@settings(max_examples=50, deadline=None)
@given(budget=st.integers(0, 3), hows=st.lists(st.booleans(), max_size=30))
def test_preemptions_are_counted_since_the_last_checkpoint(budget: int, hows: list[bool]) -> None:
    rows = ruled(preemption=budget)
    since = 0
    for step, saved in enumerate(hows):
        rows = after(rows, launch(rows, intent(rows), NOW))
        if saved:
            rows = after(rows, checkpointed(view_of(rows), Checkpoint(step, 1, MANIFEST)))
            since = 0
        rows = after(rows, ended(view_of(rows), outcome(ExitKind.PREEMPTED), NOW))
        since += 1
        if since > budget:
            assert rows.job.state is J.FAILED
            return
        assert rows.job.state is J.QUEUED
