"""Gangs: tasks that begin together, run together and end together.

The members are the tasks of one job. All attempts of one generation are launched by one change; no
member's code runs before all of them have claimed. A member whose attempt has ended, well or not,
stays STOPPING until every attempt of the generation has ended: only then do all tasks go to their
outcome, or are all QUEUED again, so that what is terminal stays final though the gang may have to
begin anew. A member's success in a generation that begins anew is history, and versions of models
become only with the end that makes the whole gang succeed.

Of the members that ended badly the first decides whether there will be another generation; the
others are stopped for it. That decision is kept in `Task.cause.retryable` of members that ended,
until the tasks settle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from hatoba_scheduler.domain import transitions
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.models import ModelVersion
from hatoba_scheduler.domain.records import (
    Attempt,
    AttemptWrite,
    Cause,
    Change,
    Job,
    Micros,
    Task,
    TaskWrite,
    combined,
)
from hatoba_scheduler.domain.retries import Verdict, charge, decide
from hatoba_scheduler.domain.states import (
    AttemptState,
    CauseCode,
    Desired,
    GangPolicy,
    JobState,
    Origin,
)
from hatoba_scheduler.domain.transitions import (
    ATTEMPT_OF,
    Intent,
    Move,
    Now,
    Outcome,
    Rows,
    View,
    as_intended,
    launch,
    moved,
    over,
    stepped,
)

_SECOND = 1_000_000
_GOOD = AttemptState.SUCCEEDED


class Member(NamedTuple):
    """Where a member can be met; its rank is its index."""

    rank: int
    host: str
    address: str


# -- the beginning --------------------------------------------------------------------------------


def launch_all(rows: Rows, intents: Sequence[Intent], now: Now) -> Change | None:
    """The next generation: every member QUEUED -> LAUNCHING, in one change.

    None when one of them cannot be launched now; then none is.
    """
    if len(intents) != rows.job.size:
        return None
    generation = rows.job.generation + 1
    job = changed(rows.job, generation=generation)
    steps: list[Change] = []
    for intent in intents:
        before = Rows(steps[-1].job if steps else job, rows.tasks, rows.attempts)
        step = launch(before, changed(intent, generation=generation), now)
        if step is None:
            return None
        steps.append(step)
    return combined(steps)


def claimed(view: View, nonce: str, address: str, now: Now) -> Change:
    """A member's runner holds its claim and waits for the others."""
    change = transitions.claimed(view, nonce, now)
    row, expected = change.attempts[0]
    return changed(change, attempts=(AttemptWrite(changed(row, address=address), expected),))


def after(rows: Rows, change: Change | None) -> Rows:
    """The rows as a change makes them."""
    if change is None:
        return rows
    work = _Work(rows)
    work.take(change)
    return work.rows()


def all_claimed(rows: Rows) -> bool:
    """Every member of the current generation has claimed: its code may run."""
    generation = rows.job.generation
    claims = (one.generation == generation and one.nonce != "" for one in rows.attempts.values())
    return sum(claims) == rows.job.size


def current(rows: Rows) -> list[Attempt]:
    """The attempts of the current generation, by index."""
    generation = rows.job.generation
    found = (one for one in rows.attempts.values() if one.generation == generation)
    return sorted(found, key=lambda one: one.index)


def members(rows: Rows) -> list[Member]:
    """Where the members of the current generation can be met, by index."""
    return [Member(one.index, one.host, one.address) for one in current(rows)]


def claims_due(rows: Rows) -> Micros | None:
    """When all members must have claimed; None when they have, or it is no gang under way.

    One of which only some members were found after a restore has not gathered either.
    """
    if not rows.job.terms.gang or rows.job.state.terminal:
        return None
    members = current(rows)
    if not members or all_claimed(rows):
        return None
    if all(one.state >= AttemptState.STOPPING for one in members):
        return None
    return members[0].create_time + round(rows.job.terms.gang_timeout * _SECOND)


def timed_out(rows: Rows, now: Now) -> Change | None:
    """Not all have claimed in time: all are let go, at nobody's charge, to begin anew."""
    due = claims_due(rows)
    if due is None or due > now.time:
        return None
    there = {one.index for one in current(rows) if one.nonce}
    missing = [index for index in range(rows.job.size) if index not in there]
    cause = Cause(
        CauseCode.GANG_TIMEOUT,
        Origin.CAPACITY,
        f"{len(there)} of {rows.job.size} members had claimed within "
        f"{rows.job.terms.gang_timeout:g} s; missing: {_few(missing)}.",
        True,
    )
    work = _Work(rows)
    work.stop_all(AttemptState.REFUSED, cause, now)
    return work.change()


