"""What a backend says, as decisions: observations and refusals through the transition table."""

from __future__ import annotations

import random
from collections.abc import Callable

from hatoba_plugins import errors
from hatoba_plugins.values import Exit, Handle, Launched, Observation, Phase
from hatoba_plugins.values import ExitKind as Told
from hatoba_scheduler.control.launches import encode_handle
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.gangs import ended
from hatoba_scheduler.domain.records import Attempt, AttemptWrite, Cause, Change, Job
from hatoba_scheduler.domain.retries import back_off
from hatoba_scheduler.domain.states import AttemptState, CauseCode, Origin
from hatoba_scheduler.domain.transitions import (
    Now,
    Outcome,
    Rows,
    View,
    launched,
    reachability,
    released,
    running,
    starting,
    waiting,
)

Step = Callable[[View], Change | None]

_KINDS: dict[Told, ExitKind] = {
    Told.EXITED: ExitKind.EXITED,
    Told.SIGNALED: ExitKind.SIGNALED,
    Told.OUT_OF_MEMORY: ExitKind.OUT_OF_MEMORY,
    Told.RUN_TIMEOUT: ExitKind.RUN_TIMEOUT,
    Told.STOPPED: ExitKind.STOPPED,
    Told.PREEMPTED: ExitKind.PREEMPTED,
    Told.LOST: ExitKind.LOST,
    Told.FAILED: ExitKind.BACKEND_FAILED,
    Told.ENVIRONMENT_FAILED: ExitKind.ENVIRONMENT_FAILED,
    Told.NOT_FOUND: ExitKind.NOT_FOUND,
    Told.NOT_EXECUTABLE: ExitKind.NOT_EXECUTABLE,
    Told.SECRET_MISSING: ExitKind.SECRET_MISSING,
}

_REFUSALS: dict[type[errors.BackendError], tuple[CauseCode, Origin]] = {
    errors.Retry: (CauseCode.BACKEND_FAILED, Origin.INFRASTRUCTURE),
    errors.NoCapacity: (CauseCode.NO_CAPACITY, Origin.CAPACITY),
    errors.Throttled: (CauseCode.THROTTLED, Origin.CAPACITY),
    errors.Invalid: (CauseCode.REFUSED_INVALID, Origin.USER),
    errors.Denied: (CauseCode.REFUSED_DENIED, Origin.POLICY),
    errors.Fatal: (CauseCode.BACKEND_FAILED, Origin.INFRASTRUCTURE),
    errors.Conflict: (CauseCode.CONFLICT, Origin.INFRASTRUCTURE),
    errors.Unsupported: (CauseCode.REFUSED_INVALID, Origin.USER),
}
_WAITED_FOR = (errors.Retry, errors.NoCapacity, errors.Throttled)
CAPACITY_WAIT = 5.0
CLAIM_REFUSED = 83
"""Exit code of a run whose claim was refused: it says nothing of the one that was granted."""


def of_attempt(index: int, name: str, step: Step) -> Callable[[Rows], Change | None]:
    """A decision about one attempt: nothing when it is not its task's newest any more."""

    def decide(rows: Rows) -> Change | None:
        view = rows.view(index)
        return step(view) if view and view.attempt.name == name else None

    return decide


def handle_step(handle: Handle, phase: Phase | None, now: Now) -> Step:
    """It exists: keep its handle, and take its phase when the backend knows one."""

    def step(view: View) -> Change | None:
        if phase is Phase.WAITING and view.attempt.state is AttemptState.LAUNCHING:
            return _with_handle(view, waiting(view, now), encode_handle(handle))
        return launched(view, encode_handle(handle))

    return step


def launched_step(told: Launched, see: Callable[[Observation, Now], Step], now: Now) -> Step:
    """It was launched: its handle is kept, and what was seen of it taken, in one change."""
    keep = handle_step(told.handle, told.phase, now)
    if told.seen is None:
        return keep
    taken, handle = see(told.seen, now), encode_handle(told.handle)

    def step(view: View) -> Change | None:
        return taken(_holding(view, handle)) or keep(view)

    return step


def _holding(view: View, handle: bytes) -> View:
    """As if the handle had been there before: whatever becomes of the attempt keeps it."""
    if view.attempt.state.terminal:
        return view
    attempt = changed(view.attempt, handle=handle)
    rows = view.rows
    if rows is not None and view.job.terms.gang:
        rows = Rows(rows.job, rows.tasks, {**rows.attempts, attempt.index: attempt})
    return View(view.job, view.task, attempt, rows)


