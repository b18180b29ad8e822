"""The one transition table, and a named constructor for each legal change.

Every constructor is pure: it takes rows as they are and returns the `Change` to write, or `None`
when nothing changes. What a stale observer says changes nothing; what is illegal raises
`IllegalTransition`, which is a bug of ours and never an answer to anybody's input.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.changing import changed, quick
from hatoba_scheduler.domain.models import ModelVersion
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    Attempt,
    AttemptWrite,
    Cause,
    Change,
    Checkpoint,
    Counts,
    Event,
    Job,
    ManifestRef,
    Micros,
    Resources,
    Task,
    TaskWrite,
    Usage,
    combined,
    no_counts,
)
from hatoba_scheduler.domain.retries import Verdict, charge, decide
from hatoba_scheduler.domain.states import (
    AttemptState,
    CauseCode,
    Desired,
    JobState,
    Release,
)

_J = JobState
_ENDS = frozenset({_J.SUCCEEDED, _J.FAILED, _J.TIMED_OUT})
_SUCCEEDED, _RUNNING = _J.SUCCEEDED, _J.RUNNING  # members are slow to look up
_STATES: tuple[JobState, ...] = (JobState.QUEUED, *JobState)
"""By number; 0 is none."""

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    _J.QUEUED: frozenset({_J.HELD, _J.LAUNCHING, _J.FAILED, _J.CANCELLED, _J.TIMED_OUT}),
    _J.HELD: frozenset({_J.QUEUED, _J.BLOCKED, _J.CANCELLED, _J.TIMED_OUT, _J.UPSTREAM_FAILED}),
    _J.BLOCKED: frozenset({_J.QUEUED, _J.HELD, _J.CANCELLED, _J.TIMED_OUT, _J.UPSTREAM_FAILED}),
    _J.LAUNCHING: frozenset({_J.QUEUED, _J.WAITING, _J.STARTING, _J.RUNNING, _J.STOPPING}) | _ENDS,
    _J.WAITING: frozenset({_J.QUEUED, _J.STARTING, _J.RUNNING, _J.STOPPING}) | _ENDS,
    _J.STARTING: frozenset({_J.QUEUED, _J.RUNNING, _J.STOPPING}) | _ENDS,
    _J.RUNNING: frozenset({_J.QUEUED, _J.STOPPING}) | _ENDS,
    _J.STOPPING: frozenset({_J.QUEUED, _J.CANCELLED}) | _ENDS,
    _J.SUCCEEDED: frozenset(),
    _J.FAILED: frozenset(),
    _J.CANCELLED: frozenset(),
    _J.TIMED_OUT: frozenset(),
    _J.UPSTREAM_FAILED: frozenset(),
}
"""From each state of a task to those that may follow it."""

ATTEMPT_OF: dict[AttemptState, JobState] = {
    AttemptState.LAUNCHING: _J.LAUNCHING,
    AttemptState.WAITING: _J.WAITING,
    AttemptState.STARTING: _J.STARTING,
    AttemptState.RUNNING: _J.RUNNING,
    AttemptState.STOPPING: _J.STOPPING,
    AttemptState.SUCCEEDED: _J.SUCCEEDED,
    AttemptState.FAILED: _J.FAILED,
    AttemptState.CANCELLED: _J.CANCELLED,
    AttemptState.TIMED_OUT: _J.TIMED_OUT,
    AttemptState.PREEMPTED: _J.FAILED,
    AttemptState.LOST: _J.FAILED,
    AttemptState.REFUSED: _J.FAILED,
}
"""The task's state that goes with an attempt's, when nothing follows the attempt."""

SYSTEM = "system"


class IllegalTransition(Exception):
    """A bug of ours: a change that the table does not have."""


@quick
@dataclass(frozen=True, slots=True)
class Now:
    """When something is decided, and by whom."""

    time: Micros
    actor: str = SYSTEM


@quick
@dataclass(frozen=True, slots=True)
class View:
    """The rows that a decision about one task is made on; `rows` are all of its job, if known."""

    job: Job
    task: Task
    attempt: Attempt
    rows: Rows | None = None


@quick
@dataclass(frozen=True, slots=True)
class Rows:
    """A job's rows as far as they are kept in memory: tasks under way and their newest attempts."""

    job: Job
    tasks: Mapping[int, Task]
    attempts: Mapping[int, Attempt]

    def view(self, index: int) -> View | None:
        """The rows about one task; None when it is not under way."""
        task = self.tasks.get(index)
        attempt = self.attempts.get(index)
        return View(self.job, task, attempt, self) if task and attempt else None


