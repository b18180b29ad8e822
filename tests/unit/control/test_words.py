"""The contract and the domain use the same words with the same numbers."""

from __future__ import annotations

from enum import IntEnum

import pytest
from google.protobuf.descriptor import EnumDescriptor

from hatoba.v1 import common_pb2, runner_pb2
from hatoba_plugins.values import Exit
from hatoba_plugins.values import ExitKind as Told
from hatoba_scheduler.control.observe import ending_of
from hatoba_scheduler.domain import states
from hatoba_scheduler.domain.causes import ExitKind, judge

ENUMS = common_pb2.DESCRIPTOR.enum_types_by_name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("JobState", states.JobState),
        ("AttemptState", states.AttemptState),
        ("Desired", states.Desired),
        ("Release", states.Release),
        ("Origin", states.Origin),
        ("CauseCode", states.CauseCode),
    ],
)
def test_names_and_numbers_are_those_of_the_contract(name: str, words: type[IntEnum]) -> None:
    assert {word.name: int(word) for word in words} == without_prefix(ENUMS[name])


def without_prefix(enum: EnumDescriptor) -> dict[str, int]:
    (unspecified,) = [value.name for value in enum.values if value.number == 0]
    prefix = unspecified.removesuffix("UNSPECIFIED")
    return {v.name.removeprefix(prefix): v.number for v in enum.values if v.number}


def test_counts_have_a_place_for_every_state() -> None:
    assert len(ENUMS["JobState"].values) == states.STATE_COUNT


def test_ends_are_those_from_succeeded_on() -> None:
    over = {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"}
    assert {state.name for state in states.JobState if state.terminal} == over | {"UPSTREAM_FAILED"}
    ended = over | {"PREEMPTED", "LOST", "REFUSED"}
    assert {state.name for state in states.AttemptState if state.terminal} == ended
    assert [s.name for s in states.JobState if s.pending] == ["QUEUED", "HELD", "BLOCKED"]


def test_ends_that_a_runner_tells_are_the_domains() -> None:
    told = without_prefix(runner_pb2.DESCRIPTOR.enum_types_by_name["ExitKind"])
    known = {kind.name: kind.value for kind in ExitKind}
    assert told.items() <= known.items()


@pytest.mark.parametrize("told", Told)
def test_ends_that_a_backend_tells_have_a_meaning(told: Told) -> None:
    state, _ = judge(ending_of(Exit(told, code=1, signal=9)))
    assert state.terminal
