"""The page for backend authors, held to the contract."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from hatoba_plugins import backend, errors, spec
from hatoba_plugins.backends.mock import FaultKind, MockOptions, ReplicaScript, Script
from hatoba_plugins.backends.null import NullOptions
from hatoba_plugins.conformance import Ability, DeviceFaults, FarDevice, FaultInjector
from hatoba_plugins.values import (
    Capabilities,
    DeviceNews,
    Phase,
    ReplicaPhase,
    ReplicaSet,
    RevisionTarget,
    Target,
    WishOutcome,
)

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "backends" / "write.md").read_text()
WORDS = set(re.findall(r"`(\w+)`", PAGE)) | set(re.findall(r"`(\w+)\(", PAGE))


def members(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def heading(kind: str) -> set[str]:
    """Names of the first column in the table of this heading."""
    table = PAGE.partition(f"| {kind} |")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| `(\w+)", table, re.MULTILINE))


PROTOCOLS = (
    backend.Backend,
    backend.JobBackend,
    backend.DeploymentBackend,
    backend.DeviceBackend,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_method_has_its_row(protocol: type) -> None:
    assert heading(f"member of `{protocol.__name__}`") == members(protocol)


def test_method_signatures_are_those_of_the_contract() -> None:
    for protocol in PROTOCOLS:
        for name in members(protocol) - {"jobs", "deployments", "devices"}:
            parameters = list(inspect.signature(getattr(protocol, name)).parameters)[1:]
            assert f"`{name}({', '.join(parameters)})`" in PAGE


def test_each_capability_has_its_row() -> None:
    assert heading("capability") == {field.name for field in fields(Capabilities)}


def test_each_error_has_its_row() -> None:
    family = {one.__name__ for one in errors.BackendError.__subclasses__()}
    assert heading("error") == family


def test_each_answer_to_a_wish_has_its_row() -> None:
    assert heading("answer") == {one.__name__ for one in get_args(WishOutcome)}


def test_what_a_type_and_a_context_hold_is_named() -> None:
    names = members(backend.BackendType) | {f.name for f in fields(backend.BackendContext)}
    assert names <= WORDS
    assert {phase.name for phase in Phase} <= WORDS
    assert {phase.name for phase in ReplicaPhase} <= WORDS
    assert {f.name for kind in (Target, RevisionTarget) for f in fields(kind)} <= WORDS
    assert {one.__name__ for one in get_args(DeviceNews)} <= WORDS
    assert {"leaving", "routed_by", "problem"} <= {f.name for f in fields(ReplicaSet)} & WORDS
    assert members(spec.HatobaSpec) <= WORDS


def test_what_the_kit_and_the_mock_can_inject_is_named() -> None:
    assert members(FaultInjector) | members(DeviceFaults) | members(FarDevice) <= WORDS
    assert {ability.name for ability in Ability} <= WORDS
    assert {field.name for field in fields(Script)} <= WORDS
    assert {field.name for field in fields(ReplicaScript)} <= WORDS
    assert {kind.value for kind in FaultKind} <= WORDS
    assert {field.name for field in fields(NullOptions)} <= WORDS
    assert "ledger" in {field.name for field in fields(MockOptions)} & WORDS
