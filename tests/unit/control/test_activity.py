"""Rates, transitions and what is odd now, as commits tell of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from domain_rows import NOW, new_job

from hatoba_scheduler.control.activity import SPAN_SECONDS, SPANS, Activity, Transition
from hatoba_scheduler.control.counts import OwnerKey
from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.domain.records import Attempt, AttemptWrite, Change, Event, Job
from hatoba_scheduler.domain.states import AttemptState, JobState, Release
from hatoba_scheduler.domain.transitions import Rows, submitted

KEY = ("default", "gpu")


@dataclass
class Hands:
    """A clock that is moved by hand."""

    now: float = 100.0

    def time(self) -> float:
        return self.now

    monotonic = time

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody sleeps here")


def event(before: JobState, after: JobState, reason: str = "step") -> Event:
    first = replace(submitted(new_job(), NOW), project="default", queue="gpu", attempt=1)
    moved = {"from_state": before, "to_state": after, "reason": reason}
    return replace(first, index=None if reason == "submit" else 0, **moved)  # type: ignore[arg-type]


def told(activity: Activity, *events: Event) -> None:
    activity.on_commit([], events)


def commit(before: Job | None, job: Job, *attempts: Attempt) -> Commit:
    writes = tuple(AttemptWrite(attempt, 0) for attempt in attempts)
    return Commit(before, Change(job, 0, attempts=writes), Rows(job, {}, {}))


def test_rates_are_a_minute_over_the_last_five_and_by_queue() -> None:
    clock = Hands()
    activity = Activity(clock)
    told(activity, event(JobState.QUEUED, JobState.QUEUED, "submit"))
    told(activity, event(JobState.STARTING, JobState.RUNNING))
    clock.now += 60
    told(activity, event(JobState.RUNNING, JobState.SUCCEEDED))
    assert activity.rates(KEY) == (1.0, 1.0, 1.0)
    assert activity.rates() == activity.rates(KEY)
    assert activity.rates(("default", "other")) == (0.0, 0.0, 0.0)
    clock.now += SPANS * SPAN_SECONDS + 1
    assert activity.rates() == (0.0, 0.0, 0.0)


def test_transitions_retries_and_preemptions_are_counted() -> None:
    activity = Activity(Hands())
    told(
        activity,
        event(JobState.STARTING, JobState.RUNNING),
        event(JobState.RUNNING, JobState.STOPPING, "preempt"),
        event(JobState.STOPPING, JobState.QUEUED, "retry"),
        event(JobState.QUEUED, JobState.QUEUED, "priority"),
    )
    assert activity.transitions[Transition("STARTING", "RUNNING", "")] == 1
    assert sum(activity.transitions.values()) == 3
    assert (activity.preemptions, sum(activity.retries.values())) == (1, 1)


def test_who_has_what_under_way() -> None:
    activity, waiting = Activity(Hands()), replace(new_job(), created_by="ada")
    runs = replace(waiting, state=JobState.RUNNING)
    moved = replace(runs, queue="other")
    over = replace(moved, state=JobState.SUCCEEDED)
    activity.on_commit([commit(None, waiting)], [])
    assert not activity.running
    activity.on_commit([commit(waiting, runs)], [])
    assert activity.running == {OwnerKey("default", "default", "ada"): 1}
    activity.on_commit([commit(runs, moved)], [])
    assert activity.running == {OwnerKey("default", "other", "ada"): 1}
    activity.on_commit([commit(moved, over)], [])
    assert not activity.running


def test_attempts_out_of_reach_and_not_let_go() -> None:
    activity, job = Activity(Hands()), new_job()
    attempt = Attempt(
        "a", job.uid, 0, 1, 1, "null", "", (), AttemptState.RUNNING, 1, Release.HELD, True, "", 1
    )
    away = replace(attempt, unknown_since=5)
    ended = replace(away, state=AttemptState.LOST, release=Release.RELEASING)
    free = replace(ended, release=Release.RELEASED)
    seen = []
    for one in (attempt, away, ended, free):
        activity.on_commit([commit(job, job, one)], [])
        seen.append((len(activity.unknown), len(activity.releasing)))
    assert seen == [(0, 0), (1, 0), (0, 1), (0, 0)]
