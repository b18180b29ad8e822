"""What Batch says of jobs, against what it means: payloads as they were seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hatoba_plugins.backends.batch_spot.states import STATUSES, log_stream, phase_of, seen
from hatoba_plugins.values import ExitKind, Phase

CORPUS = sorted((Path(__file__).parents[2] / "corpus" / "batch_spot").glob("*.json"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_each_payload_means_what_it_should(path: Path) -> None:
    case: dict[str, Any] = json.loads(path.read_text())
    told, expected = seen("h1-aa-0-1", case["job"]), case["expect"]
    assert case["_source"]
    assert told.phase.name == expected["phase"]
    assert (told.exit is not None) == ("exit" in expected)
    if told.exit is None:
        return
    wanted = expected["exit"]
    assert told.exit.kind.name == wanted["kind"], told.exit
    assert (told.exit.code, told.exit.signal) == (wanted.get("code", 0), wanted.get("signal", 0))


def test_the_corpus_is_large_enough_and_covers_every_kind() -> None:
    kinds = {json.loads(path.read_text())["expect"].get("exit", {}).get("kind") for path in CORPUS}
    assert len(CORPUS) >= 25
    assert kinds >= {kind.name for kind in ExitKind if kind not in NOT_BATCHS}


NOT_BATCHS = {ExitKind.LOST, ExitKind.DEVICE_FAULT}
"""A job that Batch does not know is GONE, and of GPUs that fail it says nothing."""


def test_every_status_has_a_phase() -> None:
    phases = [phase_of(status) for status in STATUSES]
    assert Phase.EXISTS not in phases
    assert phases == sorted(phases)


def test_what_said_why_is_kept() -> None:
    case = json.loads(CORPUS[[path.stem for path in CORPUS].index("image_missing")].read_text())
    told = seen("h1-aa-0-1", case["job"]).exit
    assert told is not None
    assert "manifest unknown" in told.message


def test_the_log_stream_is_the_newest_attempts() -> None:
    first = {"container": {"logStreamName": "a"}}
    newest = {"container": {"logStreamName": "b"}}
    assert log_stream({"attempts": [first, newest]}) == "b"
    assert log_stream({"attempts": [], "container": {"logStreamName": "c"}}) == "c"
    assert log_stream({"attempts": [{"container": {}}]}) == ""
