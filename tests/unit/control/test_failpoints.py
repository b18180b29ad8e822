"""Failpoints: the form they are armed by, when they act, and that the list is what the code has."""

from __future__ import annotations

import ast
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import hatoba_scheduler
from hatoba_scheduler import failpoints
from hatoba_scheduler.failpoints import POINTS, InjectedFault, arm, hit

SOURCES = Path(hatoba_scheduler.__file__).parent
BEFORE, AFTER = "launch.call.before", "launch.call.after"


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm("")


def raised(name: str, times: int) -> list[bool]:
    answers = []
    for _ in range(times):
        try:
            hit(name)
        except InjectedFault:
            answers.append(True)
        else:
            answers.append(False)
    return answers


@pytest.mark.parametrize(
    ("armed", "expected"),
    [
        ("error", [True, False, False]),
        ("error@2", [False, True, False]),
        ("error@2+", [False, True, True]),
        ("error@1+", [True, True, True]),
    ],
)
def test_it_acts_at_the_pass_that_was_named(armed: str, expected: list[bool]) -> None:
    arm(f"{BEFORE}:{armed}")
    assert raised(BEFORE, 3) == expected
    assert raised(AFTER, 1) == [False]


def test_several_are_armed_at_once_and_an_empty_text_takes_all_away() -> None:
    arm(f"{BEFORE}:error@1, {AFTER}:error@1+")
    assert raised(BEFORE, 1) + raised(AFTER, 1) == [True, True]
    arm("")
    assert raised(AFTER, 1) == [False]


def test_kill9_is_sent_to_the_process_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append((pid, number)))
    arm(f"{BEFORE}:kill9@2")
    hit(BEFORE)
    assert killed == []
    hit(BEFORE)
    assert killed == [(os.getpid(), signal.SIGKILL)]


def test_hang_holds_the_process_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    arm(f"{BEFORE}:hang(2.5)")
    hit(BEFORE)
    assert slept == [2.5]


@pytest.mark.parametrize(
    "wrong",
    [
        BEFORE,
        f"{BEFORE}:explode",
        f"{BEFORE}:error@0",
        f"{BEFORE}:error@",
        f"{BEFORE}:hang",
        f"{BEFORE}:hang(x)",
        "nowhere:error",
    ],
)
def test_what_is_not_of_the_form_is_refused_and_named(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"HATOBA_FAILPOINTS.*" + wrong.split(":")[0]):
        arm(wrong)


def test_the_environment_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATOBA_FAILPOINTS", f"{BEFORE}:error")
    failpoints.arm_from_environment()
    assert raised(BEFORE, 1) == [True]


def test_every_name_is_somewhere_and_every_call_uses_one_of_the_list() -> None:
    used = set()
    for path in sorted(SOURCES.rglob("*.py")):
        if path.name != "failpoints.py":
            used |= hits(path)
    assert used == set(POINTS)


def hits(path: Path) -> set[str]:
    """Names that a module passes; each must be written out."""
    text = path.read_text()
    if "failpoints" not in text:
        return set()
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = set()
    for call in calls:
        called = call.func.id if isinstance(call.func, ast.Name) else ""
        if called == "hit":
            (name,) = call.args
            assert isinstance(name, ast.Constant), f"{path}: {ast.unparse(call)}"
            names.add(str(name.value))
    return names