def derive_state(
    size: int, desired: Desired, counts: Sequence[int], started: bool, waiting: JobState
) -> JobState:
    """A job's state from its tasks' counts.

    A single task's state is its job's. Of an array: RUNNING once one ran; over when all are; then
    SUCCEEDED if all did, else CANCELLED if that was desired, else FAILED, TIMED_OUT,
    UPSTREAM_FAILED or CANCELLED, the first that any task is.
    """
    if size == 1:
        return _STATES[counts.index(1)]
    ended = sum(counts[_J.SUCCEEDED :])
    if ended < size:
        return _derive_live(counts, started, waiting)
    if counts[_J.SUCCEEDED] == size:
        return _J.SUCCEEDED
    if desired is Desired.CANCELLED:
        return _J.CANCELLED
    order = (_J.FAILED, _J.TIMED_OUT, _J.UPSTREAM_FAILED, _J.CANCELLED)
    return next(state for state in order if counts[state])


def state_of(job: Job) -> JobState:
    """A job's state by its tasks."""
    return derive_state(
        job.size, job.desired, job.counts, bool(job.start_time), job.unstarted_state
    )


def _derive_live(counts: Sequence[int], started: bool, waiting: JobState) -> JobState:
    if started or counts[_J.RUNNING]:
        return _J.RUNNING
    for state in (_J.STOPPING, _J.STARTING, _J.WAITING, _J.LAUNCHING):
        if counts[state]:
            return state
    return _J.QUEUED if counts[_J.QUEUED] else waiting


@functools.lru_cache(maxsize=1024)
def initial_counts(size: int, state: JobState, inherited: int = 0) -> Counts:
    """All tasks of a new job, in its first state; so many SUCCEEDED in the job that it repeats."""
    counts = list(no_counts())
    counts[state] = size - inherited
    counts[_J.SUCCEEDED] = inherited
    return tuple(counts)


def first_state(hold: bool, upstreams: tuple[str, ...]) -> JobState:
    """Where a job that has not started waits; `upstreams` are the jobs that it waits for."""
    if hold:
        return _J.HELD
    return _J.BLOCKED if upstreams else _J.QUEUED


def submitted(job: Job, now: Now) -> Event:
    """The first event of a new job."""
    return Event(
        job_uid=job.uid,
        job_seq=job.version,
        time=now.time,
        index=None,
        attempt=0,
        from_state=job.state,
        to_state=job.state,
        job_from=job.state,
        job_to=job.state,
        cause=None,
        actor=now.actor,
        reason="submit",
        project=job.project,
        job_name=job.name,
        trace_id=job.trace_id,
        queue=job.queue,
    )


# -- moving one task --------------------------------------------------------------------------


@quick
@dataclass(frozen=True, slots=True)
class Move:
    """One task's step: its row before (None: it has none yet) and after, and what to tell of it."""

    before: Task | None
    after: Task
    reason: str
    cause: Cause | None = None
    note: str = ""