def _few(indices: Iterable[int]) -> str:
    listed = sorted(indices)
    shown = ", ".join(str(index) for index in listed[:10])
    return shown if len(listed) <= 10 else f"{shown} and {len(listed) - 10} more"


# -- the end --------------------------------------------------------------------------------------


def ended(view: View, outcome: Outcome, now: Now) -> Change | None:
    """An attempt has ended; of a gang's member with what follows for the others.

    As `transitions.ended`, which it is for what is no gang's member.
    """
    if not view.job.terms.gang or view.rows is None:
        return transitions.ended(view, outcome, now)
    if view.attempt.state.terminal:
        return None
    work = _Work(view.rows)
    outcome = as_intended(view, outcome)
    if outcome.state is _GOOD:
        work.end(view, outcome, None, now)
    else:
        _ended_badly(work, view, outcome, now)
    whole = _all_good(work.rows())
    if all(one.state.terminal for one in current(work.rows())):
        _settle(work, now)
    return _making(work, outcome.models if whole else ())


def ended_well(rows: Rows, outcomes: Mapping[int, Outcome], now: Now) -> Change | None:
    """These members have ended well, by index, and with them the gang; all in one change.

    None when another has not: then nothing of it is decided.
    """
    work = _Work(rows)
    for index, outcome in outcomes.items():
        if work.view(index).attempt.state.terminal:
            return None
        work.end(work.view(index), outcome, None, now)
    if not _all_good(work.rows()):
        return None
    _settle(work, now)
    return _making(work, tuple(one for made in outcomes.values() for one in made.models))


def _all_good(rows: Rows) -> bool:
    members = current(rows)
    return len(members) == rows.job.size and all(one.state is _GOOD for one in members)


def _making(work: _Work, models: tuple[ModelVersion, ...]) -> Change | None:
    change = work.change()
    return changed(change, models=models) if change is not None and models else change


def _ended_badly(work: _Work, view: View, outcome: Outcome, now: Now) -> None:
    decided = _decision(work.rows())
    if decided is not None:
        work.end(view, outcome, Verdict(decided, 0.0, view.task.adapted), now)
        return
    verdict = _verdict(view, outcome)
    work.end(view, outcome, verdict, now)
    cause = _failed(view, outcome, verdict)
    work.stop_all(AttemptState.FAILED, cause, now)
    work.charge_all(verdict.charge, cause)


def _verdict(view: View, outcome: Outcome) -> Verdict:
    """Whether the gang begins anew after a member's bad end, and who pays."""
    verdict = decide(view, outcome)
    if view.job.terms.gang_policy is GangPolicy.RESTART or not verdict.retry:
        return verdict
    if verdict.charge is None or verdict.charge is Origin.PREEMPTION:
        return verdict
    note = "No retry: the gang's policy is FAIL."
    return Verdict(False, 0.0, view.task.adapted, note, verdict.charge)


def _decision(rows: Rows) -> bool | None:
    """Whether the gang begins anew, as its first bad end has decided; None: there was none."""
    for one in current(rows):
        cause = rows.tasks[one.index].cause
        if cause is not None:
            return cause.retryable
    return None


def _failed(view: View, outcome: Outcome, verdict: Verdict) -> Cause:
    why = outcome.cause.message if outcome.cause else "It has no cause."
    return Cause(
        CauseCode.GANG_FAILED,
        Origin.POLICY,
        f"Member {view.task.index} of its gang ended {outcome.state.name}: {why}",
        verdict.retry,
    )


def _settle(work: _Work, now: Now) -> None:
    """All attempts have ended: the tasks go to their outcomes, or all wait again."""
    rows = work.rows()
    # After a restore some members may never have been found.
    broken = len(current(rows)) < rows.job.size
    again = (broken or _decision(rows) is True) and rows.job.desired is Desired.RUN
    # What ended badly first is told first, since it is the job's cause.
    order = sorted(current(rows), key=lambda one: (_caused(one), one.end_time, one.index))
    note = f"All members begin anew as generation {rows.job.generation + 1}." if again else ""
    for one in order:
        if again:
            work.requeue(one.index, note, now)
            note = ""
        else:
            work.conclude(one.index, now)


