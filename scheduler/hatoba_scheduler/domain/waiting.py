"""Why a job is where it is, as far as it does not stand in line: that is the planner's to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hatoba_scheduler.domain.dependencies import MOST_NAMED, waits_for
from hatoba_scheduler.domain.planning.model import Explained
from hatoba_scheduler.domain.records import Attempt, Job, Micros, Task
from hatoba_scheduler.domain.states import (
    AttemptState,
    Desired,
    JobState,
    Release,
    WaitReason,
)
from hatoba_scheduler.domain.timing import shown
from hatoba_scheduler.domain.transitions import Rows

_SECOND = 1_000_000
_LIVE = {
    JobState.LAUNCHING: "being launched",
    JobState.WAITING: "accepted by the backend, which has no room yet",
    JobState.STARTING: "starting",
    JobState.RUNNING: "running",
    JobState.STOPPING: "stopping",
}


def in_line(job: Job) -> bool:
    """Some task of it is QUEUED and wanted: unless it waits for something else, it is in line."""
    return bool(job.counts[JobState.QUEUED]) and job.desired is Desired.RUN and not job.hold


def own_reason(rows: Rows, names: Mapping[str, str], now: Micros) -> Explained | None:
    """Why it does not stand in line; None: it does, and the planner knows the rest.

    `names` are those of the jobs it waits for, by uid.
    """
    job = rows.job
    if job.state.terminal:
        return _over(job)
    if job.hold and (job.counts[JobState.HELD] or job.counts[JobState.QUEUED]):
        return _held(job)
    if job.counts[JobState.BLOCKED]:
        return _blocked(job, names)
    if not in_line(job):
        return _under_way(rows)
    if job.terms.start_after > now and not job.start_time:
        return _start_after(job)
    return None if job.unstarted else _between_attempts(rows, now)


def _over(job: Job) -> Explained:
    why = f": {job.cause.message}" if job.cause else "."
    return Explained(WaitReason.NONE, f"It has ended {job.state.name}{why}")


def _held(job: Job) -> Explained:
    which = "Held before its retry" if job.state is JobState.QUEUED else "Held by its owner"
    release = f"`hatoba jobs release {job.name}` lets it go."
    return Explained(WaitReason.HELD, f"{which}; {release}", release)


def _blocked(job: Job, names: Mapping[str, str]) -> Explained:
    message = waits_for(job, names) or "Waits for jobs that just ended."
    asked = [f"`hatoba explain {name}`" for name in list(names.values())[:MOST_NAMED]]
    remedy = f"{', '.join(asked)} says how far it is." if asked else ""
    return Explained(WaitReason.BLOCKED, message, remedy)


def _start_after(job: Job) -> Explained:
    time = job.terms.start_after
    return Explained(
        WaitReason.START_AFTER,
        f"It starts not before {shown(time)}.",
        "It goes on by itself then; its start_after cannot be changed.",
        estimate=time,
        estimate_basis="its start_after, if there is room then",
    )


def _under_way(rows: Rows) -> Explained:
    job = rows.job
    if job.desired is Desired.CANCELLED:
        return Explained(WaitReason.NONE, f"It is being cancelled: {still_there(rows)}.")
    told = [
        f"{job.counts[state]} {words}" if job.size > 1 else words
        for state, words in _LIVE.items()
        if job.counts[state]
    ]
    where = _where(rows) if job.size == 1 else ""
    return Explained(WaitReason.NONE, f"It is {' and '.join(told) or 'at its end'}{where}.")


def _where(rows: Rows) -> str:
    attempt = rows.attempts.get(0)
    if attempt is None:
        return ""
    return f" on {attempt.host or attempt.backend}, attempt {attempt.number}"


def _between_attempts(rows: Rows, now: Micros) -> Explained | None:
    """All that waits has had an attempt: None as soon as one of them may go."""
    waits = [_next_attempt(task, attempt, now) for task, attempt in _queued(rows)]
    if not waits or None in waits:
        return None
    found = [wait for wait in waits if wait is not None]
    return min(found, key=lambda one: one.estimate or now)


def _queued(rows: Rows) -> Iterator[tuple[Task, Attempt | None]]:
    for index in sorted(rows.tasks):
        task = rows.tasks[index]
        if task.state is JobState.QUEUED:
            yield task, rows.attempts.get(index)


def _next_attempt(task: Task, attempt: Attempt | None, now: Micros) -> Explained | None:
    why = f" {task.cause.message}" if task.cause else ""
    if task.not_before > now:
        left = (task.not_before - now) / _SECOND
        return Explained(
            WaitReason.BACKING_OFF,
            f"Attempt {task.attempt + 1} starts in {left:.0f} s.{why}",
            "It goes on by itself; its retry policy says how long it waits between attempts.",
            estimate=task.not_before,
            estimate_basis="the end of its back-off, if there is room then",
        )
    if attempt is not None and attempt.release is not Release.RELEASED:
        return _releasing(attempt, why)
    return None


def _releasing(attempt: Attempt, why: str) -> Explained:
    place = attempt.host or attempt.backend
    return Explained(
        WaitReason.RELEASING,
        f"Attempt {attempt.number} on {place} is not proven gone yet.{why}",
        f"It goes on once {place} says so; if that machine is gone for good: "
        f"`hatoba hosts declare-gone {place}`.",
    )


def still_there(rows: Rows) -> str:
    """What is waited for until a job that is being cancelled has ended."""
    job = rows.job
    live = [attempt for attempt in rows.attempts.values() if not attempt.state.terminal]
    for attempt in live:
        if attempt.unknown_since:
            place = attempt.host or attempt.backend
            return f"host {place!r} cannot be reached"
    launching = sum(attempt.intended is None for attempt in live)
    if launching:
        return f"{launching} task(s) are being launched and are stopped then"
    told = sum(attempt.state is AttemptState.STOPPING for attempt in live)
    return f"{told} running task(s) have {job.stop_grace:g} s to stop"