def moved(job: Job, move: Move, now: Now, attempts: tuple[AttemptWrite, ...] = ()) -> Change:
    """The change that a task's step makes to its job: its state is derived, its end recorded.

    The job's cause is noted with the first of its tasks that ends badly, or with the cancel.
    """
    old = move.before.state if move.before else job.unstarted_state
    new = move.after.state
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(f"{job.name}[{move.after.index}]: {old.name} to {new.name}")
    counts = list(job.counts)
    counts[old] -= 1
    counts[new] += 1
    start = job.start_time or (now.time if new is _RUNNING else 0)
    state = derive_state(job.size, job.desired, counts, bool(start), job.unstarted_state)
    good = state is _SUCCEEDED
    cause = _first_cause(job, move.cause) if new.terminal else job.cause
    after = changed(
        job,
        version=job.version + 1,
        state=state,
        counts=tuple(counts),
        unstarted=job.unstarted if move.before else job.unstarted.without(move.after.index),
        start_time=start,
        end_time=now.time if state.terminal else job.end_time,
        cause=None if good else cause,
        outputs=move.after.outputs if good and job.size == 1 else None,
    )
    event = _event(job, after, now, move)
    expected = move.before.version if move.before else 0
    return Change(after, job.version, (TaskWrite(move.after, expected),), attempts, (event,))


def _first_cause(job: Job, cause: Cause | None) -> Cause | None:
    """What went wrong first; that some of its tasks were cancelled gives way to anything else."""
    if job.cause is None or cause is None:
        return job.cause or cause
    in_part = job.cause.code is CauseCode.CANCELLED and job.desired is not Desired.CANCELLED
    return cause if in_part else job.cause


def _event(before: Job, after: Job, now: Now, move: Move) -> Event:
    old = move.before.state if move.before else before.unstarted_state
    return Event(
        job_uid=after.uid,
        job_seq=after.version,
        time=now.time,
        index=move.after.index,
        attempt=move.after.attempt,
        from_state=old,
        to_state=move.after.state,
        job_from=before.state,
        job_to=after.state,
        cause=move.cause,
        actor=now.actor,
        reason=move.reason,
        project=after.project,
        job_name=after.name,
        trace_id=after.trace_id,
        note=move.note,
        queue=after.queue,
    )


def stepped(
    view: View, state: AttemptState, reason: str, now: Now, *, note: str = "", **fields: object
) -> Change:
    """An attempt and its task one step on, neither of them over; `fields` are the attempt's."""
    attempt = changed(view.attempt, state=state, version=view.attempt.version + 1, **fields)  # type: ignore[arg-type]
    start = now.time if state is AttemptState.RUNNING else 0
    task = changed(
        view.task,
        state=ATTEMPT_OF[state],
        version=view.task.version + 1,
        start_time=start or view.task.start_time,
    )
    write = AttemptWrite(attempt, view.attempt.version)
    return moved(view.job, Move(view.task, task, reason, note=note), now, (write,))


def noted(view: View, attempt: Attempt, task: Task | None = None) -> Change:
    """A change of an attempt's or task's facts that is no transition: no event tells of it."""
    attempt = changed(attempt, version=view.attempt.version + 1)
    tasks: tuple[TaskWrite, ...] = ()
    if task is not None:
        tasks = (TaskWrite(changed(task, version=view.task.version + 1), view.task.version),)
    return Change(view.job, view.job.version, tasks, (AttemptWrite(attempt, view.attempt.version),))


# -- launching --------------------------------------------------------------------------------


@quick
@dataclass(frozen=True, slots=True)
class Intent:
    """What is decided about a launch: the new attempt's name, place and identity."""

    index: int
    name: str
    backend: str
    host: str
    gpus: tuple[str, ...]
    reserved: Resources
    fenced: bool
    span_id: str
    generation: int = 0
    """Of a gang's member."""


