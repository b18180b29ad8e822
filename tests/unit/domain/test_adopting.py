"""Attaching what runs to a store that knows less: what becomes of each task, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from domain_rows import CANCEL, NOW, after, intent, launched_rows, new_job, rows_of

from hatoba_scheduler.domain.adopting import Stray, attached, why_not
from hatoba_scheduler.domain.records import Terms
from hatoba_scheduler.domain.states import AttemptState, JobState, Release
from hatoba_scheduler.domain.transitions import Outcome, Rows, cancel, ended, launch


def stray(number: int = 1, **fields: object) -> Stray:
    known = Stray(
        name=f"h1-job-1-0-{number}",
        backend="mock",
        index=0,
        number=number,
        handle=b"1:where",
        fenced=True,
        span_id="c" * 16,
        host="pool",
    )
    return replace(known, **fields)  # type: ignore[arg-type]


def test_a_job_that_the_store_takes_for_queued_has_its_attempt_again() -> None:
    rows = after(rows_of(new_job()), attached(rows_of(new_job()), stray(3), NOW))
    task, attempt = rows.tasks[0], rows.attempts[0]
    assert rows.job.state is task.state is JobState.LAUNCHING
    assert (task.attempt, attempt.number, attempt.fence) == (3, 3, 3)
    assert (attempt.name, attempt.handle, attempt.host) == ("h1-job-1-0-3", b"1:where", "pool")
    assert (attempt.backend, rows.job.backend) == ("mock", "mock")
    assert attempt.release is Release.HELD


def test_a_claim_that_is_known_is_held_so_that_its_commit_counts() -> None:
    rows = after(rows_of(new_job()), attached(rows_of(new_job()), stray(nonce="n" * 16), NOW))
    assert rows.attempts[0].nonce == "n" * 16
    assert rows.attempts[0].state is AttemptState.STARTING


def test_an_attempt_that_was_under_way_before_it_is_over() -> None:
    before = launched_rows(new_job())
    rows = after(before, attached(before, stray(2), NOW))
    assert rows.attempts[0].number == 2
    assert rows.tasks[0].attempt == 2
    assert rows.tasks[0].infrastructure_failures == 0


def test_what_the_store_has_gets_the_handle_and_the_claim_that_it_lacks() -> None:
    before = launched_rows(new_job())
    rows = after(before, attached(before, stray(nonce="n" * 16), NOW))
    assert (rows.attempts[0].handle, rows.attempts[0].nonce) == (b"1:where", "n" * 16)
    assert attached(rows, stray(nonce="n" * 16), NOW) is None


def test_a_gang_goes_on_in_the_generation_that_runs() -> None:
    job = replace(new_job(size=2), terms=Terms(gang=True), generation=1)
    rows = after(rows_of(job), attached(rows_of(job), stray(2), NOW))
    assert (rows.job.generation, rows.attempts[0].generation) == (2, 2)


def ended_rows() -> Rows:
    rows = launched_rows(new_job())
    view = rows.view(0)
    assert view is not None
    return after(rows, ended(view, Outcome(AttemptState.SUCCEEDED, None, gone=True), NOW))


def second_attempt() -> Rows:
    rows = launched_rows(new_job())
    view = rows.view(0)
    assert view is not None
    lost = Outcome(AttemptState.REFUSED, CANCEL, gone=True, charged=False)
    rows = after(rows, ended(view, lost, NOW))
    return after(rows, launch(rows, intent(rows), NOW))


REFUSED = {
    "a job that is over": (ended_rows(), stray(2), "over in this store"),
    "a cancelled job": (
        after(rows_of(new_job()), cancel(rows_of(new_job()), CANCEL, NOW)),
        stray(),
        "over in this store",
    ),
    "a held job": (rows_of(new_job(hold=True)), stray(), "is HELD in this store"),
    "no such task": (rows_of(new_job()), stray(index=4), "has no task 4"),
    "an earlier attempt": (second_attempt(), stray(1), "attempt 2 of job job-1-n came after it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_changes_nothing_and_says_why(case: str) -> None:
    rows, one, words = REFUSED[case]
    assert words in why_not(rows, one)
    assert attached(rows, one, NOW) is None
