"""Attaching what runs to the jobs of a store that knows less than was true: one from a backup."""

from __future__ import annotations

from dataclasses import dataclass

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.records import (
    Attempt,
    AttemptWrite,
    Change,
    Resources,
    Task,
    combined,
)
from hatoba_scheduler.domain.states import AttemptState, JobState, Release
from hatoba_scheduler.domain.transitions import (
    Move,
    Now,
    Outcome,
    Rows,
    View,
    claimed,
    ended,
    launched,
    moved,
)


@dataclass(frozen=True, slots=True)
class Stray:
    """What a backend has of a task, by its labels. `nonce` empty: its claim is not known."""

    name: str
    backend: str
    index: int
    number: int
    handle: bytes
    fenced: bool
    span_id: str
    host: str = ""
    gpus: tuple[str, ...] = ()
    nonce: str = ""


def attached(rows: Rows, stray: Stray, now: Now) -> Change | None:
    """The task has this attempt again. None when it has it, or a later one: see `why_not`.

    A live attempt before it has ended, or this one would never have been launched.
    """
    attempt = rows.attempts.get(stray.index)
    if attempt is not None and attempt.name == stray.name:
        return _completed(View(rows.job, rows.tasks[stray.index], attempt), stray, now)
    if why_not(rows, stray):
        return None
    steps: list[Change] = []
    task = rows.tasks.get(stray.index)
    job = rows.job
    if task is not None and attempt is not None and not attempt.state.terminal:
        steps.append(_superseded(View(job, task, attempt), stray, now))
        job, task = steps[-1].job, steps[-1].tasks[0].row
    steps.append(_launched(Rows(job, {}, {}), task, stray, now))
    if stray.nonce:
        last = steps[-1]
        view = View(last.job, last.tasks[0].row, last.attempts[0].row)
        steps.append(claimed(view, stray.nonce, now))
    return combined(steps)


def why_not(rows: Rows, stray: Stray) -> str:
    """Why a task cannot have it, in words; empty: it can."""
    job, task = rows.job, rows.tasks.get(stray.index)
    if job.state.terminal:
        return f"job {job.name} is over in this store"
    if stray.index >= job.size:
        return f"job {job.name} has no task {stray.index}"
    if task is None:
        if stray.index not in job.unstarted:
            return f"task {stray.index} of job {job.name} is over in this store"
        if job.unstarted_state is not JobState.QUEUED:
            return f"job {job.name} is {job.unstarted_state.name} in this store"
        return ""
    if task.state.terminal:
        return f"task {stray.index} of job {job.name} is over in this store"
    if task.attempt >= stray.number:
        return f"attempt {task.attempt} of job {job.name} came after it"
    return ""


def over(rows: Rows, index: int, number: int) -> bool:
    """Whether an attempt is over in the store: its task is, or went on, or saw it end."""
    job, task, attempt = rows.job, rows.tasks.get(index), rows.attempts.get(index)
    if job.state.terminal:
        return True
    if task is None:
        return index < job.size and index not in job.unstarted
    if task.state.terminal or task.attempt > number:
        return True
    return attempt is not None and attempt.number == number and attempt.state.terminal


def _completed(view: View, stray: Stray, now: Now) -> Change | None:
    """Known already; its handle and claim may not be."""
    if view.attempt.state.terminal:
        return None
    steps = []
    if not view.attempt.handle and (change := launched(view, stray.handle)) is not None:
        steps.append(change)
        view = View(change.job, view.task, change.attempts[0].row)
    if stray.nonce and not view.attempt.nonce:
        steps.append(claimed(view, stray.nonce, now))
    return combined(steps) if steps else None


def _superseded(view: View, stray: Stray, now: Now) -> Change:
    cause = causes.lost(f"Attempt {stray.number} was found when the store was adopted.")
    outcome = Outcome(AttemptState.LOST, cause, gone=True, charged=False)
    change = ended(view, outcome, now)
    assert change is not None
    return change


def _launched(rows: Rows, task: Task | None, stray: Stray, now: Now) -> Change:
    job = rows.job
    attempt = Attempt(
        name=stray.name,
        job_uid=job.uid,
        index=stray.index,
        number=stray.number,
        fence=stray.number,
        backend=stray.backend,
        host=stray.host,
        gpus=stray.gpus,
        state=AttemptState.LAUNCHING,
        version=1,
        release=Release.HELD,
        fenced=stray.fenced,
        span_id=stray.span_id,
        create_time=now.time,
        handle=stray.handle,
        reserved=job.resources if job.resources.stated else Resources(slots=1),
        generation=stray.number if job.terms.gang else 0,
    )
    after = (
        changed(
            task,
            state=JobState.LAUNCHING,
            version=task.version + 1,
            attempt=stray.number,
            not_before=0,
            cause=None,
        )
        if task
        else Task(job.uid, stray.index, JobState.LAUNCHING, 1, stray.number, checkpoint=job.restore)
    )
    job = changed(job, backend=stray.backend)
    if job.terms.gang:
        job = changed(job, generation=max(job.generation, stray.number))
    write = (AttemptWrite(attempt, 0),)
    return moved(job, Move(task, after, "adopt"), now, write)
