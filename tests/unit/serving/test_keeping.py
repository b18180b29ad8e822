"""What a model server keeps of predictions where no router stands before it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from hatoba.handlers import Payload
from hatoba_worker.serving.answering import Outcome, Question
from hatoba_worker.serving.config import MOST_BODY, Keep
from hatoba_worker.serving.keeping import MOST_FILE, Keeping

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ANSWER = Outcome(200, Payload(b"[7]", "application/json"))


def asked(body: bytes = b"[1]", trace: str = "") -> Question:
    return Question(Payload(body, "application/json"), trace)


class Kept:
    """A file, and what keeps there."""

    def __init__(self, directory: Path, rate: float) -> None:
        self.path = directory / "kept.jsonl"
        self.keeping = Keeping(Keep(self.path, rate, 3), Random(1))

    @property
    def lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def test_what_is_drawn_is_kept_with_what_was_asked_and_answered(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 1.0)
    trace_id = kept.keeping.note(asked(), ANSWER, 0.25)
    (line,) = kept.lines
    assert line["trace_id"] == trace_id
    assert (line["revision"], line["status"], line["seconds"], line["parent"]) == (3, 200, 0.25, "")
    assert base64.b64decode(line["input"]) == b"[1]"
    assert base64.b64decode(line["prediction"]) == b"[7]"
    assert line["media_type"] == line["prediction_media_type"] == "application/json"


def test_what_its_caller_has_traced_is_kept_without_bodies(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 0.0)
    assert kept.keeping.note(asked(trace=f"00-{TRACE}-{SPAN}-01"), ANSWER, 0.1) == TRACE
    (line,) = kept.lines
    assert (line["trace_id"], line["parent"]) == (TRACE, SPAN)
    assert "input" not in line


@pytest.mark.parametrize("trace", ["", f"00-{TRACE}-{SPAN}-00", "nonsense", f"00-{TRACE}-{SPAN}"])
def test_what_is_neither_leaves_nothing(tmp_path: Path, trace: str) -> None:
    kept = Kept(tmp_path, 0.0)
    assert kept.keeping.note(asked(trace=trace), ANSWER, 0.1) == ""
    assert not kept.path.exists()


def test_a_share_of_requests_is_drawn(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 0.25)
    for _ in range(400):
        kept.keeping.note(asked(), ANSWER, 0.0)
    assert 60 <= len(kept.lines) <= 140


@pytest.mark.parametrize(
    ("question", "outcome"),
    [
        (asked(), Outcome(500, Payload(b"{}", "application/json"))),
        (asked(b"x" * MOST_BODY), ANSWER),
    ],
    ids=["refused", "large"],
)
def test_what_failed_or_is_large_is_not_captured(
    tmp_path: Path, question: Question, outcome: Outcome
) -> None:
    kept = Kept(tmp_path, 1.0)
    assert kept.keeping.note(question, outcome, 0.0) == ""
    traced = question._replace(trace=f"00-{TRACE}-{SPAN}-01")
    assert kept.keeping.note(traced, outcome, 0.0) == TRACE
    assert "input" not in kept.lines[0]


def test_a_file_that_nobody_takes_away_is_bounded(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 1.0)
    large = asked(b"x" * (100 << 10))
    noted = [kept.keeping.note(large, ANSWER, 0.0) for _ in range(60)]
    assert kept.path.stat().st_size < MOST_FILE + (200 << 10)
    assert noted[0]
    assert noted[-1] == ""
    kept.path.unlink()
    assert kept.keeping.note(large, ANSWER, 0.0)


def test_a_disk_that_takes_nothing_ends_nothing(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "nowhere", 1.0)
    assert kept.keeping.note(asked(), ANSWER, 0.0) == ""