def launch(rows: Rows, intent: Intent, now: Now) -> Change | None:
    """QUEUED -> LAUNCHING: the intent, committed before the backend hears of it.

    None when the task cannot be launched now: it moved, or its last attempt is not released.
    """
    job = rows.job
    task = rows.tasks.get(intent.index)
    last = rows.attempts.get(intent.index)
    if job.desired is not Desired.RUN or job.hold:
        return None
    if not _launchable(job, task, last, intent.index):
        return None
    number = task.attempt + 1 if task else 1
    after = (
        changed(
            task,
            state=_J.LAUNCHING,
            version=task.version + 1,
            attempt=number,
            not_before=0,
            cause=None,
        )
        if task
        else Task(job.uid, intent.index, _J.LAUNCHING, 1, number, checkpoint=job.restore)
    )
    attempt = Attempt(
        name=intent.name,
        job_uid=job.uid,
        index=intent.index,
        number=number,
        fence=number,
        backend=intent.backend,
        host=intent.host,
        gpus=intent.gpus,
        state=AttemptState.LAUNCHING,
        version=1,
        release=Release.HELD,
        fenced=intent.fenced,
        span_id=intent.span_id,
        create_time=now.time,
        reserved=intent.reserved,
        generation=intent.generation,
    )
    if job.backend != intent.backend:
        job = changed(job, backend=intent.backend)
    return moved(job, Move(task, after, "launch"), now, (AttemptWrite(attempt, 0),))


def _launchable(job: Job, task: Task | None, last: Attempt | None, index: int) -> bool:
    if task is None:
        return job.unstarted_state is _J.QUEUED and index in job.unstarted
    released = last is None or last.release is Release.RELEASED
    return task.state is _J.QUEUED and released


def launched(view: View, handle: bytes) -> Change | None:
    """The backend has it: its handle is kept before anything else depends on it."""
    if view.attempt.handle == handle or view.attempt.state.terminal:
        return None
    return noted(view, changed(view.attempt, handle=handle))


def waiting(view: View, now: Now) -> Change | None:
    """LAUNCHING -> WAITING: the backend accepted it and has no room yet."""
    if view.attempt.state is not AttemptState.LAUNCHING:
        return None
    return stepped(view, AttemptState.WAITING, "wait", now)


def starting(view: View, now: Now) -> Change | None:
    """LAUNCHING or WAITING -> STARTING, told by a backend without our runner."""
    if view.attempt.state > AttemptState.WAITING:
        return None
    return stepped(view, AttemptState.STARTING, "start", now)


def claimed(view: View, nonce: str, now: Now) -> Change:
    """LAUNCHING or WAITING -> STARTING: a runner holds the claim.

    The caller has checked that the attempt may be claimed (`control.runners`).
    """
    if view.attempt.state >= AttemptState.STARTING:
        return noted(view, changed(view.attempt, nonce=nonce, claim_time=now.time))
    return stepped(view, AttemptState.STARTING, "claim", now, nonce=nonce, claim_time=now.time)


def running(view: View, start: Micros, limit_by: str, now: Now) -> Change | None:
    """LAUNCHING, WAITING or STARTING -> RUNNING: the user's code began."""
    if view.attempt.state >= AttemptState.RUNNING:
        return None
    usage = changed(view.attempt.usage, memory_limit_by=limit_by)
    return stepped(view, AttemptState.RUNNING, "run", now, start_time=start, usage=usage)


# -- stopping and ending ----------------------------------------------------------------------


def stopping(view: View, intended: AttemptState, cause: Cause | None, now: Now) -> Change | None:
    """Any live state -> STOPPING, with the outcome it is stopped for; once is enough.

    Of what is being stopped already only a cancel changes the intended outcome.
    """
    if view.attempt.state is AttemptState.STOPPING:
        return _stopping_for_good(view, intended, cause)
    if view.attempt.state.terminal:
        return None
    return stepped(view, AttemptState.STOPPING, "stop", now, intended=intended, cause=cause)


def _stopping_for_good(view: View, intended: AttemptState, cause: Cause | None) -> Change | None:
    cancels = intended is AttemptState.CANCELLED
    if not cancels or view.attempt.intended is AttemptState.CANCELLED:
        return None
    return noted(view, changed(view.attempt, intended=intended, cause=cause))


