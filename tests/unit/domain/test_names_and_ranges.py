"""Resource names, external names, and sets of indices."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatoba_scheduler.domain.naming import (
    JobRef,
    QueueRef,
    attempt_name,
    job_name,
    parse_job,
    parse_queue,
    queue_name,
)
from hatoba_scheduler.domain.ranges import Ranges, read_ranges

UID = "01976f3e-5a00-7abc-8def-0123456789ab"


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        (UID, JobRef(UID, "", "")),
        ("digits-42", JobRef("", "default", "digits-42")),
        ("projects/vision/jobs/digits-42", JobRef("", "vision", "digits-42")),
        ("", None),
        ("Digits-42", None),
        ("-digits", None),
        ("digits-42\n", None),
        ("../digits", None),
        ("projects/vision/queues/digits-42", None),
        ("projects//jobs/digits-42", None),
        ("projects/vision/jobs/digits-42/tasks/1", None),
        ("x" * 64, None),
    ],
)
def test_jobs_are_named_by_uid_full_or_short_name(text: str, ref: JobRef | None) -> None:
    assert parse_job(text) == ref


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("night", QueueRef("default", "night")),
        ("projects/vision/queues/night", QueueRef("vision", "night")),
        ("projects/vision/jobs/night", None),
        ("night shift", None),
    ],
)
def test_queues_are_named_by_full_or_short_name(text: str, ref: QueueRef | None) -> None:
    assert parse_queue(text) == ref


def test_what_is_written_can_be_read() -> None:
    assert parse_job(job_name("vision", "digits-1")) == JobRef("", "vision", "digits-1")
    assert parse_queue(queue_name("vision", "night")) == QueueRef("vision", "night")


def test_an_external_name_fits_every_backend_and_names_one_attempt() -> None:
    name = attempt_name(99, UID, 999_999, 1_000)
    assert re.fullmatch(r"[a-z0-9-]{1,63}", name)
    others = [
        attempt_name(98, UID, 999_999, 1_000),
        attempt_name(99, UID, 99_999, 1_000),
        attempt_name(99, UID, 999_999, 1_001),
    ]
    assert name not in others


@given(removed=st.lists(st.integers(0, 62)), size=st.integers(0, 60))
def test_ranges_are_sets(removed: list[int], size: int) -> None:
    ranges, expected = Ranges.upto(size), set(range(size))
    for index in removed:
        ranges = ranges.without(index)
        expected.discard(index)
    assert list(ranges) == sorted(expected)
    assert (len(ranges), bool(ranges)) == (len(expected), bool(expected))
    assert {index for index in range(62) if index in ranges} == expected
    assert Ranges.parse(str(ranges)) == ranges
    if expected:
        assert ranges.first == min(expected)


RUNS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6)


@given(one=RUNS, other=RUNS)
def test_sets_of_ranges_are_joined_and_parted(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    mine, theirs = Ranges.of(one), Ranges.of(other)
    a, b = set(mine), set(theirs)
    assert a == {index for start, stop in one for index in range(start, stop)}
    for ranges, expected in (
        (mine.union(theirs), a | b),
        (mine.common(theirs), a & b),
        (mine.less(theirs), a - b),
    ):
        assert list(ranges) == sorted(expected)
        assert ranges == Ranges.of(ranges.runs)


def test_indices_as_people_write_them() -> None:
    assert str(read_ranges("7, 0-2,2-4", 10)) == "0-4,7"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4-0", "4-0 is upside down; write 0-4"),
        ("0-10", "10 is outside: the indices are 0 to 9"),
        ("", "'' is no index or range"),
        ("1,,2", "'' is no index or range"),
        ("-5", "'-5' is no index or range"),
        ("1-2-3", "'1-2-3' is no index or range"),
        ("\u0661", "is no index or range"),
        ("9" * 5000, "is no index or range"),
    ],
)
def test_bad_indices_are_named_with_what_to_write(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_ranges(text, 10)


def test_a_million_cost_what_one_costs() -> None:
    ranges = Ranges.upto(1_000_000)
    assert (str(ranges), len(ranges.runs)) == ("0-999999", 1)
    assert str(ranges.without(0).without(7)) == "1-6,8-999999"


@pytest.mark.parametrize("text", ["a", "1-b", "1,,2", "-5", "1-2-3"])
def test_what_is_no_set_of_indices_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        Ranges.parse(text)


def test_nothing_has_no_first() -> None:
    with pytest.raises(IndexError):
        _ = Ranges().first
