"""Where an agent is to stand still is in a file, which counts only for who looks for faults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from hatoba_worker.agent.failpoints import VARIABLE, Pointed, passing


def test_a_point_that_the_file_names_is_where_it_stops(tmp_path: Path) -> None:
    path, stopped = tmp_path / "points", []
    pointed = Pointed(path, lambda: stopped.append(path.read_text()))
    pointed("journal.good.before")
    path.write_text("journal.bad.after\njournal.good.before\n")
    pointed("journal.good.after")
    assert stopped == []
    pointed("journal.good.before")
    assert len(stopped) == 1


@pytest.mark.parametrize(
    ("environ", "counts"),
    [
        ({}, False),
        ({VARIABLE: "/points"}, False),
        ({VARIABLE: "/points", "HATOBA_DEBUG": ""}, False),
        ({"HATOBA_DEBUG": "1"}, False),
        ({VARIABLE: "/points", "HATOBA_DEBUG": "1"}, True),
    ],
)
def test_only_who_looks_for_faults_has_points(environ: Mapping[str, str], counts: bool) -> None:
    assert isinstance(passing(environ), Pointed) is counts
