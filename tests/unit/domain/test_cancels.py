"""A cancel at every state, before every word that may still come: never forgotten, never undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from domain_rows import CANCEL, NOW, after, intent, launched_rows, new_job, rows_of, view_of

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import Change, RetryPolicy
from hatoba_scheduler.domain.states import AttemptState, Desired, JobState, Release
from hatoba_scheduler.domain.timing import timed_out
from hatoba_scheduler.domain.transitions import (
    Outcome,
    Rows,
    View,
    cancel,
    cancel_tasks,
    claimed,
    ended,
    hold,
    launch,
    launched,
    reachability,
    released,
    running,
    starting,
    stopping,
    waiting,
)

J = JobState
POLICY = RetryPolicy(user=9, infrastructure=9, preemption=9)
Step = Callable[[View], Change | None]


def outcome(kind: ExitKind, *, gone: bool = True, charged: bool = True) -> Outcome:
    state, cause = causes.judge(Ending(kind, code=1, signal=9))
    return Outcome(state, cause, wait=5.0, gone=gone, charged=charged)


GOOD = Outcome(AttemptState.SUCCEEDED, None, gone=True)
END = outcome(ExitKind.EXITED)


def led(rows: Rows, *steps: Step) -> Rows:
    for step in steps:
        change = step(view_of(rows))
        rows = after(rows, change) if change is not None else rows
    return rows


def fresh(**fields: object) -> Rows:
    return rows_of(new_job(retries=POLICY, **fields))  # type: ignore[arg-type]


def going(*steps: Step) -> Rows:
    return led(launched_rows(new_job(retries=POLICY)), *steps)


STEPS: dict[str, Step] = {
    "handle": lambda view: launched(view, b"1:x"),
    "waits": lambda view: waiting(view, NOW),
    "starts": lambda view: starting(view, NOW),
    "claims": lambda view: claimed(view, "n", NOW),
    "runs": lambda view: running(view, NOW.time, "", NOW),
    "away": lambda view: reachability(view, reachable=False, now=NOW),
    "back": lambda view: reachability(view, reachable=True, now=NOW),
}
ENDS: dict[str, Outcome] = {
    "succeeds": GOOD,
    "fails": END,
    "is lost": outcome(ExitKind.LOST, gone=False),
    "is reclaimed": outcome(ExitKind.PREEMPTED),
    "was never there": outcome(ExitKind.LOST, charged=False),
}
STATES: dict[str, Callable[[], Rows]] = {
    "QUEUED": fresh,
    "HELD": lambda: fresh(hold=True),
    "BLOCKED": lambda: fresh(blocked_on=("up",)),
    "LAUNCHING": going,
    "WAITING": lambda: going(STEPS["waits"]),
    "STARTING": lambda: going(STEPS["claims"]),
    "RUNNING": lambda: going(STEPS["claims"], STEPS["runs"]),
    "UNREACHABLE": lambda: going(STEPS["runs"], STEPS["away"]),
    "GIVING WAY": lambda: going(
        STEPS["runs"], lambda view: stopping(view, AttemptState.PREEMPTED, END.cause, NOW)
    ),
    "BACKING OFF": lambda: going(lambda view: ended(view, END, NOW)),
    "RELEASING": lambda: going(lambda view: ended(view, ENDS["is lost"], NOW)),
}


@pytest.mark.parametrize("last", ENDS)
@pytest.mark.parametrize("word", ["nothing", *STEPS])
@pytest.mark.parametrize("state", STATES)
def test_nothing_that_comes_later_undoes_it(state: str, word: str, last: str) -> None:
    rows = STATES[state]()
    rows = after(rows, cancel(rows, CANCEL, NOW))
    assert cancel(rows, CANCEL, NOW) is None
    for held in (True, False):
        change = hold(rows, held, NOW)
        rows = after(rows, change) if change is not None else rows
    if rows.attempts:
        rows = led(rows, STEPS.get(word, lambda _: None))
        rows = led(rows, lambda view: ended(view, ENDS[last], NOW), released)
    assert launch(rows, intent(rows), NOW) is None
    assert rows.job.desired is Desired.CANCELLED
    under_way = bool(rows.attempts) and state not in ("BACKING OFF", "RELEASING")
    succeeded = under_way and last == "succeeds"
    assert rows.job.state is (J.SUCCEEDED if succeeded else J.CANCELLED)


@pytest.mark.parametrize("state", ["QUEUED", "HELD", "BLOCKED", "BACKING OFF", "RELEASING"])
def test_what_does_not_run_is_over_at_once(state: str) -> None:
    rows = STATES[state]()
    change = cancel(rows, CANCEL, NOW)
    assert change is not None
    assert change.job.state is J.CANCELLED
    assert all(event.cause == CANCEL for event in change.events)


@pytest.mark.parametrize("state", STATES)
def test_one_task_of_an_array_is_cancelled_as_its_job_would_be(state: str) -> None:
    """The other task of the array goes on, whatever was the state of the one."""
    one = STATES[state]()
    job = replace(
        one.job,
        size=2,
        unstarted=one.job.unstarted.union(Ranges(((1, 2),))),
        unstarted_state=J.QUEUED if one.tasks else one.job.unstarted_state,
    )
    counts = list(job.counts)
    counts[job.unstarted_state] += 1
    rows = Rows(replace(job, counts=tuple(counts)), one.tasks, one.attempts)
    rows = after(rows, cancel_tasks(rows, Ranges.upto(1), CANCEL, NOW))
    assert cancel_tasks(rows, Ranges.upto(1), CANCEL, NOW) is None
    assert (rows.job.desired, 1 in rows.job.unstarted) == (Desired.RUN, True)
    if rows.attempts:
        rows = led(rows, lambda view: ended(view, END, NOW), released)
        assert rows.tasks[0].state is J.CANCELLED
        assert rows.attempts[0].release is Release.RELEASED
    assert rows.job.counts[J.CANCELLED] == 1
    assert launch(rows, intent(rows, 0), NOW) is None
    if rows.job.unstarted_state is J.QUEUED:
        rows = after(rows, launch(rows, intent(rows, 1), NOW))
        assert rows.tasks[1].state is J.LAUNCHING


def test_parts_of_an_array_add_up_to_all_of_it() -> None:
    rows = rows_of(new_job(size=10))
    for start, stop in pairwise((0, 3, 4, 10)):
        assert not rows.job.state.terminal
        rows = after(rows, cancel_tasks(rows, Ranges(((start, stop),)), CANCEL, NOW))
    assert rows.job.state is J.CANCELLED
    assert str(rows.job.dropped) == "0-9"
    assert rows.job.cause == CANCEL


def test_an_array_that_failed_says_why_though_some_of_it_was_cancelled_before() -> None:
    rows = rows_of(new_job(size=2, retries=RetryPolicy(user=0)))
    rows = after(rows, cancel_tasks(rows, Ranges(((1, 2),)), CANCEL, NOW))
    assert rows.job.cause == CANCEL
    rows = after(rows, launch(rows, intent(rows, 0), NOW))
    rows = led(rows, lambda view: ended(view, END, NOW))
    assert rows.job.state is J.FAILED
    assert rows.job.cause == END.cause


def test_a_part_of_what_is_over_changes_nothing() -> None:
    rows = rows_of(new_job(size=3))
    rows = after(rows, cancel(rows, CANCEL, NOW))
    assert cancel_tasks(rows, Ranges.upto(2), CANCEL, NOW) is None


def test_what_is_being_ended_by_its_deadline_is_cancelled_as_far_as_it_still_waits_or_runs() -> (
    None
):
    rows = rows_of(new_job(size=2))
    rows = after(rows, launch(rows, intent(rows, 0), NOW))
    rows = after(rows, timed_out(rows, causes.past_deadline("now"), NOW))
    rows = after(rows, cancel(rows, CANCEL, NOW))
    assert (rows.job.desired, rows.job.unstarted_state) == (Desired.CANCELLED, J.TIMED_OUT)
    rows = led(rows, lambda view: ended(view, END, NOW), released)
    assert rows.job.state is J.CANCELLED