def _with_handle(view: View, change: Change | None, handle: bytes) -> Change | None:
    if change is None:
        return launched(view, handle)
    row, expected = change.attempts[0]
    return changed(change, attempts=(AttemptWrite(changed(row, handle=handle), expected),))


def refused_step(error: errors.BackendError, now: Now) -> Step:
    """The backend refused it: waited for without charge, or over."""
    code, origin = _REFUSALS.get(type(error), (CauseCode.BACKEND_FAILED, Origin.INFRASTRUCTURE))
    waited_for = isinstance(error, _WAITED_FOR)
    cause = causes.refused(code, origin, error.message)
    outcome = Outcome(
        AttemptState.REFUSED,
        cause,
        wait=(error.after or CAPACITY_WAIT) if waited_for else 0.0,
        gone=True,
        charged=not waited_for,
    )
    return lambda view: ended(view, outcome, now)


def observation_step(
    seen: Observation,
    now: Now,
    rng: random.Random,
    most_memory: Callable[[Job], int] = lambda _: 0,
) -> Step:
    """What the backend sees of an attempt. What is older than what is known changes nothing.

    `most_memory`: bytes of the largest place where a job may go.
    """

    def step(view: View) -> Change | None:
        if not seen.reachable:
            return reachability(view, reachable=False, now=now)
        if view.attempt.state.terminal:
            return None if seen.exists else released(view)
        if view.attempt.fenced and seen.exit is not None and seen.exit.code == CLAIM_REFUSED:
            return None
        if seen.phase >= Phase.ENDED:
            return _ended(view, seen, now, rng, most_memory)
        return _advanced(view, seen, now) or reachability(view, reachable=True, now=now)

    return step


def _advanced(view: View, seen: Observation, now: Now) -> Change | None:
    if seen.phase is Phase.EXISTS:
        return None
    if seen.phase is Phase.WAITING:
        return waiting(view, now)
    if seen.phase is Phase.STARTING:
        return starting(view, now)
    return running(view, now.time, "", now)


def _ended(
    view: View,
    seen: Observation,
    now: Now,
    rng: random.Random,
    most_memory: Callable[[Job], int],
) -> Change | None:
    state, cause = _verdict(view.attempt, seen)
    gone = not seen.exists
    if cause is None:
        return ended(view, Outcome(state, None, gone=gone), now)
    wait = back_off(view.job, view.task, rng)
    most = most_memory(view.job) if view.job.retries.rules else 0
    return ended(view, Outcome(state, cause, wait=wait, gone=gone, most_memory=most), now)


def _verdict(attempt: Attempt, seen: Observation) -> tuple[AttemptState, Cause | None]:
    ending = ending_of(seen.exit) if seen.exit else Ending(ExitKind.LOST)
    if ending.good and attempt.fenced:
        return AttemptState.LOST, causes.lost(
            "The command exited 0 and its runner never committed.", CauseCode.NOT_COMMITTED
        )
    return causes.judge(ending)


def ending_of(told: Exit) -> Ending:
    """A backend's exit in the domain's words."""
    return Ending(_KINDS[told.kind], told.code, told.signal, told.message)


def never_arrived(attempt: Attempt, seen: Observation) -> bool:
    """A launch that nothing claimed and that is not there: it may be launched again as it is."""
    unclaimed = attempt.state is AttemptState.LAUNCHING and not attempt.nonce
    return attempt.fenced and unclaimed and seen.phase is Phase.GONE


def told_before(attempt: Attempt, seen: Observation) -> bool:
    """Whether an observation says nothing new: the runner has told it already."""
    if attempt.state.terminal:
        return seen.exists
    running = attempt.state >= AttemptState.RUNNING and seen.phase <= Phase.RUNNING
    return running and seen.reachable and not attempt.unknown_since


def never_was_step(now: Now) -> Step:
    """A stop found nothing of that name, and none will come: it ends as it was meant to."""

    def step(view: View) -> Change | None:
        cause = causes.lost("It was stopped before it existed.")
        return ended(view, Outcome(AttemptState.LOST, cause, gone=True, charged=False), now)

    return step
