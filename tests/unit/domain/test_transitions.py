"""The constructors of changes, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from domain_rows import (
    CANCEL,
    MANIFEST,
    NOW,
    after,
    intent,
    launched_rows,
    new_job,
    rows_of,
    view_of,
)

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.records import Cause, Checkpoint, Counts, RetryPolicy, combined
from hatoba_scheduler.domain.states import (
    STATE_COUNT,
    AttemptState,
    CauseCode,
    Desired,
    JobState,
    Origin,
    Release,
)
from hatoba_scheduler.domain.transitions import (
    Outcome,
    Rows,
    cancel,
    checkpointed,
    claimed,
    derive_state,
    ended,
    fail_fast,
    launch,
    released,
    running,
    stopping,
)

J = JobState
GOOD = Outcome(AttemptState.SUCCEEDED, None, gone=True)
PREEMPTION = causes.judge(Ending(ExitKind.STOPPED))[1]


def bad(kind: ExitKind, *, wait: float = 0.0, charged: bool = True) -> Outcome:
    """An attempt of which nothing is left ended so."""
    state, cause = causes.judge(Ending(kind, code=1, signal=9))
    return Outcome(state, cause, wait=wait, gone=True, charged=charged)


def attempt_ending(rows: Rows, outcome: Outcome, index: int = 0) -> Rows:
    rows = after(rows, launch(rows, intent(rows, index), NOW))
    return after(rows, ended(view_of(rows, index), outcome, NOW))


def two_under_way() -> Rows:
    rows = launched_rows(new_job(size=3, fail_fast=True))
    return after(rows, launch(rows, intent(rows, 1), NOW))


@pytest.mark.parametrize(
    ("kind", "policy", "attempts"),
    [
        (ExitKind.EXITED, RetryPolicy(), 1),
        (ExitKind.EXITED, RetryPolicy(user=2), 3),
        (ExitKind.NOT_FOUND, RetryPolicy(user=2), 1),
        (ExitKind.RUN_TIMEOUT, RetryPolicy(user=2), 1),
        (ExitKind.LOST, RetryPolicy(), 4),
        (ExitKind.STAGING_FAILED, RetryPolicy(infrastructure=1), 2),
        (ExitKind.PREEMPTED, RetryPolicy(), 11),
    ],
)
def test_a_budget_pays_for_so_many_attempts(
    kind: ExitKind, policy: RetryPolicy, attempts: int
) -> None:
    rows = rows_of(new_job(retries=policy))
    while not rows.job.state.terminal:
        rows = attempt_ending(rows, bad(kind))
    assert rows.tasks[0].attempt == attempts


def test_one_origin_does_not_pay_for_another() -> None:
    rows = rows_of(new_job(retries=RetryPolicy(user=1, infrastructure=1, preemption=1)))
    for kind in (ExitKind.EXITED, ExitKind.LOST, ExitKind.PREEMPTED):
        rows = attempt_ending(rows, bad(kind))
        assert rows.job.state is J.QUEUED
    rows = attempt_ending(rows, bad(ExitKind.LOST))
    assert rows.job.state is J.FAILED


def test_no_room_is_waited_for_without_end_and_charge() -> None:
    rows = rows_of(new_job(retries=RetryPolicy(0, 0, 0)))
    cause = causes.refused(CauseCode.NO_CAPACITY, Origin.CAPACITY, "No room.")
    full = Outcome(AttemptState.REFUSED, cause, wait=2.5, gone=True, charged=False)
    for _ in range(20):
        rows = attempt_ending(rows, full)
    task = rows.tasks[0]
    assert (task.state, task.not_before) == (J.QUEUED, NOW.time + 2_500_000)
    assert (task.user_failures, task.infrastructure_failures, task.preemptions) == (0, 0, 0)


def test_a_new_checkpoint_makes_preemptions_count_anew() -> None:
    rows = rows_of(new_job(retries=RetryPolicy(preemption=1)))
    for step in range(1, 5):
        rows = after(rows, launch(rows, intent(rows), NOW))
        view = view_of(rows)
        rows = after(rows, checkpointed(view, Checkpoint(step, view.attempt.number, MANIFEST)))
        rows = after(rows, ended(view_of(rows), bad(ExitKind.PREEMPTED), NOW))
    assert rows.job.state is J.QUEUED
    assert rows.tasks[0].checkpoint == Checkpoint(4, 4, MANIFEST)


def test_an_older_checkpoint_changes_nothing() -> None:
    rows = launched_rows(new_job())
    rows = after(rows, checkpointed(view_of(rows), Checkpoint(7, 1, MANIFEST)))
    assert checkpointed(view_of(rows), Checkpoint(7, 1, MANIFEST)) is None
    assert checkpointed(view_of(rows), Checkpoint(6, 1, MANIFEST)) is None


def test_the_next_attempt_waits_until_the_last_is_gone() -> None:
    rows = launched_rows(new_job())
    rows = after(rows, ended(view_of(rows), replace(bad(ExitKind.LOST), gone=False), NOW))
    assert rows.attempts[0].release is Release.RELEASING
    assert launch(rows, intent(rows), NOW) is None
    rows = after(rows, released(view_of(rows)))
    rows = after(rows, launch(rows, intent(rows), NOW))
    assert (rows.attempts[0].number, rows.attempts[0].fence) == (2, 2)


def test_what_is_held_blocked_or_cancelled_is_not_launched() -> None:
    for rows in (
        rows_of(new_job(hold=True)),
        rows_of(new_job(blocked_on=("up",))),
        after(rows_of(new_job(size=2)), cancel(rows_of(new_job(size=2)), CANCEL, NOW)),
    ):
        assert launch(rows, intent(rows), NOW) is None


def test_a_cancel_ends_what_waits_and_stops_what_lives() -> None:
    rows = rows_of(new_job(size=3))
    rows = attempt_ending(rows, bad(ExitKind.LOST), 0)
    rows = after(rows, launch(rows, intent(rows, 1), NOW))
    rows = after(rows, cancel(rows, CANCEL, NOW))
    assert (rows.tasks[0].state, rows.tasks[1].state) == (J.CANCELLED, J.STOPPING)
    assert rows.job.unstarted_state is J.CANCELLED
    assert rows.job.state is J.STOPPING
    rows = after(rows, ended(view_of(rows, 1), bad(ExitKind.LOST), NOW))
    assert rows.job.state is J.CANCELLED
    assert rows.attempts[1].state is AttemptState.CANCELLED
    assert rows.job.cause == CANCEL


def test_success_that_came_before_the_stop_is_success() -> None:
    rows = launched_rows(new_job())
    rows = after(rows, cancel(rows, CANCEL, NOW))
    rows = after(rows, ended(view_of(rows), replace(GOOD, outputs=MANIFEST), NOW))
    job = rows.job
    assert (job.state, job.desired, job.cause) == (J.SUCCEEDED, Desired.CANCELLED, None)
    assert job.outputs == MANIFEST


@pytest.mark.parametrize("intended", [AttemptState.TIMED_OUT, AttemptState.PREEMPTED])
def test_a_cancel_counts_though_it_was_being_stopped_for_something_else(
    intended: AttemptState,
) -> None:
    rows = launched_rows(new_job())
    rows = after(rows, stopping(view_of(rows), intended, PREEMPTION, NOW))
    rows = after(rows, cancel(rows, CANCEL, NOW))
    assert stopping(view_of(rows), intended, PREEMPTION, NOW) is None
    rows = after(rows, ended(view_of(rows), bad(ExitKind.SIGNALED), NOW))
    assert rows.job.state is J.CANCELLED
    assert (rows.attempts[0].state, rows.attempts[0].cause) == (AttemptState.CANCELLED, CANCEL)


def test_a_fast_failure_ends_what_was_being_preempted() -> None:
    rows = two_under_way()
    rows = after(rows, stopping(view_of(rows, 1), AttemptState.PREEMPTED, PREEMPTION, NOW))
    rows = after(rows, ended(view_of(rows, 0), bad(ExitKind.EXITED), NOW))
    rows = after(rows, fail_fast(rows, 0, NOW))
    rows = after(rows, ended(view_of(rows, 1), bad(ExitKind.LOST), NOW))
    assert rows.tasks[1].state is J.CANCELLED
    assert rows.job.state is J.FAILED


def test_a_fast_failure_is_told_once() -> None:
    rows = two_under_way()
    rows = after(rows, ended(view_of(rows, 0), bad(ExitKind.EXITED), NOW))
    rows = after(rows, fail_fast(rows, 0, NOW))
    assert (rows.job.state, rows.job.unstarted_state) == (J.STOPPING, J.CANCELLED)
    assert fail_fast(rows, 0, NOW) is None


def test_a_fast_failure_of_an_array_that_did_not_ask_for_it_is_none() -> None:
    rows = attempt_ending(rows_of(new_job(size=2)), bad(ExitKind.EXITED))
    assert fail_fast(rows, 0, NOW) is None


def test_a_claim_after_its_backend_told_of_the_run_is_kept_and_moves_nothing() -> None:
    rows = launched_rows(new_job())
    rows = after(rows, running(view_of(rows), 5, "", NOW))
    change = claimed(view_of(rows), "nonce", NOW)
    assert change.events == ()
    assert change.attempts[0].row.nonce == "nonce"
    assert change.attempts[0].row.state is AttemptState.RUNNING


def test_changes_that_do_not_follow_each_other_are_not_one() -> None:
    rows = rows_of(new_job(size=2))
    changes = [launch(rows, intent(rows, index), NOW) for index in (0, 1)]
    with pytest.raises(ValueError, match="version"):
        combined([change for change in changes if change])


def counts(**numbers: int) -> Counts:
    found = [0] * STATE_COUNT
    for name, count in numbers.items():
        found[JobState[name]] = count
    return tuple(found)


@pytest.mark.parametrize(
    ("tasks", "started", "desired", "expected"),
    [
        ({"QUEUED": 2}, False, Desired.RUN, J.QUEUED),
        ({"QUEUED": 1, "LAUNCHING": 1}, False, Desired.RUN, J.LAUNCHING),
        ({"LAUNCHING": 1, "WAITING": 1}, False, Desired.RUN, J.WAITING),
        ({"STARTING": 1, "WAITING": 1}, False, Desired.RUN, J.STARTING),
        ({"QUEUED": 1, "SUCCEEDED": 1}, False, Desired.RUN, J.QUEUED),
        ({"QUEUED": 1, "SUCCEEDED": 1}, True, Desired.RUN, J.RUNNING),
        ({"STOPPING": 1, "CANCELLED": 1}, False, Desired.CANCELLED, J.STOPPING),
        ({"HELD": 1, "SUCCEEDED": 1}, False, Desired.RUN, J.HELD),
        ({"SUCCEEDED": 2}, True, Desired.RUN, J.SUCCEEDED),
        ({"SUCCEEDED": 2}, True, Desired.CANCELLED, J.SUCCEEDED),
        ({"SUCCEEDED": 1, "CANCELLED": 1}, True, Desired.CANCELLED, J.CANCELLED),
        ({"FAILED": 1, "CANCELLED": 1}, True, Desired.CANCELLED, J.CANCELLED),
        ({"FAILED": 1, "TIMED_OUT": 1}, True, Desired.RUN, J.FAILED),
        ({"TIMED_OUT": 1, "CANCELLED": 1}, True, Desired.RUN, J.TIMED_OUT),
        ({"UPSTREAM_FAILED": 2}, False, Desired.RUN, J.UPSTREAM_FAILED),
        ({"SUCCEEDED": 1, "CANCELLED": 1}, True, Desired.RUN, J.CANCELLED),
    ],
)
def test_an_array_has_the_state_of_its_tasks(
    tasks: dict[str, int], started: bool, desired: Desired, expected: JobState
) -> None:
    assert derive_state(2, desired, counts(**tasks), started, J.HELD) is expected


@pytest.mark.parametrize("state", JobState)
def test_a_single_task_is_its_job(state: JobState) -> None:
    assert derive_state(1, Desired.RUN, counts(**{state.name: 1}), True, J.QUEUED) is state


def test_an_end_that_nobody_can_explain_has_no_retry() -> None:
    rows = attempt_ending(rows_of(new_job()), Outcome(AttemptState.FAILED, None))
    assert rows.job.state is J.FAILED


def test_the_cause_of_an_array_is_that_of_its_first_bad_end() -> None:
    first = attempt_ending(rows_of(new_job(size=2)), bad(ExitKind.NOT_FOUND), 1)
    rows = attempt_ending(first, bad(ExitKind.EXITED), 0)
    assert isinstance(rows.job.cause, Cause)
    assert rows.job.cause.code is CauseCode.COMMAND_NOT_FOUND
