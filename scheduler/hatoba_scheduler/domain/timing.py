"""What the clock does to jobs: when they may start, and when they are over.

A job may say `start_after`, `deadline` and `max_queue_time` (`records.Terms`). The time in its
queue counts from the moment it was QUEUED, by submit, release or the end of what it waited for,
and not before `start_after`; while it is held or blocked it does not.
"""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.records import PLAIN, Cause, Change, Job, Micros, Task, combined
from hatoba_scheduler.domain.states import AttemptState, Desired, JobState
from hatoba_scheduler.domain.transitions import (
    Move,
    Now,
    Rows,
    View,
    job_moved,
    moved,
    stopping,
    unstarted_waits,
)

_SECOND = 1_000_000


class Due(NamedTuple):
    """Why a job is looked at by the clock, and when; `cause` None: it may start."""

    time: Micros
    cause: Cause | None = None


def timed(job: Job) -> bool:
    """Whether the clock matters to this job at all."""
    terms = job.terms
    return terms is not PLAIN and bool(terms.start_after or terms.deadline or terms.max_queue_time)


def start_of(job: Job, task: Task | None = None) -> Micros:
    """The earliest start of a task of this job; `task` is its row where it has one. 0: now."""
    return max(job.terms.start_after, task.not_before if task else 0)


def next_due(rows: Rows, queued_since: Micros, now: Micros) -> Due | None:
    """The next moment at which the clock does something to this job; None: never.

    `queued_since` is when it last became QUEUED; 0 while it is not. What is due already has a
    time that has passed.
    """
    job, terms = rows.job, rows.job.terms
    if job.state.terminal:
        return None
    dues = []
    if terms.deadline:
        dues.append(Due(terms.deadline, causes.past_deadline(shown(terms.deadline))))
    if terms.max_queue_time and queued_since and not has_started(rows):
        since = max(queued_since, terms.start_after)
        end = since + round(terms.max_queue_time * _SECOND)
        dues.append(Due(end, causes.queued_too_long(terms.max_queue_time)))
    if terms.start_after > now:
        dues.append(Due(terms.start_after))
    return min(dues, key=lambda due: due.time) if dues else None


def has_started(rows: Rows) -> bool:
    """Whether a task of it has had a place: from its first claim or run on it queues no more."""
    if rows.job.start_time:
        return True
    return any(attempt.claim_time or attempt.start_time for attempt in rows.attempts.values())


def timed_out(rows: Rows, cause: Cause, now: Now) -> Change | None:
    """Its time is over: what waits is TIMED_OUT at once, what is live is stopped for that.

    None when nothing of it is left to end, or its owner is ending it already.
    """
    job = rows.job
    if job.state.terminal or job.desired is Desired.CANCELLED:
        return None
    steps = []
    if unstarted_waits(job):
        after = changed(job, unstarted_state=JobState.TIMED_OUT)
        steps.append(job_moved(job, after, _reason(cause), now, cause, cause.message))
    for index in sorted(rows.tasks):
        job = steps[-1].job if steps else job
        step = _task_timed_out(View(job, rows.tasks[index], rows.attempts[index]), cause, now)
        if step is not None:
            steps.append(step)
    return combined(steps) if steps else None


def _task_timed_out(view: View, cause: Cause, now: Now) -> Change | None:
    if view.task.state.terminal:
        return None
    if not view.task.state.pending:
        stop = stopping(view, AttemptState.TIMED_OUT, cause, now)
        return _told(stop, cause) if stop else None
    task = changed(
        view.task,
        state=JobState.TIMED_OUT,
        version=view.task.version + 1,
        cause=cause,
        end_time=now.time,
        not_before=0,
    )
    move = Move(view.task, task, _reason(cause), cause, cause.message)
    return moved(view.job, move, now)


def _told(change: Change, cause: Cause) -> Change:
    events = tuple(changed(event, note=cause.message) for event in change.events)
    return changed(change, events=events)


def _reason(cause: Cause) -> str:
    return cause.code.name.lower()


def shown(time: Micros) -> str:
    """`2026-11-26 15:43:09 UTC`."""
    return f"{dt.datetime.fromtimestamp(time // _SECOND, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
