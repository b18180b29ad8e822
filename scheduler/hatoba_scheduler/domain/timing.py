"""What the clock ends: jobs past their `deadline`, or too long in their queue.

The time in a queue (`max_queue_time`) counts from the moment a job was QUEUED, by submit, release
or the end of what it waited for, and not before its `start_after`; while it is held or blocked it
does not. A deadline holds always.
"""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.records import PLAIN, Cause, Change, Job, Micros, combined
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
KEPT_BACK = frozenset({JobState.HELD, JobState.BLOCKED})
"""States in which a job does not queue, although nothing of it runs."""


class Due(NamedTuple):
    """When a job's time is over, and why."""

    time: Micros
    cause: Cause


def timed(job: Job) -> bool:
    """Whether a job's time may be over before it is."""
    return job.terms is not PLAIN and bool(job.terms.deadline or job.terms.max_queue_time)


def next_due(rows: Rows, queued_since: Micros) -> Due | None:
    """When a job's time is over, which may be in the past; None: never, or it has ended.

    `queued_since` is when it last became QUEUED; 0 while it is held or blocked.
    """
    terms = rows.job.terms
    if rows.job.state.terminal:
        return None
    dues = []
    if terms.deadline:
        dues.append(Due(terms.deadline, causes.past_deadline(shown(terms.deadline))))
    if terms.max_queue_time and queued_since and not has_started(rows):
        since = max(queued_since, terms.start_after)
        end = since + round(terms.max_queue_time * _SECOND)
        dues.append(Due(end, causes.queued_too_long(terms.max_queue_time)))
    return min(dues, key=lambda due: due.time) if dues else None


def queues_since(before: Job | None, job: Job, known: Micros, now: Micros) -> Micros:
    """When a job last became QUEUED, after a change of it; 0 while it is held or blocked."""
    if job.state in KEPT_BACK:
        return 0
    return known if before is not None and before.state not in KEPT_BACK else now


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
