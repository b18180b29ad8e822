"""What ECS has said, and what it means: each file names where its words are from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hatoba.v1 import common_pb2
from hatoba_plugins import errors
from hatoba_plugins.backends.ecs.services import trouble, verdict
from hatoba_plugins.backends.ecs.states import observation_of, refusal, replica_cause
from hatoba_plugins.values import Exit, ExitKind, Phase

CORPUS = Path(__file__).resolve().parents[2] / "corpus" / "ecs"


def _payloads(kind: str) -> list[Any]:
    found = sorted(CORPUS.glob(f"{kind}_*.json"))
    return [pytest.param(json.loads(path.read_text()), id=path.stem) for path in found]


def test_every_payload_has_its_source() -> None:
    payloads = [json.loads(path.read_text()) for path in CORPUS.glob("*.json")]
    assert len(payloads) >= 25
    assert all(one["_source"] for one in payloads)


@pytest.mark.parametrize("payload", _payloads("task"))
def test_tasks(payload: dict[str, Any]) -> None:
    expect = payload["expect"]
    seen = observation_of("h1-aa-0-1", payload["task"])
    assert seen.phase is Phase[expect["phase"]]
    assert seen.exists == (seen.phase < Phase.ENDED)
    told = expect.get("exit")
    if told is None:
        assert seen.exit is None
        return
    assert seen.exit is not None
    wanted = Exit(ExitKind[told["kind"]], told.get("code", 0), told.get("signal", 0))
    assert seen.exit._replace(message="") == wanted._replace(spot=told.get("spot", False))


@pytest.mark.parametrize(
    "payload", [p for p in _payloads("task") if "exit" in p.values[0]["expect"]]
)
def test_ends_of_replicas_have_causes(payload: dict[str, Any]) -> None:
    cause = replica_cause(payload["task"])
    assert cause.code != common_pb2.CAUSE_CODE_UNSPECIFIED
    assert cause.origin != common_pb2.ORIGIN_UNSPECIFIED
    assert cause.message.endswith(".")
    assert cause.HasField("exit_code") == (payload["expect"]["exit"]["kind"] == "EXITED")


@pytest.mark.parametrize("payload", _payloads("failure"))
def test_failures_of_run_task(payload: dict[str, Any]) -> None:
    error = refusal(payload["failure"])
    assert type(error) is getattr(errors, payload["expect"]["error"])
    assert payload["failure"]["reason"] in error.message


@pytest.mark.parametrize("payload", _payloads("service"))
def test_services(payload: dict[str, Any]) -> None:
    expect, service = payload["expect"], payload["service"]
    assert verdict(service, payload["wanted"]).state.value == expect["state"]
    told = trouble(service)
    name = common_pb2.CauseCode.Name(told.code) if told else ""
    assert name.removeprefix("CAUSE_CODE_") == expect.get("trouble", "")
