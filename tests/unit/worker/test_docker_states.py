"""What an engine says of containers and images, against what it means: payloads as they were seen.

Each file of `tests/corpus/docker` says where it comes from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hatoba.v1 import job_pb2, runner_pb2, worker_pb2
from hatoba_worker import exits
from hatoba_worker.attempts import Attempt
from hatoba_worker.executors.containers import states
from hatoba_worker.keeper.messages import AttemptStatus

CORPUS = Path(__file__).parents[2] / "corpus" / "docker"
PAYLOADS = {path.stem: json.loads(path.read_text()) for path in sorted(CORPUS.glob("*.json"))}


def of(key: str) -> list[Any]:
    """Payloads that have such a part."""
    return [pytest.param(one, id=name) for name, one in PAYLOADS.items() if key in one]


def ending(status: AttemptStatus, told: states.Told) -> exits.Ending:
    """What the worker commits of it."""
    environment = job_pb2.Environment(image="busybox")
    launch = worker_pb2.LaunchAttempt(attempt="a-1", environment=environment)
    attempt = Attempt(launch, "nonce", "/home", 0)
    attempt.why = "stop" if told.asked else None
    return exits.of_exit(attempt, status.exit)


@pytest.mark.parametrize("payload", of("inspection"))
def test_a_container(payload: dict[str, Any]) -> None:
    seen, expected = payload["inspection"], payload["expect"]
    told = states.Told(**payload.get("told", {}))
    assert _state(seen) == expected["state"]
    if expected["state"] == "never_ran":
        return
    status = states.status_of("a-1", seen, told)
    assert status.started_at > 1e9
    assert status.limit_by == expected.get("limit_by", status.limit_by)
    if "published" in expected:
        assert bool(states.published(seen)) is expected["published"]
    if expected["state"] == "over":
        found = ending(status, told)
        kind = runner_pb2.ExitKind.Name(found.kind).removeprefix("EXIT_KIND_")
        assert kind == expected["kind"]
        assert found.exit_code == expected.get("exit_code", found.exit_code)
        assert found.signal == expected.get("signal", found.signal)
    assert status.gone is (expected["state"] == "over")


def _state(seen: dict[str, Any]) -> str:
    if states.never_ran(seen):
        return "never_ran"
    return "over" if states.is_over(seen) else "running"


@pytest.mark.parametrize("payload", of("refusal"))
def test_a_pull_that_failed(payload: dict[str, Any]) -> None:
    refusal = payload["refusal"]
    assert states.fault_of(refusal["status"], refusal["message"]) == payload["expect"]["fault"]


@pytest.mark.parametrize("payload", of("start"))
def test_a_start_that_failed(payload: dict[str, Any]) -> None:
    assert states.of_start(payload["start"]) == payload["expect"]["failure"]


def test_each_says_where_it_comes_from() -> None:
    assert len(PAYLOADS) >= 25
    assert all(one["_source"] for one in PAYLOADS.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0001-01-01T00:00:00Z", 0.0),
        ("1970-01-01T00:00:01.5Z", 1.5),
        ("1970-01-01T01:00:00.250000000+01:00", 0.25),
    ],
)
def test_times(text: str, expected: float) -> None:
    assert states.seconds(text) == expected


def test_while_the_engine_was_away_a_kill_is_nobodys_own() -> None:
    seen = PAYLOADS["killed-by-us"]["inspection"]
    assert states.exit_of(seen, states.Told()) is not None
    assert states.exit_of(seen, states.Told(away=True)) is None
    assert states.exit_of(PAYLOADS["exited-3"]["inspection"], states.Told(away=True)) is not None
