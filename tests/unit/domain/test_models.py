"""Who may move an alias, from where to where; what can be deployed; what a version came from."""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum

import pytest

from hatoba.v1 import model_pb2
from hatoba_scheduler.domain.models import (
    Decision,
    Link,
    ModelState,
    ModelVersion,
    Move,
    MoveState,
    Refusal,
    Refused,
    Step,
    Want,
    judge_decision,
    judge_want,
    links_of,
    why_not_served,
)
from hatoba_scheduler.domain.records import ManifestRef

READY, REGISTERING, FAILED = ModelState.READY, ModelState.REGISTERING, ModelState.FAILED
VERSION = ModelVersion(
    "p", "digits", 7, READY, ManifestRef("sha256:a"), b"", 1, "ann", "serve:D", has_example=True
)


def want(version: int, expected: int | None = None) -> Want:
    return Want("p", "digits", "production", version, expected, "", "ann", 5)


def move(source: int = 1, target: int = 2, state: MoveState = MoveState.PENDING) -> Move:
    return Move("p", "digits", 12, "production", source, target, state, "", "ann", 5)


def says(approve: bool, actor: str = "bea") -> Decision:
    return Decision("p", "digits", 12, approve, "", actor, 6)


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (ModelState, model_pb2.ModelState, "MODEL_STATE_"),
        (MoveState, model_pb2.AliasMoveState, "ALIAS_MOVE_STATE_"),
    ],
)
def test_numbers_are_those_of_the_contract(
    ours: type[IntEnum], theirs: type[object], prefix: str
) -> None:
    named = dict(theirs.items())  # type: ignore[attr-defined]
    assert {f"{prefix}{word.name}": int(word) for word in ours} == {
        name: number for name, number in named.items() if number
    }


@pytest.mark.parametrize(
    ("asked", "points_to", "target", "protected", "found"),
    [
        (want(2), 0, READY, False, Step.APPLY),
        (want(2, 1), 1, READY, False, Step.APPLY),
        (want(2, 0), 0, READY, False, Step.APPLY),
        (want(2, 1), 1, READY, True, Step.ASK),
        (want(2, 1), 2, READY, True, Step.NOTHING),
        (want(2, 1), 3, READY, False, Refused(Refusal.ELSEWHERE, 3)),
        (want(2, 1), 0, READY, True, Refused(Refusal.ELSEWHERE, 0)),
        (want(2), 1, None, False, Refused(Refusal.NO_VERSION)),
        (want(2), 1, REGISTERING, False, Refused(Refusal.NOT_READY, state="REGISTERING")),
        (want(2), 1, FAILED, True, Refused(Refusal.NOT_READY, state="FAILED")),
        (want(0), 1, None, False, Step.APPLY),
        (want(0), 1, None, True, Step.ASK),
        (want(0), 0, None, True, Step.NOTHING),
        (want(0, 2), 1, None, False, Refused(Refusal.ELSEWHERE, 1)),
    ],
)
def test_an_alias_moves_by_compare_and_set(
    asked: Want,
    points_to: int,
    target: ModelState | None,
    protected: bool,
    found: Step | Refused,
) -> None:
    assert judge_want(asked, points_to, target, protected) == found


@pytest.mark.parametrize(
    ("said", "waiting", "points_to", "target", "found"),
    [
        (says(True), move(), 1, READY, Step.APPLY),
        (says(True), move(target=0), 1, None, Step.APPLY),
        (says(False), move(), 3, None, Step.REJECT),
        (says(True), move(), 3, READY, Step.SUPERSEDE),
        (says(True), move(), 1, None, Refused(Refusal.NO_VERSION)),
        (says(True, "ann"), move(), 1, READY, Refused(Refusal.SAME_PRINCIPAL)),
        (says(False, "ann"), move(), 1, READY, Refused(Refusal.SAME_PRINCIPAL)),
        (says(True), move(state=MoveState.APPLIED), 2, READY, Step.NOTHING),
        (says(False), move(state=MoveState.REJECTED), 1, READY, Step.NOTHING),
        (
            says(False),
            move(state=MoveState.APPLIED),
            2,
            READY,
            Refused(Refusal.DECIDED, state="APPLIED"),
        ),
        (
            says(True),
            move(state=MoveState.REJECTED),
            1,
            READY,
            Refused(Refusal.DECIDED, state="REJECTED"),
        ),
        (says(True), move(state=MoveState.SUPERSEDED), 4, READY, Refused(Refusal.SUPERSEDED, 4)),
    ],
)
def test_a_second_principal_decides_once(
    said: Decision, waiting: Move, points_to: int, target: ModelState | None, found: Step | Refused
) -> None:
    assert judge_decision(said, waiting, points_to, target) == found


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (VERSION, ""),
        (replace(VERSION, state=REGISTERING), "REGISTERING"),
        (replace(VERSION, handler=""), "no handler"),
        (replace(VERSION, has_example=False), "no example"),
    ],
)
def test_what_cannot_be_deployed_is_said(version: ModelVersion, words: str) -> None:
    why = why_not_served(version)
    assert words in why
    assert bool(words) == bool(why)


def test_a_version_names_what_it_came_from() -> None:
    made = replace(
        VERSION, job="j", datasets=("d1", "d2"), code_version="c", parent="projects/p/models/m"
    )
    name = "projects/p/models/digits/versions/7"
    assert made.name == name
    assert links_of(made) == [
        Link("d1", name, "trained-on"),
        Link("d2", name, "trained-on"),
        Link("j", name, "made-by"),
        Link("c", name, "code-of"),
        Link("projects/p/models/m", name, "parent"),
    ]
    assert links_of(VERSION) == []
