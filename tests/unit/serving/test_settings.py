from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hatoba_worker.serving.config import BadConfig, Batching, Config, Example, Limits, load

LEAST = {"model_dir": "/m", "code_dir": "/c", "handler": "serve:Digits"}


def written(path: Path, **fields: Any) -> Path:
    path = path / "config.json"
    path.write_text(json.dumps({**LEAST, **fields}))
    return path


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    expected = Config(Path("/m"), Path("/c"), "serve:Digits")
    assert load(written(tmp_path)) == expected
    zeros = {"max_body_bytes": 0, "max_queue": 0, "timeout_seconds": 0, "concurrency": 0}
    batching = {"max_batch": 0, "batch_wait_ms": 0}
    assert load(written(tmp_path, limits=zeros, batching=batching, example=None)) == expected


def test_everything_can_be_said(tmp_path: Path) -> None:
    limits = {"max_body_bytes": 1, "max_queue": 2, "timeout_seconds": 0.5, "concurrency": 4}
    found = load(
        written(
            tmp_path,
            name="r-1",
            deployment="projects/default/deployments/reader",
            model_version="projects/default/models/digits/versions/7",
            example={"path": "/e", "media_type": "image/png"},
            host="::1",
            port=80,
            ready_file="/r",
            limits=limits,
            batching={"max_batch": 8, "batch_wait_ms": 2.5},
            drain_seconds=3,
        )
    )
    assert found.model == "digits:7"
    assert found.limits == Limits(1, 2, 0.5, 4)
    assert found.batching == Batching(8, 2.5)
    assert found.example == Example(Path("/e"), "image/png")
    assert (found.host, found.port, found.ready_file, found.drain_seconds) == (
        "::1",
        80,
        Path("/r"),
        3,
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"handler": ""}, "handler is missing"),
        ({"model_dir": 7}, "model_dir is 7"),
        ({"port": 70000}, "port is 70000: a number from 0 to 65535"),
        ({"port": "80"}, "port is '80'"),
        ({"limits": {"max_queue": -1}}, "max_queue is -1"),
        ({"limits": {"concurrency": True}}, "concurrency is True"),
        ({"limits": [1]}, r"limits is \[1\]"),
        ({"example": "x"}, "example is 'x'"),
        ({"golden": 65}, "golden is 65: a number from 0 to 64"),
        ({"example": {"path": "/e"}}, "media_type is missing"),
        ({"drain_seconds": float("nan")}, "drain_seconds is nan"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        load(written(tmp_path, **fields))


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(BadConfig, match=str(path)):
        load(path)
    with pytest.raises(BadConfig, match="absent"):
        load(tmp_path / "absent")
