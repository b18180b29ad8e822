"""What AWS IoT has said, and what it means: each file names where its words are from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_iot import iot_desk

from hatoba.shadows import generation_of, said_of, shadow_of
from hatoba_plugins import errors
from hatoba_plugins.backends.iot_edge.letters import Presence, presence_of, word_of
from hatoba_plugins.conformance.sites import document
from hatoba_plugins.values import DeviceWish, RefusedWish

CORPUS = Path(__file__).resolve().parents[2] / "corpus" / "iot_edge"


def payloads(kind: str) -> list[Any]:
    found = sorted(CORPUS.glob(f"{kind}_*.json"))
    return [pytest.param(json.loads(path.read_text()), id=path.stem) for path in found]


def test_every_payload_has_its_source() -> None:
    found = [json.loads(path.read_text()) for path in CORPUS.glob("*.json")]
    assert len(found) >= 20
    assert all(one["_source"] for one in found)


@pytest.mark.parametrize("payload", payloads("shadow"))
def test_shadows(payload: dict[str, Any]) -> None:
    expect, shadow = payload["expect"], shadow_of(payload["shadow"])
    assert (shadow.version, generation_of(shadow)) == (expect["version"], expect["generation"])
    assert (shadow.spoke, shadow.time) == (expect["spoke"], expect["time"])
    if told := expect.get("said"):
        said = said_of(shadow)
        assert (said.link, said.gone, said.turn) == (told["link"], told["gone"], told["turn"])
        assert said.there is told["there"]


@pytest.mark.parametrize("payload", payloads("letter"))
def test_events_of_connections(payload: dict[str, Any]) -> None:
    expected = Presence(**payload["expect"]) if payload["expect"] else None
    assert presence_of(payload["letter"]) == expected
    assert word_of(json.dumps(payload["letter"])) == expected


@pytest.mark.parametrize("payload", payloads("refusal"))
async def test_refusals_of_wishes(payload: dict[str, Any]) -> None:
    async with iot_desk() as desk:
        desk.device("a")
        told = (payload["code"], payload["status"], payload["message"])
        desk.aws.refuse(payload["operation"], *told)
        (outcome,) = await desk.role.desire([DeviceWish("a", document(1))])
    assert isinstance(outcome, RefusedWish)
    assert type(outcome.error) is getattr(errors, payload["expect"]["wish"])
    assert all(words in outcome.error.message for words in payload["expect"]["says"])
    assert isinstance(outcome.error, errors.Throttled) == (outcome.error.after is not None)
