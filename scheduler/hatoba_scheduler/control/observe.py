"""What a backend says, as decisions: observations and refusals through the transition table."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from hatoba.runs import same_run
from hatoba_plugins import errors
from hatoba_plugins.runner import OWN_CODES
from hatoba_plugins.values import Exit, Handle, Launched, Observation, Phase
from hatoba_plugins.values import ExitKind as Told
from hatoba_scheduler.control.awaited_ends import (
    AwaitedEnds,
    Bearing,
    fenced,
    of_others,
    refused,
)
from hatoba_scheduler.control.exits import Exits
from hatoba_scheduler.control.launches import encode_handle
from hatoba_scheduler.control.places import NO_PLACES, Places
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.gangs import ended
from hatoba_scheduler.domain.records import Attempt, AttemptWrite, Cause, Change
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
    Told.NOT_FOUND: ExitKind.NOT_FOUND,
    Told.NOT_EXECUTABLE: ExitKind.NOT_EXECUTABLE,
    Told.SECRET_MISSING: ExitKind.SECRET_MISSING,
    Told.IMAGE_MISSING: ExitKind.IMAGE_MISSING,
    Told.IMAGE_DENIED: ExitKind.IMAGE_DENIED,
    Told.IMAGE_ARCHITECTURE: ExitKind.IMAGE_ARCHITECTURE,
    Told.IMAGE_UNREACHABLE: ExitKind.IMAGE_UNREACHABLE,
    Told.DEVICE_FAULT: ExitKind.DEVICE_FAULT,
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


@dataclass(frozen=True, slots=True)
class Grounds:
    """What an observation is decided on beside itself.

    `ends` holds back what a runner elsewhere may still say better, and `exits` tells it what was
    seen.
    """

    rng: random.Random
    ends: AwaitedEnds
    exits: Exits
    places: Places = NO_PLACES


def observation_step(seen: Observation, now: Now, grounds: Grounds) -> Step:
    """What the backend sees of an attempt. What is older than what is known changes nothing."""

    def step(view: View) -> Change | None:
        if not seen.reachable:
            return reachability(view, reachable=False, now=now)
        if view.attempt.state.terminal:
            return None if seen.exists else released(view)
        if seen.phase >= Phase.ENDED:
            return _seen_ended(view, seen, now, grounds)
        return _advanced(view, seen, now, grounds.ends) or reachability(view, True, now)

    return step


def _advanced(view: View, seen: Observation, now: Now, ends: AwaitedEnds) -> Change | None:
    attempt = view.attempt
    if seen.phase is Phase.EXISTS or of_others(attempt, seen):
        return None
    if seen.phase is Phase.WAITING:
        return waiting(view, now)
    begun = not (fenced(attempt, seen) and ends.elsewhere) or (attempt.nonce and ends.sees_start)
    if seen.phase is Phase.STARTING or not begun:
        return starting(view, now)
    return running(view, now.time, "", now)


def _seen_ended(view: View, seen: Observation, now: Now, grounds: Grounds) -> Change | None:
    attempt, ends = view.attempt, grounds.ends
    if fenced(attempt, seen) and refused(seen) and not ends.elsewhere:
        return None
    if attempt.nonce and not of_others(attempt, seen) and seen.phase is Phase.ENDED:
        grounds.exits.tell(attempt.name, _ending(seen), now.time)
    bearing = ends.bearing(attempt, seen)
    if bearing is Bearing.DECIDES:
        return _ended(view, seen, now, grounds)
    if bearing is Bearing.WAITS:
        return None
    return reachability(view, reachable=bearing is Bearing.OTHERS, now=now)


def _ended(view: View, seen: Observation, now: Now, grounds: Grounds) -> Change | None:
    state, cause = _verdict(view.attempt, seen, grounds)
    gone = not seen.exists
    if cause is None:
        return ended(view, Outcome(state, None, gone=gone), now)
    wait = back_off(view.job, view.task, grounds.rng)
    most = grounds.places.most_memory(view.job) if view.job.retries.rules else 0
    return ended(view, Outcome(state, cause, wait=wait, gone=gone, most_memory=most), now)


def _verdict(
    attempt: Attempt, seen: Observation, grounds: Grounds
) -> tuple[AttemptState, Cause | None]:
    ending = _ending(seen)
    if fenced(attempt, seen) and refused(seen) and not same_run(attempt.nonce, seen.run):
        return AttemptState.LOST, causes.lost("Its runner was refused, and no other is there.")
    if ending.good and fenced(attempt, seen):
        return AttemptState.LOST, causes.lost(
            "The command exited 0 and its runner never committed.", CauseCode.NOT_COMMITTED
        )
    told = OWN_CODES.get(ending.code) if ending.kind is ExitKind.EXITED else None
    if told and fenced(attempt, seen) and grounds.ends.elsewhere:
        return AttemptState.LOST, causes.lost(told, CauseCode.NOT_COMMITTED)
    return causes.judge(ending._replace(spot=ending.spot or grounds.places.on_spot(attempt)))


def _ending(seen: Observation) -> Ending:
    return ending_of(seen.exit) if seen.exit else Ending(ExitKind.LOST)


def ending_of(told: Exit) -> Ending:
    """A backend's exit in the domain's words."""
    return Ending(_KINDS[told.kind], told.code, told.signal, told.message, spot=told.spot)


def foresee(attempt: Attempt, seen: Observation, exits: Exits) -> None:
    """Keep as what the end of a granted attempt will count that its backend is bringing about.

    Of what is over nobody asks, and nobody would forget it.
    """
    if seen.ending is None or attempt.state.terminal:
        return
    if attempt.nonce and not of_others(attempt, seen):
        exits.foresee(attempt.name, ending_of(seen.ending))


def never_arrived(attempt: Attempt, seen: Observation) -> bool:
    """A launch that nothing claimed and that is not there: it may be launched again as it is."""
    unclaimed = attempt.state is AttemptState.LAUNCHING and not attempt.nonce
    return fenced(attempt, seen) and unclaimed and seen.phase is Phase.GONE


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
