"""Jobs whose tasks run each on a device of its own: what becomes of them when one is gone for good.

A device that is away is waited for. One that was revoked, decommissioned or forgotten is evidence:
nothing of it comes back, so what ran there is LOST, and what waits for it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.gangs import ended
from hatoba_scheduler.domain.records import Attempt, Cause, Change, Job, Task, combined
from hatoba_scheduler.domain.states import AttemptState, Desired, JobState, Release
from hatoba_scheduler.domain.transitions import (
    Move,
    Now,
    Outcome,
    Rows,
    View,
    moved,
    released,
)

GoneFor = Callable[[str], Cause | None]
"""Why a device is gone for good, by its name; None: it is not."""


def speaker(job: Job, attempt: Attempt) -> str:
    """Who speaks for an attempt: the host that it was sent to, `devices/NAME` where that is a
    device; empty: it was sent to none."""
    return f"devices/{attempt.host}" if job.terms.devices else attempt.host


def waiting_on(rows: Rows) -> Iterator[str]:
    """Devices that something of a job is still to run on, or may be running on."""
    job = rows.job
    if not job.state.terminal and job.unstarted_state is JobState.QUEUED and _goes_on(job):
        yield from (job.terms.devices[index] for index in job.unstarted)
    for index, task in rows.tasks.items():
        attempt = rows.attempts.get(index)
        held = attempt is not None and attempt.release is not Release.RELEASED
        if held or (task.state is JobState.QUEUED and _goes_on(job)):
            yield job.terms.devices[index]


def queued_on(rows: Rows) -> Iterator[str]:
    """Devices of those tasks that are QUEUED, by task."""
    devices = rows.job.terms.devices
    yield from (devices[index] for index in _indices(rows) if _is_queued(rows, index))


def _is_queued(rows: Rows, index: int) -> bool:
    task = rows.tasks.get(index)
    return task is None or task.state is JobState.QUEUED


def _goes_on(job: Job) -> bool:
    return job.desired is Desired.RUN and not job.hold


def without_devices(rows: Rows, gone_for: GoneFor, now: Now) -> Change | None:
    """End what is for devices that are gone for good; None: nothing is."""
    steps: list[Change] = []
    for index in _indices(rows):
        cause = gone_for(rows.job.terms.devices[index])
        if cause is not None:
            job = steps[-1].job if steps else rows.job
            step = _ended(Rows(job, rows.tasks, rows.attempts), index, cause, now)
            if step is not None:
                steps.append(step)
    return combined(steps) if steps else None


def _indices(rows: Rows) -> list[int]:
    waits = rows.job.unstarted if rows.job.unstarted_state is JobState.QUEUED else ()
    return sorted({*waits, *rows.tasks})


def _ended(rows: Rows, index: int, cause: Cause, now: Now) -> Change | None:
    task, attempt = rows.tasks.get(index), rows.attempts.get(index)
    if task is None or task.state is JobState.QUEUED:
        return _failed(rows.job, index, task, cause, now)
    if attempt is None:
        return None
    view = View(rows.job, task, attempt, rows)
    if attempt.state.terminal:
        return released(view)
    return ended(view, Outcome(AttemptState.LOST, cause, gone=True), now)


def _failed(job: Job, index: int, task: Task | None, cause: Cause, now: Now) -> Change:
    """What waits fails; what is left of its last attempt is released when it is looked at next."""
    known = task or Task(job.uid, index, JobState.QUEUED, 0, 0)
    after = changed(
        known,
        state=JobState.FAILED,
        version=known.version + 1,
        cause=cause,
        end_time=now.time,
        not_before=0,
    )
    return moved(job, Move(task, after, "device_gone", cause, cause.message), now)
