"""What the benchmark says of its figures, and how it measures in turn."""

from __future__ import annotations

import json
from pathlib import Path

import bench_load
import pytest
from bench_report import Measured, table, write
from bench_statistics import abba, percentile

KEYS = ["figure", "value", "unit", "floor", "ratio", "goal", "holds"]


def test_goals_are_held_to_what_they_speak_of() -> None:
    measured = Measured("calls", 600.0, "calls/s", 1000.0)
    assert measured.share_of_floor(0.6).holds
    assert not measured.share_of_floor(0.61).holds
    assert measured.at_least(600).holds
    assert not measured.at_least(601).holds
    assert measured.at_most(600).holds
    assert not measured.at_most(599).holds
    assert measured.at_most_times_floor(0.6).holds
    assert not measured.at_most_times_floor(0.59).holds
    late = Measured("latency", 20.0, "ms", 6.0)
    assert late.at_most_over_floor(14).holds
    assert not late.at_most_over_floor(13).holds


def test_a_share_needs_a_floor() -> None:
    with pytest.raises(AssertionError, match="no floor"):
        Measured("calls", 600.0, "calls/s").share_of_floor(0.6)


def test_the_file_is_a_list_of_figures(tmp_path: Path) -> None:
    out = tmp_path / "build" / "bench.json"
    figures = [
        Measured("calls", 612.34567, "calls/s", 1000.0).share_of_floor(0.6),
        Measured("memory", 151.0, "MiB").at_most(150),
    ]
    write(figures, out)
    kept = json.loads(out.read_text())
    assert [list(one) for one in kept] == [KEYS, KEYS]
    assert kept[0] == {
        "figure": "calls",
        "value": 612.346,
        "unit": "calls/s",
        "floor": 1000.0,
        "ratio": 0.612,
        "goal": "ratio >= 0.6",
        "holds": True,
    }
    assert (kept[1]["floor"], kept[1]["ratio"], kept[1]["holds"]) == (None, None, False)


def test_the_table_has_a_line_for_each_with_its_floor() -> None:
    lines = table(
        [
            Measured("calls", 12345.6, "calls/s", 20000.0).at_least(13_000),
            Measured("memory", 93.06, "MiB").at_most(150),
        ]
    ).splitlines()
    assert lines[0].split() == KEYS
    assert lines[1].split() == [
        "calls",
        "12,346",
        "calls/s",
        "20,000",
        "0.617",
        ">=",
        "13,000",
        "NO",
    ]
    assert lines[2].split() == ["memory", "93.1", "MiB", "-", "-", "<=", "150", "yes"]


def test_turns_alternate_so_that_a_drift_meets_both_alike() -> None:
    assert abba(5) == "ABBAABBAAB"


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.5, 2.0), (0.51, 3.0), (0.75, 3.0), (1.0, 4.0)]
)
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert percentile([3.0, 1.0, 4.0, 2.0], share) == value


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_message_is_framed_with_its_length() -> None:
    assert bench_load.framed(b"abc") == b"\x00\x00\x00\x00\x03abc"
    assert bench_load.framed(b"x" * 300)[:5] == b"\x00\x00\x00\x01\x2c"


H2LOAD = """
finished in 1.26s, 1587.35 req/s, 1.06MB/s
requests: 2000 total, 2000 started, {done} done, {good} succeeded, 0 failed, 0 errored, 0 timeout
"""


def test_the_rate_is_what_h2load_printed() -> None:
    assert bench_load.rate_of(H2LOAD.format(done=2000, good=2000), 2000) == 1587.35


@pytest.mark.parametrize(("done", "good"), [(1999, 1999), (2000, 1999)])
def test_calls_without_an_answer_are_no_rate(done: int, good: int) -> None:
    with pytest.raises(RuntimeError, match="did not get 2000 answers"):
        bench_load.rate_of(H2LOAD.format(done=done, good=good), 2000)
