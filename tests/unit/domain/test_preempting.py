"""Giving way: asked to save first, stopped later, QUEUED again at the right budget's cost."""

from __future__ import annotations

from dataclasses import replace

from domain_rows import MANIFEST, NOW, after, launched_rows, new_job, view_of

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.planning.feed import may_be_preempted
from hatoba_scheduler.domain.preempting import (
    drained,
    give_way,
    may_save,
    preempted,
    stop_at,
)
from hatoba_scheduler.domain.records import Cause, Checkpoint, Job, RetryPolicy, Terms
from hatoba_scheduler.domain.states import AttemptState, CauseCode, JobState
from hatoba_scheduler.domain.transitions import (
    Outcome,
    Rows,
    checkpointed,
    ended,
    launch,
    running,
    stopping,
)

TAKEN = preempted("Its place was taken for default/big-1: it has priority 9.")
STOPPED = Outcome(*causes.judge(Ending(ExitKind.STOPPED)), gone=True, wait=30.0)
SECOND = 1_000_000


def running_rows(job: Job | None = None) -> Rows:
    rows = launched_rows(job or new_job())
    return after(rows, running(view_of(rows), NOW.time, "", NOW))


def with_terms(**fields: object) -> Job:
    return replace(new_job(), terms=Terms(**fields))  # type: ignore[arg-type]


def given_way(rows: Rows, cause: Cause = TAKEN) -> Rows:
    return after(rows, give_way(rows, [0], cause, NOW))


def test_what_runs_is_asked_to_save_and_stopped_after_its_grace() -> None:
    rows = given_way(running_rows(with_terms(preempt_grace=45.0)))
    attempt = rows.attempts[0]
    assert (attempt.state, attempt.intended) == (AttemptState.STOPPING, AttemptState.PREEMPTED)
    assert stop_at(attempt) == NOW.time + 45 * SECOND
    assert may_save(attempt, NOW.time + 45 * SECOND - 1)
    assert not may_save(attempt, NOW.time + 45 * SECOND)


def test_without_a_grace_of_its_own_it_has_that_of_the_stop() -> None:
    rows = given_way(running_rows(replace(new_job(), stop_grace=7.0)))
    assert stop_at(rows.attempts[0]) == NOW.time + 7 * SECOND


def test_what_has_not_begun_is_stopped_at_once() -> None:
    rows = given_way(launched_rows(new_job()))
    assert stop_at(rows.attempts[0]) == 0
    rows = given_way(running_rows(with_terms(preempt_grace=0.0)))
    assert stop_at(rows.attempts[0]) == 0


def test_a_cancel_waits_for_no_checkpoint() -> None:
    rows = given_way(running_rows())
    cancelled = causes.cancelled("ada", "")
    rows = after(rows, stopping(view_of(rows), AttemptState.CANCELLED, cancelled, NOW))
    assert not may_save(rows.attempts[0], NOW.time)


def test_it_says_for_whom_and_how_long_it_may_save() -> None:
    change = give_way(running_rows(), [0], TAKEN, NOW)
    assert change is not None
    (event,) = change.events
    assert event.reason == "preempt"
    assert event.note == (
        "Its place was taken for default/big-1: it has priority 9; "
        "it has 10 s to save a checkpoint."
    )


def test_it_waits_again_at_once_and_its_preemption_budget_pays() -> None:
    rows = given_way(running_rows())
    rows = after(rows, ended(view_of(rows), STOPPED, NOW))
    task = rows.tasks[0]
    assert (task.state, task.not_before) == (JobState.QUEUED, 0)
    assert (task.preemptions, task.adapted.preempted) == (1, 1)
    assert (task.user_failures, task.infrastructure_failures) == (0, 0)


def test_a_drain_is_charged_to_nobody() -> None:
    rows = given_way(running_rows(), drained("Host 'h-1'", "ops", "new fans."))
    cause = rows.attempts[0].cause
    assert cause is not None
    assert cause.message == "Host 'h-1' was drained by ops: new fans."
    rows = after(rows, ended(view_of(rows), STOPPED, NOW))
    task = rows.tasks[0]
    assert task.state is JobState.QUEUED
    assert (task.preemptions, task.adapted.preempted) == (0, 0)
    assert task.cause is not None
    assert task.cause.code is CauseCode.DRAINED


def test_one_that_succeeds_before_its_stop_has_succeeded() -> None:
    rows = given_way(running_rows())
    rows = after(rows, ended(view_of(rows), Outcome(AttemptState.SUCCEEDED, None), NOW))
    assert rows.job.state is JobState.SUCCEEDED


def test_what_gives_way_already_or_is_over_is_left_alone() -> None:
    rows = given_way(running_rows())
    assert give_way(rows, [0], TAKEN, NOW) is None
    rows = after(rows, ended(view_of(rows), STOPPED, NOW))
    assert give_way(rows, [0, 1], TAKEN, NOW) is None


def displaced_once(rows: Rows) -> Rows:
    from domain_rows import intent

    rows = given_way(rows)
    rows = after(rows, ended(view_of(rows), STOPPED, NOW))
    rows = after(rows, launch(rows, intent(rows), NOW))
    return after(rows, running(view_of(rows), NOW.time, "", NOW))


def test_with_its_budget_spent_it_is_chosen_no_more_until_it_saves() -> None:
    rows = running_rows(replace(new_job(), retries=RetryPolicy(preemption=1)))
    assert may_be_preempted(rows.job, rows.tasks[0])
    rows = displaced_once(rows)
    assert not may_be_preempted(rows.job, rows.tasks[0])
    rows = after(rows, checkpointed(view_of(rows), Checkpoint(3, 2, MANIFEST)))
    assert may_be_preempted(rows.job, rows.tasks[0])


def test_it_is_displaced_no_more_often_than_its_policy_lets() -> None:
    never = running_rows(with_terms(never_preempt=True))
    assert not may_be_preempted(never.job, never.tasks[0])
    rows = running_rows(with_terms(max_preemptions=1))
    assert may_be_preempted(rows.job, rows.tasks[0])
    rows = displaced_once(rows)
    rows = after(rows, checkpointed(view_of(rows), Checkpoint(3, 2, MANIFEST)))
    assert not may_be_preempted(rows.job, rows.tasks[0])