def _caused(attempt: Attempt) -> bool:
    """Sorts those last that ended well, or for another's sake."""
    cause = attempt.cause
    return cause is None or cause.code is CauseCode.GANG_FAILED


class _Work:
    """A gang's rows while a change is made of several steps."""

    def __init__(self, rows: Rows) -> None:
        self._job: Job = rows.job
        self._tasks: dict[int, Task] = dict(rows.tasks)
        self._attempts: dict[int, Attempt] = dict(rows.attempts)
        self._steps: list[Change] = []

    def rows(self) -> Rows:
        return Rows(self._job, self._tasks, self._attempts)

    def change(self) -> Change | None:
        return combined(self._steps) if self._steps else None

    def take(self, step: Change | None) -> None:
        if step is None:
            return
        self._steps.append(step)
        self._job = step.job
        self._tasks.update((row.index, row) for row, _ in step.tasks)
        self._attempts.update((row.index, row) for row, _ in step.attempts)

    def view(self, index: int) -> View:
        """The rows about one member."""
        return View(self._job, self._tasks[index], self._attempts[index])

    def end(self, view: View, outcome: Outcome, verdict: Verdict | None, now: Now) -> None:
        """A member's attempt has ended; its task stays STOPPING until the gang settles."""
        index = view.task.index
        attempt = over(view.attempt, outcome, now)
        fields: dict[str, object] = {}
        if verdict is not None and outcome.cause is not None:
            fields["cause"] = changed(outcome.cause, retryable=verdict.retry)
            fields["adapted"] = verdict.adapted
            wait = round(verdict.wait * _SECOND)
            fields["not_before"] = now.time + wait if wait else 0
        task = self._tasks[index]
        if task.state is JobState.STOPPING:
            self.take(
                Change(
                    self._job,
                    self._job.version,
                    (TaskWrite(_next(task, **fields), task.version),),
                    (AttemptWrite(attempt, view.attempt.version),),
                )
            )
            return
        after = _next(task, state=JobState.STOPPING, **fields)
        note = verdict.note if verdict else "It waits for the others of its gang to end."
        move = Move(task, after, "member_end", outcome.cause, note)
        self.take(moved(self._job, move, now, (AttemptWrite(attempt, view.attempt.version),)))

    def stop_all(self, intended: AttemptState, cause: Cause, now: Now) -> None:
        """Every member that is live is to end, for this cause."""
        for index in sorted(self._attempts):
            if self._attempts[index].state < AttemptState.STOPPING:
                self.take(
                    stepped(
                        self.view(index),
                        AttemptState.STOPPING,
                        "stop",
                        now,
                        note=cause.message,
                        intended=intended,
                        cause=cause,
                    )
                )

    def charge_all(self, origin: Origin | None, cause: Cause) -> None:
        """One ending is laid to the gang: each member's count of it grows by one.

        Of a member that ended well before, `cause` is why that does not count.
        """
        for index, attempt in self._attempts.items():
            task = charge(self._tasks[index], origin)
            if attempt.state is _GOOD:
                task = changed(task, cause=cause)
            if task is not self._tasks[index]:
                write = TaskWrite(_next(task), self._tasks[index].version)
                self.take(Change(self._job, self._job.version, (write,)))

    def requeue(self, index: int, note: str, now: Now) -> None:
        """A member waits for the next generation."""
        task = self._tasks[index]
        after = _next(task, state=JobState.QUEUED)
        move = Move(task, after, "retry", self._attempts[index].cause, note)
        self.take(moved(self._job, move, now))

    def conclude(self, index: int, now: Now) -> None:
        """A member's task goes to the outcome of its attempt."""
        task, attempt = self._tasks[index], self._attempts[index]
        state = ATTEMPT_OF[attempt.state]
        if self._job.desired is Desired.CANCELLED and state is not JobState.SUCCEEDED:
            state = JobState.CANCELLED
        after = _next(
            task,
            state=state,
            cause=attempt.cause,
            end_time=attempt.end_time,
            outputs=attempt.outputs,
            not_before=0,
        )
        self.take(moved(self._job, Move(task, after, "end", attempt.cause), now))


def _next(task: Task, **fields: object) -> Task:
    """The task's next version, with these fields."""
    return changed(task, version=task.version + 1, **fields)  # type: ignore[arg-type]
