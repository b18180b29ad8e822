"""Taking a running task's place: for others, or because where it runs is drained.

An attempt that is to give way is STOPPING with the intended outcome PREEMPTED. One whose code runs
is first asked to save a checkpoint, and stopped when its grace for that is over; until when is
kept in its cause, so that a restart of the server changes nothing about it. The task is QUEUED
again in front of its class.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.records import (
    Attempt,
    Cause,
    Change,
    Job,
    Micros,
    TaskWrite,
    combined,
)
from hatoba_scheduler.domain.states import AttemptState, CauseCode, Origin
from hatoba_scheduler.domain.transitions import Now, Rows, View, stepped

STOP_AT = "stop_at"
"""Name of the evidence that says until when a checkpoint may be saved."""
_SECOND = 1_000_000


def preempted(note: str) -> Cause:
    """Others take its place; the preemption budget pays."""
    return Cause(CauseCode.PREEMPTED, Origin.PREEMPTION, note, True)


def drained(what: str, actor: str, reason: str) -> Cause:
    """Where it runs is drained, by `actor`; nobody's budget pays."""
    why = f": {reason.rstrip('.')}" if reason else ""
    message = f"{what} was drained by {actor}{why}."
    return Cause(CauseCode.DRAINED, Origin.CAPACITY, message, True)


def give_way(rows: Rows, indices: Iterable[int], cause: Cause, now: Now) -> Change | None:
    """These tasks give way; of a gang all members. None when none of them is live."""
    wanted = rows.attempts.keys() if rows.job.terms.gang else indices
    steps: list[Change] = []
    for index in sorted(wanted):
        task, attempt = rows.tasks.get(index), rows.attempts.get(index)
        if task is None or attempt is None or attempt.state >= AttemptState.STOPPING:
            continue
        job = steps[-1].job if steps else rows.job
        steps.append(_stopped(View(job, task, attempt), cause, now))
    return combined(steps) if steps else None


def _stopped(view: View, cause: Cause, now: Now) -> Change:
    grace = checkpoint_grace(view.job) if view.attempt.state is AttemptState.RUNNING else 0.0
    told = changed(cause, evidence=(*cause.evidence, *_until(now.time, grace)))
    taken = cause.code is CauseCode.PREEMPTED
    change = stepped(
        view,
        AttemptState.STOPPING,
        "preempt" if taken else "drain",
        now,
        note=_note(cause, grace),
        intended=AttemptState.PREEMPTED,
        cause=told,
    )
    return _counted(change) if taken else change


def _counted(change: Change) -> Change:
    (write,) = change.tasks
    adapted = changed(write.row.adapted, preempted=write.row.adapted.preempted + 1)
    return changed(change, tasks=(TaskWrite(changed(write.row, adapted=adapted), write.expected),))


def _note(cause: Cause, grace: float) -> str:
    if not grace:
        return cause.message
    return f"{cause.message.rstrip('.')}; it has {grace:g} s to save a checkpoint."


def checkpoint_grace(job: Job) -> float:
    """Seconds that it has to save a checkpoint before it is stopped."""
    return job.stop_grace if job.terms.preempt_grace < 0 else job.terms.preempt_grace


def _until(now: Micros, grace: float) -> tuple[tuple[str, str], ...]:
    if not grace:
        return ()
    when = dt.datetime.fromtimestamp(now / _SECOND + grace, dt.UTC)
    return ((STOP_AT, when.isoformat()),)


def stop_at(attempt: Attempt) -> Micros:
    """Of an attempt that is STOPPING: when to stop it; until then it may save. 0: now."""
    if attempt.intended is not AttemptState.PREEMPTED or attempt.cause is None:
        return 0
    told = dict(attempt.cause.evidence).get(STOP_AT)
    return round(dt.datetime.fromisoformat(told).timestamp() * _SECOND) if told else 0


def may_save(attempt: Attempt, now: Micros) -> bool:
    """Whether it is asked to save a checkpoint now, and to be stopped later."""
    return attempt.state is AttemptState.STOPPING and stop_at(attempt) > now