@quick
@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: `wait` is the back-off in seconds before another, if one follows.

    Whether one does is decided by `retries.decide`.
    """

    state: AttemptState
    cause: Cause | None
    wait: float = 0.0
    end: Micros = 0
    usage: Usage | None = None
    outputs: ManifestRef | None = None
    log_sizes: tuple[tuple[str, int], ...] = ()
    gone: bool = False
    models: tuple[ModelVersion, ...] = ()
    """Versions that it made; they become when the attempt has SUCCEEDED, and only then."""
    charged: bool = True
    """False: nobody's budget pays (no capacity, throttled)."""
    most_memory: int = 0
    """Bytes of the largest place known: a retry never asks for more; 0: none is known."""
    start: Micros = 0
    """When the user's code began, where nobody had told before."""


def ended(view: View, outcome: Outcome, now: Now) -> Change | None:
    """A live attempt -> its outcome; the task follows it, or is QUEUED again when a budget pays.

    None when the attempt has ended already: what comes later is history.
    """
    if view.attempt.state.terminal:
        return None
    outcome = as_intended(view, outcome)
    attempt = over(view.attempt, outcome, now)
    verdict = decide(view, outcome)
    task = _after_attempt(view, outcome, verdict, now)
    move = Move(view.task, task, "retry" if verdict.retry else "end", outcome.cause, verdict.note)
    change = moved(view.job, move, now, (AttemptWrite(attempt, view.attempt.version),))
    if outcome.models and outcome.state is AttemptState.SUCCEEDED:
        return changed(change, models=outcome.models)
    return change


def over(attempt: Attempt, outcome: Outcome, now: Now) -> Attempt:
    """An attempt's row once it has ended so."""
    return changed(
        attempt,
        state=outcome.state,
        version=attempt.version + 1,
        cause=outcome.cause,
        start_time=attempt.start_time or outcome.start,
        end_time=outcome.end or now.time,
        release=Release.RELEASED if outcome.gone else Release.RELEASING,
        usage=_usage(attempt.usage, outcome.usage),
        outputs=outcome.outputs,
        log_sizes=outcome.log_sizes,
        unknown_since=0,
    )


def _usage(known: Usage, told: Usage | None) -> Usage:
    if told is None:
        return known
    return changed(
        told,
        memory_limit_by=told.memory_limit_by or known.memory_limit_by,
        image=told.image or known.image,
    )


def as_intended(view: View, outcome: Outcome) -> Outcome:
    """An attempt that ended because we stopped it has the outcome it was stopped for.

    One that succeeded before the stop reached it has succeeded. Whose place was taken by others
    waits out no back-off.
    """
    intended = view.attempt.intended
    if intended is None or outcome.state is AttemptState.SUCCEEDED:
        return outcome
    wait = 0.0 if intended is AttemptState.PREEMPTED else outcome.wait
    return changed(outcome, state=intended, cause=view.attempt.cause or outcome.cause, wait=wait)


def _after_attempt(view: View, outcome: Outcome, verdict: Verdict, now: Now) -> Task:
    task = charge(view.task, verdict.charge)
    version, cause, adapted = task.version + 1, outcome.cause, verdict.adapted
    if verdict.retry:
        wait = round(verdict.wait * 1_000_000)
        return changed(
            task,
            state=_J.QUEUED,
            version=version,
            cause=cause,
            adapted=adapted,
            not_before=now.time + wait if wait else 0,
        )
    state = ATTEMPT_OF[outcome.state]
    if view.job.desired is Desired.CANCELLED and state is not _J.SUCCEEDED:
        state = _J.CANCELLED
    return changed(
        task,
        state=state,
        version=version,
        cause=cause,
        adapted=adapted,
        end_time=outcome.end or now.time,
        outputs=outcome.outputs,
    )


def released(view: View) -> Change | None:
    """Nothing of an ended attempt is left: what it held is free, and another may follow."""
    if view.attempt.release is Release.RELEASED or not view.attempt.state.terminal:
        return None
    return noted(view, changed(view.attempt, release=Release.RELEASED))


