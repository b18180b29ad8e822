"""Jobs for devices: who speaks for them, what waits where, and what ends with a device."""

from __future__ import annotations

from dataclasses import replace

import pytest
from domain_rows import NOW, new_job

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.device_jobs import queued_on, speaker, waiting_on, without_devices
from hatoba_scheduler.domain.records import Cause, Change, Resources, Terms
from hatoba_scheduler.domain.states import AttemptState, JobState, Release
from hatoba_scheduler.domain.transitions import Intent, Outcome, Rows, cancel, ended, hold, launch

DEVICES = ("a", "b", "c")
LOST = Outcome(*causes.judge(Ending(ExitKind.LOST)))


def made(*, held: bool = False) -> Rows:
    """A new job, one task on each."""
    job = replace(new_job(size=3, hold=held), terms=Terms(devices=DEVICES))
    return Rows(job, {}, {})


def after(rows: Rows, change: Change | None) -> Rows:
    """The rows once a change was made."""
    assert change is not None
    tasks = dict(rows.tasks) | {row.index: row for row, _ in change.tasks}
    attempts = dict(rows.attempts) | {row.index: row for row, _ in change.attempts}
    return Rows(change.job, tasks, attempts)


def launched(rows: Rows, index: int) -> Rows:
    """With a task on its device."""
    name, host = f"attempt-{index}", DEVICES[index]
    intent = Intent(index, name, "edge", host, (), Resources(slots=1), True, "0" * 16)
    return after(rows, launch(rows, intent, NOW))


def lost(rows: Rows, index: int) -> Rows:
    """With a task whose attempt was lost and is not proven gone."""
    view = rows.view(index)
    assert view is not None
    return after(rows, ended(view, LOST, NOW))


def revoked(*names: str) -> dict[str, Cause]:
    """These are gone."""
    return {name: causes.device_gone(name, "was revoked") for name in names}


def test_a_device_speaks_under_another_name_than_a_host_that_is_called_so() -> None:
    rows = launched(made(), 1)
    assert speaker(rows.job, rows.attempts[1]) == "devices/b"
    plain = replace(rows.job, terms=Terms())
    assert speaker(plain, rows.attempts[1]) == "b"


def test_each_device_has_something_to_do_until_its_task_is_over_and_gone() -> None:
    rows = made()
    assert sorted(waiting_on(rows)) == ["a", "b", "c"]
    rows = launched(rows, 0)
    assert sorted(waiting_on(rows)) == ["a", "b", "c"]
    assert list(queued_on(rows)) == ["b", "c"]
    rows = lost(rows, 0)
    assert sorted(queued_on(rows)) == ["a", "b", "c"]
    rows = after(rows, cancel(rows, causes.cancelled("ann", ""), NOW))
    # What was lost and not proven gone may be running there.
    assert list(waiting_on(rows)) == ["a"]


def test_who_is_held_back_keeps_no_device_awake() -> None:
    assert list(waiting_on(made(held=True))) == []


def test_what_waits_for_a_device_that_is_gone_fails_and_the_others_go_on() -> None:
    rows = made()
    rows = after(rows, without_devices(rows, revoked("b").get, NOW))
    assert rows.tasks[1].state is JobState.FAILED
    assert rows.tasks[1].cause == causes.device_gone("b", "was revoked")
    assert list(rows.job.unstarted) == [0, 2]
    assert rows.job.state is JobState.QUEUED
    assert without_devices(Rows(rows.job, {}, {}), revoked("b").get, NOW) is None


def test_what_runs_on_it_is_lost_without_another_try() -> None:
    rows = launched(made(), 1)
    change = without_devices(rows, revoked("b").get, NOW)
    rows = after(rows, change)
    assert rows.attempts[1].state is AttemptState.LOST
    assert rows.attempts[1].release is Release.RELEASED
    assert rows.tasks[1].state is JobState.FAILED


def test_what_waits_for_its_next_attempt_fails_and_then_holds_nothing() -> None:
    rows = lost(launched(made(), 1), 1)
    assert rows.tasks[1].state is JobState.QUEUED
    rows = after(rows, without_devices(rows, revoked("b").get, NOW))
    assert rows.tasks[1].state is JobState.FAILED
    assert rows.attempts[1].release is Release.RELEASING
    rows = after(rows, without_devices(rows, revoked("b").get, NOW))
    assert rows.attempts[1].release is Release.RELEASED


def test_all_of_a_job_may_end_with_its_devices() -> None:
    rows = launched(made(), 0)
    rows = after(rows, without_devices(rows, revoked(*DEVICES).get, NOW))
    assert rows.job.state is JobState.FAILED
    assert rows.job.cause == causes.device_gone("a", "was revoked")


@pytest.mark.parametrize("held", [True, False])
def test_what_is_held_is_left_until_it_is_let_go(held: bool) -> None:
    rows = made(held=True)
    if not held:
        rows = after(rows, hold(rows, False, NOW))
    change = without_devices(rows, revoked("a").get, NOW)
    assert (change is None) is held
