"""What a backend says, as decisions."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from domain_rows import CANCEL, NOW, after, intent, launched_rows, new_job, rows_of, view_of

from hatoba_plugins import errors
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import Exit, ExitKind, Handle, Launched, Observation, Phase
from hatoba_scheduler.control.awaited_ends import AwaitedEnds, Place
from hatoba_scheduler.control.exits import Exits
from hatoba_scheduler.control.observe import (
    Grounds,
    Step,
    handle_step,
    launched_step,
    never_arrived,
    never_was_step,
    observation_step,
    of_attempt,
    refused_step,
)
from hatoba_scheduler.control.places import NO_PLACES, NoPlaces
from hatoba_scheduler.domain.records import Attempt, Change, Terms
from hatoba_scheduler.domain.states import AttemptState, CauseCode, JobState, Release
from hatoba_scheduler.domain.transitions import Rows, cancel, launch

J = JobState
A = AttemptState
CLOCK = FakeClock()
GROUNDS = Grounds(random.Random(1), AwaitedEnds(CLOCK, Place.HOST, lambda _: -1.0), Exits(CLOCK))
HANDLE = Handle(1, "x")


def seen(phase: Phase, *, exists: bool = True, reachable: bool = True, code: int = 0) -> Step:
    told = Exit(ExitKind.EXITED, code) if phase is Phase.ENDED else None
    return observation_step(Observation("a", phase, exists, told, "", reachable), NOW, GROUNDS)


def told(rows: Rows, *steps: Step) -> Rows:
    for step in steps:
        rows = after(rows, step(view_of(rows)))
    return rows


@pytest.fixture
def rows() -> Rows:
    return launched_rows(new_job())


def test_phases_move_on_and_never_back(rows: Rows) -> None:
    rows = told(rows, seen(Phase.WAITING), seen(Phase.STARTING), seen(Phase.RUNNING))
    assert rows.job.state is J.RUNNING
    for phase in (Phase.EXISTS, Phase.WAITING, Phase.STARTING, Phase.RUNNING):
        assert seen(phase)(view_of(rows)) is None


def test_out_of_reach_says_nothing_about_how_it_is(rows: Rows) -> None:
    rows = told(rows, seen(Phase.RUNNING), seen(Phase.GONE, exists=False, reachable=False))
    assert (rows.job.state, rows.attempts[0].unknown_since) == (J.RUNNING, NOW.time)
    rows = told(rows, seen(Phase.RUNNING))
    assert (rows.job.state, rows.attempts[0].unknown_since) == (J.RUNNING, 0)


def test_an_end_is_an_end_and_release_comes_when_nothing_is_left(rows: Rows) -> None:
    rows = told(rows, seen(Phase.ENDED))
    assert (rows.job.state, rows.attempts[0].release) == (J.SUCCEEDED, Release.RELEASING)
    assert seen(Phase.ENDED)(view_of(rows)) is None
    assert seen(Phase.RUNNING)(view_of(rows)) is None
    rows = told(rows, seen(Phase.GONE, exists=False))
    assert rows.attempts[0].release is Release.RELEASED
    assert seen(Phase.GONE, exists=False)(view_of(rows)) is None


def test_gone_without_a_word_is_lost_and_tried_again(rows: Rows) -> None:
    rows = told(rows, seen(Phase.GONE, exists=False))
    assert (rows.attempts[0].state, rows.job.state) == (A.LOST, J.QUEUED)


def test_a_fenced_success_counts_only_when_its_runner_commits() -> None:
    rows = rows_of(new_job())
    rows = after(rows, launch(rows, intent(rows, fenced=True), NOW))
    rows = told(rows, seen(Phase.ENDED))
    cause = rows.attempts[0].cause
    assert cause is not None
    assert (rows.attempts[0].state, cause.code) == (A.LOST, CauseCode.NOT_COMMITTED)


def test_words_about_a_former_attempt_change_nothing(rows: Rows) -> None:
    old = rows.attempts[0].name
    rows = told(rows, seen(Phase.GONE, exists=False))
    rows = after(rows, launch(rows, intent(rows), NOW))
    for step in (seen(Phase.ENDED), seen(Phase.GONE, exists=False), handle_step(HANDLE, None, NOW)):
        assert of_attempt(0, old, step)(rows) is None
        assert of_attempt(0, rows.attempts[0].name, step)(rows) is not None
    assert of_attempt(7, old, seen(Phase.ENDED))(rows) is None


def test_a_handle_is_kept_with_the_phase_that_came_with_it(rows: Rows) -> None:
    waits = told(rows, handle_step(HANDLE, Phase.WAITING, NOW))
    assert (waits.job.state, waits.attempts[0].handle) == (J.WAITING, b"1:x")
    kept = told(rows, handle_step(HANDLE, None, NOW))
    assert (kept.job.state, kept.attempts[0].handle) == (J.LAUNCHING, b"1:x")
    assert handle_step(HANDLE, None, NOW)(view_of(kept)) is None


def launched(phase: Phase | None, *, exists: bool = False, code: int = 0) -> Step:
    exit = Exit(ExitKind.EXITED, code) if phase is Phase.ENDED else None
    sight = None if phase is None else Observation("a", phase, exists, exit)
    told = Launched("a", HANDLE, phase, sight)
    return launched_step(told, lambda one, now: observation_step(one, now, GROUNDS), NOW)


def test_what_a_launch_saw_is_taken_with_its_handle(rows: Rows) -> None:
    ended = told(rows, launched(Phase.ENDED))
    attempt = ended.attempts[0]
    assert (ended.job.state, attempt.handle) == (J.SUCCEEDED, b"1:x")
    assert (attempt.version, attempt.release) == (rows.attempts[0].version + 1, Release.RELEASED)
    runs = told(rows, launched(Phase.RUNNING))
    assert (runs.job.state, runs.attempts[0].handle) == (J.RUNNING, b"1:x")
    for step in (launched(None), launched(Phase.EXISTS)):
        kept = told(rows, step)
        assert (kept.job.state, kept.attempts[0].handle) == (J.LAUNCHING, b"1:x")


class OnSpot(NoPlaces):
    """All places are spot capacity."""

    def on_spot(self, attempt: Attempt) -> bool:
        return True


@pytest.mark.parametrize(
    ("exit", "places", "code"),
    [
        (Exit(ExitKind.PREEMPTED), NO_PLACES, CauseCode.PREEMPTED),
        (Exit(ExitKind.PREEMPTED), OnSpot(), CauseCode.SPOT_RECLAIMED),
        (Exit(ExitKind.PREEMPTED, spot=True), NO_PLACES, CauseCode.SPOT_RECLAIMED),
        (Exit(ExitKind.LOST), OnSpot(), CauseCode.LOST),
    ],
)
def test_only_what_was_taken_on_spot_capacity_was_reclaimed(
    rows: Rows, exit: Exit, places: NoPlaces, code: CauseCode
) -> None:
    seen = Observation("a", Phase.ENDED, exists=True, exit=exit)
    change = observation_step(seen, NOW, replace(GROUNDS, places=places))(view_of(rows))
    assert change is not None
    cause = change.attempts[0].row.cause
    assert cause is not None
    assert cause.code is code


def test_what_a_launch_saw_too_late_changes_nothing(rows: Rows) -> None:
    rows = told(rows, seen(Phase.ENDED, exists=False))
    assert launched(Phase.ENDED)(view_of(rows)) is None


def test_a_launch_that_is_over_at_once_ends_as_it_was_meant_to(rows: Rows) -> None:
    rows = after(rows, cancel(rows, CANCEL, NOW))
    rows = told(rows, launched(Phase.ENDED, code=1))
    assert (rows.job.state, rows.attempts[0].handle) == (J.CANCELLED, b"1:x")


def test_a_member_of_a_gang_that_is_over_at_once_keeps_its_handle() -> None:
    rows = rows_of(replace(new_job(size=2), terms=Terms(gang=True), generation=1))
    for index in range(2):
        wanted = replace(intent(rows, index), generation=1)
        rows = after(rows, launch(rows, wanted, NOW))
    rows = told(rows, launched(Phase.ENDED))
    assert (rows.attempts[0].state, rows.attempts[0].handle) == (A.SUCCEEDED, b"1:x")
    assert rows.job.state is not J.SUCCEEDED


@pytest.mark.parametrize(
    ("error", "state", "code", "wait"),
    [
        (errors.Retry("busy", after=2.0), J.QUEUED, CauseCode.BACKEND_FAILED, 2.0),
        (errors.NoCapacity("full"), J.QUEUED, CauseCode.NO_CAPACITY, 5.0),
        (errors.Throttled("slow", after=7.0), J.QUEUED, CauseCode.THROTTLED, 7.0),
        (errors.Invalid("no"), J.FAILED, CauseCode.REFUSED_INVALID, 0.0),
        (errors.Denied("no"), J.FAILED, CauseCode.REFUSED_DENIED, 0.0),
        (errors.Fatal("no"), J.FAILED, CauseCode.BACKEND_FAILED, 0.0),
        (errors.Conflict("taken"), J.FAILED, CauseCode.CONFLICT, 0.0),
        (errors.Unsupported("gangs"), J.FAILED, CauseCode.REFUSED_INVALID, 0.0),
    ],
)
def test_a_refusal_is_waited_for_or_final(
    rows: Rows, error: errors.BackendError, state: JobState, code: CauseCode, wait: float
) -> None:
    rows = told(rows, refused_step(error, NOW))
    task, attempt = rows.tasks[0], rows.attempts[0]
    assert attempt.cause is not None
    assert (task.state, attempt.cause.code) == (state, code)
    assert (attempt.state, attempt.release) == (A.REFUSED, Release.RELEASED)
    assert task.not_before == (NOW.time + round(wait * 1e6) if wait else 0)


def test_what_was_stopped_before_it_existed_ends_as_it_was_meant_to(rows: Rows) -> None:
    rows = after(rows, cancel(rows, CANCEL, NOW))
    rows = told(rows, never_was_step(NOW))
    assert (rows.job.state, rows.attempts[0].release) == (J.CANCELLED, Release.RELEASED)


def test_a_launch_that_never_arrived_is_told_from_one_that_was_claimed(rows: Rows) -> None:
    fenced = replace(rows.attempts[0], fenced=True)
    gone = Observation(fenced.name, Phase.GONE, exists=False)
    assert never_arrived(fenced, gone)
    assert not never_arrived(replace(fenced, nonce="n"), gone)
    assert not never_arrived(replace(fenced, state=A.RUNNING), gone)
    assert not never_arrived(fenced, replace(gone, phase=Phase.EXISTS))
    assert not never_arrived(replace(fenced, fenced=False), gone)


def test_nothing_is_a_change_of_nothing(rows: Rows) -> None:
    unchanged: Change | None = seen(Phase.EXISTS)(view_of(rows))
    assert unchanged is None