def reachability(view: View, reachable: bool, now: Now) -> Change | None:
    """It can, or cannot, be reached: an attribute that ends nothing."""
    since = view.attempt.unknown_since
    if view.attempt.state.terminal or reachable == (since == 0):
        return None
    return noted(view, changed(view.attempt, unknown_since=0 if reachable else now.time))


def used(view: View, usage: Usage) -> Change | None:
    """Higher use was seen."""
    if view.attempt.state.terminal or usage == view.attempt.usage:
        return None
    return noted(view, changed(view.attempt, usage=_usage(view.attempt.usage, usage)))


def checkpointed(view: View, checkpoint: Checkpoint) -> Change | None:
    """A complete checkpoint: the next attempt begins there; preemptions count anew."""
    known = view.attempt.checkpoint
    if view.attempt.state.terminal or (known is not None and known.step >= checkpoint.step):
        return None
    task = changed(view.task, checkpoint=checkpoint, preemptions=0)
    return noted(view, changed(view.attempt, checkpoint=checkpoint), task)


# -- the job as a whole -------------------------------------------------------------------------


def job_moved(
    before: Job, after: Job, reason: str, now: Now, cause: Cause | None = None, note: str = ""
) -> Change:
    """A change of the job as a whole; its unstarted tasks go where it says."""
    if after.unstarted_state is not before.unstarted_state:
        _check_unstarted(before, after)
        counts = list(after.counts)
        moved = len(before.unstarted)
        counts[before.unstarted_state] -= moved
        counts[after.unstarted_state] += moved
        after = changed(after, counts=tuple(counts))
    state = state_of(after)
    after = changed(
        after,
        version=before.version + 1,
        state=state,
        end_time=now.time if state.terminal else after.end_time,
        cause=None if state is _SUCCEEDED else _first_cause(after, cause),
    )
    event = Event(
        job_uid=after.uid,
        job_seq=after.version,
        time=now.time,
        index=None,
        attempt=0,
        from_state=before.state,
        to_state=after.state,
        job_from=before.state,
        job_to=after.state,
        cause=cause,
        actor=now.actor,
        reason=reason,
        project=after.project,
        job_name=after.name,
        trace_id=after.trace_id,
        note=note,
        queue=after.queue,
    )
    return Change(after, before.version, events=(event,))


def _check_unstarted(before: Job, after: Job) -> None:
    if before.unstarted and after.unstarted_state not in TRANSITIONS[before.unstarted_state]:
        raise IllegalTransition(
            f"{before.name}: {before.unstarted_state.name} to {after.unstarted_state.name}"
        )


def cancel(rows: Rows, cause: Cause, now: Now) -> Change | None:
    """The owner wants it ended: durable, never taken back.

    What has not started is CANCELLED at once, what waits for a retry too; live attempts are
    STOPPING until they have ended. None when the job is over or being cancelled already.
    """
    job = rows.job
    if job.state.terminal or job.desired is Desired.CANCELLED:
        return None
    after = changed(job, desired=Desired.CANCELLED, cause=cause)
    if unstarted_waits(job):
        after = changed(after, unstarted_state=_J.CANCELLED)
    change = job_moved(job, after, "cancel", now, cause)
    return cancel_started(rows, change, cause, now)


def cancel_tasks(rows: Rows, indices: Ranges, cause: Cause, now: Now) -> Change | None:
    """As `cancel`, of these tasks of an array alone: the others go on.

    None when none of them may still be ended so.
    """
    job = rows.job
    if job.state.terminal or job.desired is Desired.CANCELLED:
        return None
    fresh = job.unstarted.common(indices) if unstarted_waits(job) else Ranges()
    started = {i: task for i, task in rows.tasks.items() if i in indices and goes_on(rows, i)}
    if not fresh and not started:
        return None
    note = f"Tasks {indices} are cancelled; the others go on."
    change = job_moved(job, _dropped(job, fresh), "cancel_tasks", now, cause, note)
    return cancel_started(Rows(job, started, rows.attempts), change, cause, now)


