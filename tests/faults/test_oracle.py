"""The oracle itself: each thing that must not be is seen, and a good round is called good."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fault_oracle import Ask, Evidence, LeftOut, Line, Told, read_lines, violations

ATTEMPT = "h1-0123-0-1"
NEXT = "h1-0123-0-2"
LATER_EPOCH = "h2-0123-0-3"
NAME = "projects/default/jobs/fault-1"


def good() -> Evidence:
    """One job whose first attempt was lost and whose second one succeeded."""
    return Evidence(
        asked={0: Ask(0, frozenset({"SUCCEEDED"}))},
        acknowledged={0: NAME},
        told={NAME: Told(NAME, "SUCCEEDED", 0, (NEXT,))},
        unfinished={},
        lines=[
            Line("start", ATTEMPT, 1.0, 10),
            Line("start", NEXT, 2.0, 11),
            Line("end", NEXT, 3.0, 11),
        ],
        terminal_events=Counter({NAME: 1}),
    )


def with_lines(*lines: Line) -> Evidence:
    return replace(good(), lines=lines)


def left_out(schedule: str, minute: int) -> LeftOut:
    """A restore just before this minute after ten, and its adoption in it."""
    time = dt.datetime(2026, 3, 1, 10, minute, tzinfo=dt.UTC)
    return LeftOut(schedule, time - dt.timedelta(seconds=1), time + dt.timedelta(seconds=9))


def with_runs(*times: str, state: str = "SUCCEEDED") -> Evidence:
    """A schedule's runs, each its own job."""
    days = [f"2026-03-01T{time}:00Z" for time in times]
    runs = {f"run-{place}": ("nightly", day) for place, day in enumerate(days)}
    attempts = {name: f"h1-{name}-0-1" for name in runs}
    told = {name: Told(name, state, 0, (attempts[name],)) for name in runs}
    lines = [
        Line(event, attempt, at, 20)
        for attempt in attempts.values()
        for event, at in (("start", 1.0), ("end", 2.0))
    ]
    return replace(
        good(),
        told={**good().told, **told},
        runs=runs,
        lines=[*good().lines, *lines],
        terminal_events=Counter([NAME, *runs]),
    )


def test_a_good_round_is_called_good() -> None:
    assert violations(good()) == []
    assert violations(with_runs("10:00", "10:01")) == []
    restored = replace(with_runs("10:00", "10:02"), left_out=[left_out("nightly", 1)])
    assert violations(restored) == []


BAD = {
    "a lost job": (replace(good(), told={}, terminal_events=Counter()), "is not there"),
    "an unfinished job": (
        replace(good(), told={}, unfinished={NAME: "QUEUED no room"}),
        "never ended: QUEUED no room",
    ),
    "a wrong end": (
        replace(good(), told={NAME: Told(NAME, "FAILED", 7, (NEXT,))}),
        "ended FAILED 7, not SUCCEEDED",
    ),
    "one request, two jobs": (
        replace(good(), unfinished={"projects/default/jobs/fault-2": "RUNNING"}),
        "fault-2 is a job nobody asked for",
    ),
    "two requests, one job": (
        replace(
            good(), asked={**good().asked, 1: good().asked[0]}, acknowledged={0: NAME, 1: NAME}
        ),
        "was given to 2 requests",
    ),
    "another name when repeated": (replace(good(), renamed=["a became b"]), "a became b"),
    "two starts of an attempt": (
        with_lines(*good().lines, Line("start", ATTEMPT, 1.1, 12)),
        f"{ATTEMPT} started 2 times",
    ),
    "an attempt beside another": (
        with_lines(*good().lines, Line("overlap", NEXT, 2.0, 11)),
        f"{NEXT} started at 2.000 beside an earlier attempt",
    ),
    "an attempt that ended late": (
        with_lines(*good().lines, Line("end", ATTEMPT, 2.5, 10)),
        "0123-0-2 started before 0123-0-1 ended",
    ),
    "an attempt that is still there": (
        with_lines(*good().lines, Line("beat", ATTEMPT, 2.5, 10)),
        "0123-0-2 started before 0123-0-1 ended",
    ),
    "success that never ran": (with_lines(*good().lines[:2]), "wrote no end"),
    "an array of which a task never ran": (
        replace(good(), asked={0: Ask(0, frozenset({"SUCCEEDED"}), tasks=2)}),
        "is told SUCCEEDED after 1 tasks ran",
    ),
    "an attempt of another epoch beside another": (
        with_lines(
            *good().lines, Line("end", ATTEMPT, 3.5, 10), Line("start", LATER_EPOCH, 3.2, 12)
        ),
        "0123-0-3 started before 0123-0-1 ended",
    ),
    "a schedule that ran twice": (with_runs("10:00", "10:00"), "ran 2 times for"),
    "a schedule that left out more than a restore lets pass": (
        replace(with_runs("10:00", "10:03"), left_out=[left_out("nightly", 1)]),
        "ran for 2 of 3 minutes",
    ),
    "another schedule that left a minute out": (
        replace(with_runs("10:00", "10:02"), left_out=[left_out("hourly", 1)]),
        "ran for 2 of 3 minutes",
    ),
    "a schedule that left a minute out": (with_runs("10:00", "10:02"), "ran for 2 of 3 minutes"),
    "a schedule's run that failed": (
        with_runs("10:00", state="FAILED"),
        "of a schedule ended FAILED",
    ),
    "a run on the mock that was let be": (replace(good(), objects=[ATTEMPT]), "still has h1-0123"),
    "two terminal events": (
        replace(good(), terminal_events=Counter({NAME: 2})),
        "has 2 terminal events",
    ),
    "a gap among the events": (replace(good(), gaps=["event 9 came after 7"]), "9 came after 7"),
    "a process left": (replace(good(), processes=["77: witness"]), "process left: 77: witness"),
    "resources still held": (replace(good(), held=2), "2 attempts still hold resources"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_must_not_be_is_seen(case: str) -> None:
    evidence, words = BAD[case]
    assert any(words in found for found in violations(evidence)), violations(evidence)


def test_without_witnesses_no_lines_are_expected() -> None:
    assert violations(with_lines(), witnessed=False) == []


def test_a_line_torn_by_a_kill_is_none(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.write_text(f"start {ATTEMPT} 1.5 7\nend {ATTEMPT} 2.")
    assert read_lines(ledger) == [Line("start", ATTEMPT, 1.5, 7)]
