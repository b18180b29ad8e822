"""Rows to begin a test with."""

from __future__ import annotations

from hatoba_scheduler.domain.filters import REASONS
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    Cause,
    Change,
    Job,
    ManifestRef,
    Resources,
    RetryPolicy,
)
from hatoba_scheduler.domain.states import CauseCode, Desired, Origin
from hatoba_scheduler.domain.transitions import (
    Intent,
    Now,
    Rows,
    View,
    first_state,
    initial_counts,
    launch,
)

NOW = Now(1_000_000, "tester")
MANIFEST = ManifestRef("sha256:" + "a" * 64, 10, 1)
CANCEL = Cause(CauseCode.CANCELLED, Origin.POLICY, "Cancelled by tester.", False)


def new_job(
    uid: str = "job-1",
    *,
    size: int = 1,
    hold: bool = False,
    blocked_on: tuple[str, ...] = (),
    blocked_any: tuple[str, ...] = (),
    blocked_end: tuple[str, ...] = (),
    fail_fast: bool = False,
    retries: RetryPolicy | None = None,
) -> Job:
    """A job as it is when it was just submitted."""
    state = first_state(hold, (*blocked_on, *blocked_any, *blocked_end))
    return Job(
        uid=uid,
        project="default",
        name=f"{uid}-n",
        queue="default",
        backend="null",
        priority=0,
        size=size,
        max_parallel=0,
        fail_fast=fail_fast,
        resources=Resources(),
        retries=retries or RetryPolicy(),
        state=state,
        desired=Desired.RUN,
        version=1,
        settings_version=1,
        unstarted=Ranges.upto(size),
        unstarted_state=state,
        counts=initial_counts(size, state),
        hold=hold,
        blocked_on=blocked_on,
        blocked_any=blocked_any,
        blocked_end=blocked_end,
        created_by="tester",
        create_time=NOW.time,
    )


def rows_of(job: Job) -> Rows:
    """The rows of a job none of whose tasks started."""
    return Rows(job, {}, {})


def after(rows: Rows, change: Change | None) -> Rows:
    """The rows once a change is committed."""
    assert change is not None
    assert {event.reason for event in change.events} <= REASONS
    tasks = dict(rows.tasks) | {write.row.index: write.row for write in change.tasks}
    attempts = dict(rows.attempts) | {write.row.index: write.row for write in change.attempts}
    return Rows(change.job, tasks, attempts)


def view_of(rows: Rows, index: int = 0) -> View:
    """The rows of a task that is under way."""
    view = rows.view(index)
    assert view is not None
    return view


def intent(rows: Rows, index: int = 0, *, fenced: bool = False) -> Intent:
    """What a planner would write for the task's next attempt."""
    task = rows.tasks.get(index)
    number = task.attempt + 1 if task else 1
    return Intent(
        index=index,
        name=f"h1-{rows.job.uid}-{index}-{number}",
        backend=rows.job.backend,
        host="pool",
        gpus=(),
        reserved=Resources(slots=1),
        fenced=fenced,
        span_id="b" * 16,
    )


def launched_rows(job: Job, index: int = 0) -> Rows:
    """The rows with one task's first attempt LAUNCHING."""
    rows = rows_of(job)
    return after(rows, launch(rows, intent(rows, index), NOW))