def _dropped(job: Job, fresh: Ranges) -> Job:
    counts = list(job.counts)
    counts[job.unstarted_state] -= len(fresh)
    counts[_J.CANCELLED] += len(fresh)
    return changed(
        job,
        unstarted=job.unstarted.less(fresh),
        dropped=job.dropped.union(fresh),
        counts=tuple(counts),
    )


def fail_fast(rows: Rows, index: int | None, now: Now) -> Change | None:
    """A task failed and its array fails fast: the rest is cancelled. None when nothing is left."""
    job = rows.job
    if job.state.terminal or not job.fail_fast:
        return None
    cause = causes.sibling_failed(index)
    if not unstarted_waits(job) and not any(goes_on(rows, index) for index in rows.tasks):
        return None
    after = changed(job, unstarted_state=_J.CANCELLED) if unstarted_waits(job) else job
    change = job_moved(job, after, "fail_fast", now, cause)
    return cancel_started(rows, change, cause, now)


def goes_on(rows: Rows, index: int) -> bool:
    """It is not over, and not being cancelled either."""
    task, attempt = rows.tasks[index], rows.attempts[index]
    if task.state.terminal:
        return False
    return task.state.pending or attempt.intended is not AttemptState.CANCELLED


def unstarted_waits(job: Job) -> bool:
    """Some of its tasks never started and may yet."""
    return bool(job.unstarted) and not job.unstarted_state.terminal


def cancel_started(rows: Rows, change: Change, cause: Cause, now: Now) -> Change:
    """After `change`: of the started tasks those that wait CANCELLED, the others STOPPING."""
    steps = [change]
    for index in sorted(rows.tasks):
        task, attempt = rows.tasks[index], rows.attempts[index]
        if task.state.terminal:
            continue
        view = View(steps[-1].job, task, attempt)
        step = (
            cancel_waiting(view, cause, now)
            if task.state.pending
            else stopping(view, AttemptState.CANCELLED, cause, now)
        )
        if step is not None:
            steps.append(step)
    return combined(steps)


def cancel_waiting(view: View, cause: Cause, now: Now) -> Change:
    """A started task that waits for its next attempt -> CANCELLED."""
    task = changed(
        view.task,
        state=_J.CANCELLED,
        version=view.task.version + 1,
        cause=cause,
        end_time=now.time,
        not_before=0,
    )
    return moved(view.job, Move(view.task, task, "cancel", cause), now)


def hold(rows: Rows, held: bool, now: Now) -> Change | None:
    """Keep back, or let go, what has not started. None when that changes nothing."""
    job = rows.job
    if job.hold == held or job.state.terminal:
        return None
    after = changed(job, hold=held, settings_version=job.settings_version + 1)
    if unstarted_waits(job):
        after = changed(after, unstarted_state=first_state(held, job.upstreams))
    return job_moved(job, after, "hold" if held else "release", now)


def visited(view: View, reason: str, note: str, now: Now) -> Change:
    """Somebody looks into a task that runs: nothing changes but that it is known who."""
    change = job_moved(view.job, view.job, reason, now, note=note)
    place = changed(
        change.events[0],
        index=view.task.index,
        attempt=view.task.attempt,
        from_state=view.task.state,
        to_state=view.task.state,
    )
    return changed(change, events=(place,))


@dataclass(frozen=True, slots=True)
class Settings:
    """What an owner may change of a job that is not over; None: leave it."""

    priority: int | None = None
    queue: str | None = None


def updated(rows: Rows, settings: Settings, now: Now) -> Change | None:
    """New priority or queue."""
    job = rows.job
    after = changed(
        job,
        priority=job.priority if settings.priority is None else settings.priority,
        queue=job.queue if settings.queue is None else settings.queue,
    )
    if after == job or job.state.terminal:
        return None
    after = changed(after, settings_version=job.settings_version + 1)
    return job_moved(job, after, "update", now)
