"""Gangs: all begin, all end, and what is terminal stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from domain_rows import CANCEL, NOW, after, intent, new_job, rows_of, view_of
from hypothesis import given
from hypothesis import strategies as st

from hatoba_scheduler.domain import causes, gangs
from hatoba_scheduler.domain.adopting import Stray, attached
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.preempting import drained, give_way, preempted
from hatoba_scheduler.domain.records import Cause, Job, RetryPolicy, Terms
from hatoba_scheduler.domain.states import (
    AttemptState,
    CauseCode,
    GangPolicy,
    JobState,
    Origin,
    Release,
)
from hatoba_scheduler.domain.transitions import Now, Outcome, Rows, cancel, released, running

J = JobState
A = AttemptState
GOOD = Outcome(A.SUCCEEDED, None, gone=True)
LATER = Now(NOW.time + 3_600_000_000, "tester")


def bad(kind: ExitKind = ExitKind.EXITED, code: int = 1, **fields: Any) -> Outcome:
    state, cause = causes.judge(Ending(kind, code))
    return replace(Outcome(state, cause, gone=True), **fields)


LOST = bad(ExitKind.LOST)


def gang_job(size: int = 3, policy: GangPolicy = GangPolicy.RESTART, **fields: Any) -> Job:
    terms = Terms(gang=True, gang_policy=policy, gang_timeout=600.0)
    return replace(new_job(size=size, **fields), terms=terms)


def begun(rows: Rows) -> Rows:
    """The next generation is launched."""
    intents = [intent(rows, index) for index in range(rows.job.size)]
    return after(rows, gangs.launch_all(rows, intents, NOW))


def claim(rows: Rows, index: int) -> Rows:
    nonce, address = f"nonce-{index}", f"host-{index}:1"
    return after(rows, gangs.claimed(view_of(rows, index), nonce, address, NOW))


def run(rows: Rows) -> Rows:
    """All have claimed and run."""
    for index in range(rows.job.size):
        rows = claim(rows, index)
    for index in range(rows.job.size):
        rows = after(rows, running(view_of(rows, index), 5, "", NOW))
    return rows


def end(rows: Rows, index: int, outcome: Outcome) -> Rows:
    return after(rows, gangs.ended(view_of(rows, index), outcome, NOW))


def end_all(rows: Rows, outcome: Outcome = LOST) -> Rows:
    """Whatever is live ends so."""
    for index in range(rows.job.size):
        if not rows.attempts[index].state.terminal:
            rows = end(rows, index, outcome)
    return rows


def states(rows: Rows) -> list[JobState]:
    return [rows.tasks[index].state for index in range(rows.job.size)]


def cause_codes(rows: Rows) -> list[CauseCode | None]:
    found = [rows.tasks[index].cause for index in range(rows.job.size)]
    return [cause.code if cause else None for cause in found]


# -- the beginning --------------------------------------------------------------------------------


def test_all_members_are_launched_by_one_change_or_none() -> None:
    rows = rows_of(gang_job(3))
    assert gangs.launch_all(rows, [intent(rows, 0), intent(rows, 1)], NOW) is None
    change = gangs.launch_all(rows, [intent(rows, index) for index in range(3)], NOW)
    assert change is not None
    assert [(row.index, row.generation) for row, _ in change.attempts] == [(0, 1), (1, 1), (2, 1)]
    assert change.job.generation == 1
    again = after(rows, change)
    assert gangs.launch_all(again, [intent(again, index) for index in range(3)], NOW) is None


def test_nobody_runs_before_all_have_claimed() -> None:
    rows = begun(rows_of(gang_job(3)))
    for index in (2, 0):
        rows = claim(rows, index)
        assert not gangs.all_claimed(rows)
    rows = claim(rows, 1)
    assert gangs.all_claimed(rows)
    assert [one.address for one in gangs.members(rows)] == ["host-0:1", "host-1:1", "host-2:1"]


def test_members_that_claim_too_late_let_all_go_at_nobodys_charge() -> None:
    rows = claim(begun(rows_of(gang_job(3, GangPolicy.FAIL))), 1)
    assert gangs.claims_due(rows) == NOW.time + 600_000_000
    assert gangs.timed_out(rows, NOW) is None
    change = gangs.timed_out(rows, LATER)
    assert change is not None
    assert {event.note for event in change.events} == {
        "1 of 3 members had claimed within 600 s; missing: 0, 2."
    }
    rows = after(rows, change)
    assert gangs.claims_due(rows) is None
    rows = end_all(rows)
    assert states(rows) == [J.QUEUED] * 3
    assert [rows.tasks[index].infrastructure_failures for index in range(3)] == [0, 0, 0]
    assert cause_codes(rows) == [CauseCode.GANG_TIMEOUT] * 3
    again = begun(rows)
    assert {one.generation for one in again.attempts.values()} == {2}


@pytest.mark.parametrize("end_of", ["time", "work", "failure"])
def test_of_which_only_some_were_found_after_a_restore_begins_anew(end_of: str) -> None:
    rows = rows_of(gang_job(3, GangPolicy.FAIL))
    for index in (0, 2):
        name = f"h0-{rows.job.uid}-{index}-4"
        nonce = "n" * 16
        stray = Stray(name, "null", index, 4, b"1:pool", True, "b" * 16, nonce=nonce)
        rows = after(rows, attached(rows, stray, NOW))
    assert not gangs.all_claimed(rows)
    assert gangs.claims_due(rows) == NOW.time + 600_000_000
    if end_of == "time":
        change = gangs.timed_out(rows, LATER)
        assert change is not None
        assert change.events[0].note == "2 of 3 members had claimed within 600 s; missing: 1."
        rows = after(rows, change)
    for index in (0, 2):
        rows = end(rows, index, bad() if end_of == "failure" else GOOD)
    assert rows.job.counts[J.QUEUED] == 3
    assert gangs.claims_due(rows) is None
    assert {one.generation for one in begun(rows).attempts.values()} == {5}


def test_a_gang_whose_members_have_claimed_is_not_timed_out() -> None:
    rows = run(begun(rows_of(gang_job(2))))
    assert gangs.claims_due(rows) is None
    assert gangs.timed_out(rows, LATER) is None


# -- the end --------------------------------------------------------------------------------------


def test_it_has_succeeded_when_all_have() -> None:
    rows = run(begun(rows_of(gang_job(3))))
    rows = end(rows, 1, GOOD)
    rows = end(rows, 0, GOOD)
    assert states(rows) == [J.STOPPING, J.STOPPING, J.RUNNING]
    assert rows.job.state is J.RUNNING
    rows = end(rows, 2, GOOD)
    assert states(rows) == [J.SUCCEEDED] * 3
    assert rows.job.state is J.SUCCEEDED
    assert rows.job.cause is None


def test_one_failure_fails_all_where_the_policy_says_so() -> None:
    rows = run(begun(rows_of(gang_job(3, GangPolicy.FAIL, retries=RetryPolicy(user=9)))))
    rows = end(rows, 0, GOOD)
    rows = end(rows, 2, bad(code=7))
    assert rows.attempts[1].state is A.STOPPING
    assert rows.attempts[1].cause is not None
    assert rows.attempts[1].cause.code is CauseCode.GANG_FAILED
    assert not rows.job.state.terminal
    rows = end(rows, 1, bad(ExitKind.STOPPED))
    assert states(rows) == [J.SUCCEEDED, J.FAILED, J.FAILED]
    assert rows.job.state is J.FAILED
    assert rows.job.cause is not None
    assert (rows.job.cause.code, rows.job.cause.exit_code) == (CauseCode.EXIT_CODE, 7)
    assert cause_codes(rows)[1] is CauseCode.GANG_FAILED


def test_one_failure_begins_all_anew_and_is_charged_once() -> None:
    rows = run(begun(rows_of(gang_job(3))))
    rows = end(rows, 0, GOOD)
    rows = end(rows, 2, replace(LOST, wait=3.0))
    assert [rows.tasks[index].infrastructure_failures for index in range(3)] == [1, 1, 1]
    rows = end(rows, 1, bad(ExitKind.STOPPED))
    assert states(rows) == [J.QUEUED] * 3
    assert [rows.tasks[index].infrastructure_failures for index in range(3)] == [1, 1, 1]
    assert max(task.not_before for task in rows.tasks.values()) == NOW.time + 3_000_000
    assert rows.job.state is J.RUNNING
    again = begun(rows)
    assert again.job.generation == 2
    assert {attempt.number for attempt in again.attempts.values()} == {2}
    assert [task.outputs for task in again.tasks.values()] == [None] * 3


def test_the_next_generation_waits_until_every_old_member_is_gone() -> None:
    rows = run(begun(rows_of(gang_job(2))))
    rows = end(rows, 0, LOST)
    rows = end(rows, 1, replace(bad(ExitKind.STOPPED), gone=False))
    assert states(rows) == [J.QUEUED] * 2
    intents = [intent(rows, index) for index in range(2)]
    assert gangs.launch_all(rows, intents, NOW) is None
    rows = after(rows, released(view_of(rows, 1)))
    assert gangs.launch_all(rows, intents, NOW) is not None


def test_with_the_budget_spent_it_fails() -> None:
    job = gang_job(2, retries=RetryPolicy(infrastructure=1))
    rows = run(begun(rows_of(job)))
    rows = end_all(end(rows, 0, LOST))
    rows = run(begun(rows))
    rows = end_all(end(rows, 1, LOST))
    assert states(rows) == [J.FAILED] * 2
    assert rows.job.state is J.FAILED
    assert rows.job.cause is not None
    assert rows.job.cause.code is CauseCode.LOST


def test_a_cancel_ends_all_and_keeps_what_succeeded() -> None:
    rows = run(begun(rows_of(gang_job(3))))
    rows = end(rows, 0, GOOD)
    rows = after(rows, cancel(rows, CANCEL, NOW))
    rows = end_all(rows, bad(ExitKind.STOPPED))
    assert states(rows) == [J.SUCCEEDED, J.CANCELLED, J.CANCELLED]
    assert rows.job.state is J.CANCELLED


def test_a_cancel_comes_before_another_generation() -> None:
    rows = run(begun(rows_of(gang_job(2))))
    rows = end(rows, 0, LOST)
    rows = after(rows, cancel(rows, CANCEL, NOW))
    rows = end_all(rows, bad(ExitKind.STOPPED))
    assert states(rows) == [J.CANCELLED] * 2


@pytest.mark.parametrize(
    ("cause", "preemptions"),
    [(preempted("For a."), 1), (drained("Host 'h'", "ops", "repair"), 0)],
)
def test_whose_place_is_taken_begins_anew_whatever_the_policy(
    cause: Cause, preemptions: int
) -> None:
    rows = run(begun(rows_of(gang_job(3, GangPolicy.FAIL))))
    change = give_way(rows, [1], cause, NOW)
    assert change is not None
    assert {row.index for row, _ in change.attempts} == {0, 1, 2}
    rows = end_all(after(rows, change), bad(ExitKind.STOPPED))
    assert states(rows) == [J.QUEUED] * 3
    assert [rows.tasks[index].preemptions for index in range(3)] == [preemptions] * 3
    assert [rows.tasks[index].adapted.preempted for index in range(3)] == [preemptions] * 3
    assert {attempt.state for attempt in rows.attempts.values()} == {A.PREEMPTED}


ENDINGS = (GOOD, LOST, bad(), bad(ExitKind.STOPPED), bad(ExitKind.OUT_OF_MEMORY))


@given(
    policy=st.sampled_from(list(GangPolicy)),
    order=st.permutations(range(4)),
    endings=st.lists(st.sampled_from(ENDINGS), min_size=4, max_size=4),
    claims=st.integers(0, 4),
    cancel_after=st.integers(0, 8),
)
def test_members_settle_together_and_never_leave_an_end(
    policy: GangPolicy,
    order: Sequence[int],
    endings: Sequence[Outcome],
    claims: int,
    cancel_after: int,
) -> None:
    rows = begun(rows_of(gang_job(4, policy, retries=RetryPolicy(user=1, infrastructure=1))))
    for index in range(claims):
        rows = claim(rows, index)
    for step, (index, outcome) in enumerate(zip(order, endings, strict=True)):
        if step == cancel_after:
            rows = after(rows, cancel(rows, CANCEL, NOW))
        settled = {state for state in states(rows) if state.terminal or state is J.QUEUED}
        assert not settled
        rows = end(rows, index, outcome)
    found = states(rows)
    assert len({state is J.QUEUED for state in found}) == 1
    assert sum(rows.job.counts) == 4
    assert all(rows.job.counts[state] == found.count(state) for state in JobState)
    good = all(outcome is GOOD for outcome in endings)
    assert (rows.job.state is J.SUCCEEDED) == good
    if found[0] is J.QUEUED:
        assert all(one.release is Release.RELEASED for one in rows.attempts.values())
        assert begun(rows).job.generation == 2
    else:
        assert rows.job.state.terminal


def test_who_has_no_gang_ends_alone() -> None:
    rows = run_single()
    rows = after(rows, gangs.ended(view_of(rows), bad(), NOW))
    assert rows.job.state is J.FAILED
    assert rows.tasks[0].cause is not None
    assert rows.tasks[0].cause.origin is Origin.USER


def run_single() -> Rows:
    from domain_rows import launched_rows

    rows = launched_rows(new_job())
    return after(rows, running(view_of(rows), 5, "", NOW))
