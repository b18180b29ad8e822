"""Which hosts are left alone, for how long, and which are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from domain_rows import launched_rows, new_job

from hatoba_scheduler.domain.blame import Blame, BlameRules, Sentence
from hatoba_scheduler.domain.records import Attempt, Cause, Job
from hatoba_scheduler.domain.states import AttemptState, CauseCode, Origin

RULES = BlameRules(jobs=3, window=60.0, first=10.0, longest=35.0)
SECOND = 1_000_000


def job(number: int, name: str = "") -> Job:
    return replace(new_job(f"uid-{number}"), name=name or f"train{number}-1")


def attempt(
    made: Job,
    time: float,
    code: CauseCode | None = CauseCode.DEVICE_FAULT,
    *,
    host: str = "bad",
    state: AttemptState = AttemptState.FAILED,
) -> Attempt:
    cause = Cause(code, Origin.INFRASTRUCTURE, "So.", True) if code else None
    row = launched_rows(made).attempts[0]
    return replace(row, host=host, state=state, cause=cause, end_time=round(time * SECOND))


def fail(blame: Blame, number: int, time: float, **fields: object) -> Sentence | None:
    made = job(number)
    return blame.note(made, attempt(made, time, **fields))  # type: ignore[arg-type]


def test_a_host_that_fails_many_different_jobs_is_left_alone() -> None:
    blame = Blame(RULES)
    assert fail(blame, 1, 1) is None
    assert fail(blame, 2, 2) is None
    sentence = fail(blame, 3, 3)
    assert sentence is not None
    assert (sentence.host, sentence.until) == ("bad", 13 * SECOND)
    assert sentence.reason == (
        "3 different jobs failed here within 60 s (DEVICE_FAULT) and none succeeded; "
        "left alone for 10 s."
    )


def test_each_time_in_a_row_it_is_left_alone_longer() -> None:
    blame = Blame(RULES)
    lengths = []
    for turn in range(4):
        start = 100.0 * turn
        sentences = [fail(blame, n + 10 * turn, start + n) for n in range(1, 4)]
        assert sentences[-1] is not None
        lengths.append(sentences[-1].until / SECOND - start - 3)
    assert lengths == [10, 20, 35, 35]


def test_a_success_between_clears_it() -> None:
    blame = Blame(RULES)
    fail(blame, 1, 1)
    fail(blame, 2, 2)
    assert fail(blame, 9, 2.5, code=None, state=AttemptState.SUCCEEDED) is None
    assert fail(blame, 3, 3) is None
    assert fail(blame, 1, 1) is None


def test_one_job_that_fails_often_is_one_job() -> None:
    blame = Blame(RULES)
    assert [fail(blame, 1, time) for time in range(1, 10)] == [None] * 9


def test_failures_far_apart_are_no_sign() -> None:
    blame = Blame(RULES)
    assert [fail(blame, number, 40.0 * number) for number in range(1, 9)] == [None] * 8


def test_hosts_are_told_apart() -> None:
    blame = Blame(RULES)
    found = [fail(blame, number, number, host=f"h{number % 2}") for number in range(1, 5)]
    assert found == [None] * 4


@pytest.mark.parametrize("code", [CauseCode.EXIT_CODE, CauseCode.LOST, CauseCode.HOST_LOST])
def test_what_is_not_its_doing_is_not_held_against_it(code: CauseCode) -> None:
    blame = Blame(RULES)
    assert [fail(blame, number, number, code=code) for number in range(1, 9)] == [None] * 8


@pytest.mark.parametrize(
    ("code", "blamed"), [(CauseCode.ENVIRONMENT_FAILED, False), (CauseCode.DEVICE_FAULT, True)]
)
def test_runs_of_one_job_that_lacks_something_are_one_job(code: CauseCode, blamed: bool) -> None:
    blame = Blame(RULES)
    found = []
    for number in range(1, 4):
        made = job(number, f"sweep-{number}")
        found.append(blame.note(made, attempt(made, number, code)))
    assert (found[-1] is not None) == blamed


def test_what_it_was_left_alone_for_does_not_count_again() -> None:
    blame = Blame(RULES)
    for number in range(1, 4):
        fail(blame, number, number)
    assert [fail(blame, number, number) for number in range(1, 4)] == [None] * 3


def test_what_has_not_ended_says_nothing() -> None:
    blame = Blame(BlameRules(jobs=1))
    assert fail(blame, 1, 1, state=AttemptState.STOPPING) is None
