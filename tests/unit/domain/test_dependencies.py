"""What the ends of others make of a job that waits, in whatever ways."""

from __future__ import annotations

import pytest
from domain_rows import NOW, after, new_job, rows_of
from hypothesis import given
from hypothesis import strategies as st

from hatoba_scheduler.domain.dependencies import Upstream, upstream_ended, waits_for
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.domain.transitions import Rows, hold

J = JobState
ENDS = [J.SUCCEEDED, J.FAILED, J.CANCELLED, J.TIMED_OUT, J.UPSTREAM_FAILED]
UIDS = ("a", "b", "c", "d")
SOME = st.lists(st.sampled_from(UIDS), unique=True, max_size=4).map(tuple)


def end(rows: Rows, uid: str, state: JobState) -> Rows:
    """The rows after a job ended, which may not concern them."""
    change = upstream_ended(rows, Upstream(uid, f"{uid}-1", state), NOW)
    return rows if change is None else after(rows, change)


def test_an_end_counts_only_for_those_that_wait_for_it() -> None:
    for rows in (rows_of(new_job()), rows_of(new_job(blocked_on=("other",)))):
        assert upstream_ended(rows, Upstream("up", "up-1", J.FAILED), NOW) is None


@pytest.mark.parametrize("held", [False, True])
def test_a_failed_upstream_ends_what_waits_for_it(held: bool) -> None:
    rows = end(rows_of(new_job(hold=held, blocked_on=("up", "other"))), "up", J.TIMED_OUT)
    assert rows.job.state is J.UPSTREAM_FAILED
    assert rows.job.cause is not None
    assert rows.job.cause.message == "up-1, which it depends on, ended TIMED_OUT."


def test_held_and_blocked_it_waits_for_both() -> None:
    rows = end(rows_of(new_job(hold=True, blocked_on=("a", "b"))), "a", J.SUCCEEDED)
    rows = after(rows, hold(rows, False, NOW))
    assert rows.job.state is J.BLOCKED
    rows = after(rows, hold(rows, True, NOW))
    rows = end(rows, "b", J.SUCCEEDED)
    assert rows.job.state is J.HELD
    rows = after(rows, hold(rows, False, NOW))
    assert rows.job.state is J.QUEUED


def test_each_end_is_told_with_what_is_left() -> None:
    rows = rows_of(new_job(blocked_on=("a", "b")))
    change = upstream_ended(rows, Upstream("a", "a-1", J.SUCCEEDED), NOW)
    assert change is not None
    assert change.events[0].note == "a-1 ended SUCCEEDED; 1 more to wait for."


@given(SOME, SOME, SOME, st.permutations(UIDS), st.lists(st.sampled_from(ENDS), min_size=4))
def test_it_runs_exactly_when_all_that_was_asked_for_has_happened(
    ok: tuple[str, ...],
    one: tuple[str, ...],
    over: tuple[str, ...],
    order: list[str],
    ends: list[JobState],
) -> None:
    rows = rows_of(new_job(blocked_on=ok, blocked_any=one, blocked_end=over))
    known: dict[str, JobState] = {}
    for uid, state in zip(order, ends, strict=False):
        if rows.job.state.terminal:
            break
        rows = end(rows, uid, state)
        assert end(rows, uid, state) is rows, "twice is once"
        known[uid] = state
        good = {name for name, found in known.items() if found is J.SUCCEEDED}
        never = bool((known.keys() & set(ok)) - good)
        never = never or bool(one and set(one) <= known.keys() and not good & set(one))
        met = set(ok) <= good and (not one or bool(good & set(one))) and set(over) <= known.keys()
        wanted = J.UPSTREAM_FAILED if never else J.QUEUED if met else J.BLOCKED
        assert rows.job.state is wanted


@pytest.mark.parametrize(
    ("ok", "one", "over", "words"),
    [
        ((), (), (), ""),
        (("a",), (), (), "Waits for a-1 to succeed."),
        (("a", "b"), (), (), "Waits for a-1 and b-1 to succeed."),
        ((), ("a", "b", "c"), (), "Waits for one of a-1, b-1 and c-1 to succeed."),
        (("a",), ("b", "x"), ("d",), None),
        (tuple("abcdefg"), (), (), "Waits for a-1, b-1, c-1, d-1, e and 2 more to succeed."),
    ],
)
def test_words(
    ok: tuple[str, ...], one: tuple[str, ...], over: tuple[str, ...], words: str | None
) -> None:
    names = {uid: f"{uid}-1" for uid in UIDS}
    job = new_job(blocked_on=ok, blocked_any=one, blocked_end=over)
    told = "Waits for a-1 to succeed, and for one of b-1 and x to succeed, and for d-1 to end."
    assert waits_for(job, names) == (told if words is None else words)
