"""What model servers kept is taken away once and whole; whatever else stands there harms nobody."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from hatoba.v1 import device_pb2
from hatoba_worker.agent.kept import KeptPredictions
from hatoba_worker.agent.server_logs import Home
from hatoba_worker.serving.config import MOST_BODY

SHELF = "projects/default/deployments/shelf"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
NOW = 1_000.0


class Device:
    """One server's directory, and what was heard of it."""

    def __init__(self, root: Path) -> None:
        self.home = Home(SHELF, root)
        self.path = root / "kept.jsonl"
        self.heard: list[tuple[float, device_pb2.DevicePrediction]] = []
        self.kept = KeptPredictions(lambda *one: self.heard.append(one), lambda: NOW)

    def look(self) -> None:
        self.kept.look([self.home])


def line(**fields: Any) -> str:
    told = {"at": NOW - 5, "seconds": 0.5, "status": 200, "revision": 3, "parent": ""}
    return json.dumps(told | {"trace_id": TRACE} | fields) + "\n"


def bodies(size: int = 3) -> dict[str, str]:
    text = base64.b64encode(b"x" * size).decode()
    types = {"media_type": "application/json", "prediction_media_type": "text/plain"}
    return {"input": text, "prediction": base64.b64encode(b"[7]").decode(), **types}


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


@pytest.mark.parametrize("directory", ["", "run"], ids=["process", "container"])
def test_it_is_set_aside_and_then_heard(device: Device, directory: str) -> None:
    path = device.home.path / directory / "kept.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(line(**bodies()) + line(trace_id="a" * 32, parent="b" * 16))
    device.look()
    assert not device.heard
    path.write_text(line(trace_id="c" * 32))
    device.look()
    (age, first), (_, second) = device.heard
    assert (age, first.deployment, first.revision) == (5.0, SHELF, 3)
    assert (first.captured.input, first.captured.prediction) == (b"xxx", b"[7]")
    assert first.captured.prediction_media_type == "text/plain"
    assert first.duration.ToMilliseconds() == 500
    assert second.parent_span_id == "b" * 16
    assert not second.HasField("captured")
    device.kept.durable()
    device.look()
    device.look()
    assert [one.trace_id for _, one in device.heard[2:]] == ["c" * 32]


def test_what_is_not_durable_is_heard_again(device: Device) -> None:
    device.path.write_text(line())
    device.look()
    device.look()
    again = Device(device.home.path)
    again.look()
    assert len(device.heard) == len(again.heard) == 1
    again.kept.durable()
    again.look()
    assert len(again.heard) == 1


def test_of_another_boot_it_is_not_known_how_long_ago_it_was(device: Device) -> None:
    device.path.write_text(line(at=NOW + 90_000))
    device.look()
    device.look()
    assert device.heard[0][0] == 0.0


@pytest.mark.parametrize(
    "bad",
    ["{", "[]", line(revision="x"), line(trace_id=7), line(**bodies(MOST_BODY)), line(input="!")],
)
def test_nonsense_is_passed_over(device: Device, bad: str) -> None:
    device.path.write_text(bad.strip() + "\n" + line())
    device.look()
    device.look()
    assert [one.trace_id for _, one in device.heard] == [TRACE]


def test_a_link_is_not_followed(device: Device, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(line())
    device.path.with_suffix(".taken").symlink_to(secret)
    device.look()
    assert not device.heard
