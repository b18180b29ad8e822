"""The corpus of native payloads, each with its right classification, through the mapping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hatoba_plugins.backends.k8s_gpu.objects import SeenPod, seen_job, seen_pod
from hatoba_plugins.backends.k8s_gpu.states import doom, observed, verdict, verdict_exit
from hatoba_plugins.values import Exit, ExitKind, Observation, Phase

CORPUS = sorted((Path(__file__).parents[2] / "corpus" / "k8s_gpu").glob("*.json"))


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def seen(told: dict[str, Any]) -> tuple[Observation, list[SeenPod]]:
    job = seen_job(told["job"])
    assert job is not None
    pods = [seen_pod(one) for one in told["pods"]]
    return observed(job, 0, pods), pods


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) >= 25
    assert all(read(path)["_source"] for path in CORPUS)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_payload(path: Path) -> None:
    told = read(path)
    expect = told["expect"]
    observation, _ = seen(told)
    assert observation.phase is Phase[expect["phase"]]
    assert (observation.exit is not None) == ("exit" in expect)
    if observation.exit is not None:
        wanted = expect["exit"]
        assert observation.exit.kind is ExitKind[wanted["kind"]]
        assert observation.exit.code == wanted.get("code", 0)
        assert observation.exit.signal == wanted.get("signal", 0)
    ending = observation.ending.kind.name if observation.ending else ""
    assert ending == expect.get("ending", "")
    if observation.exists:
        notes = told["job"]["metadata"].get("annotations", {})
        assert observation.unfenced == (notes.get("hatoba.dev/runner", "none") == "none")
    for field in ("host", "runner_gone", "run"):
        if field in expect:
            assert getattr(observation, field) == expect[field]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_never_begins(path: Path) -> None:
    told = read(path)
    _, pods = seen(told)
    found = [one for pod in pods if not pod.over and (one := doom(pod))]
    kinds = [one.exit.kind.name for one in found]
    assert kinds == ([told["expect"]["doom"]] if "doom" in told["expect"] else [])
    assert all(one.exit.message for one in found)


def test_a_verdict_survives_its_annotation() -> None:
    ended = Exit(ExitKind.IMAGE_MISSING, message='no such image "x"')
    assert verdict_exit(verdict(ended)) == ended


def test_objects_of_others_are_no_attempts() -> None:
    told = read(CORPUS[0])["job"]
    del told["metadata"]["labels"]["hatoba.dev/fence"]
    assert seen_job(told) is None
