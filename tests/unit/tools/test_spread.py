"""Tests are handed out by file or one by one, and every folder keeps pace with the others."""

from __future__ import annotations

from pathlib import Path

from spread import APART, interleaved, unit_of

ROOT = Path(__file__).parents[3]


def test_what_shares_nothing_goes_alone_and_the_rest_by_file() -> None:
    assert unit_of("tests/unit/a/test_x.py::TestY::test_z[1]") == "tests/unit/a/test_x.py"
    alone = "tests/conformance/test_ecs.py::TestEcs::test_z[a::b]"
    assert unit_of(alone) == alone


def test_what_goes_alone_exists() -> None:
    assert [name for name in APART if not (ROOT / name).exists()] == []


def test_folders_keep_pace() -> None:
    many = [f"tests/unit/many/test_{number}.py" for number in range(8)]
    few = ["tests/faults/test_a.py", "tests/faults/test_real_kills.py::test_b"]
    order = interleaved([*many, *few, *many])
    assert sorted(order) == sorted([*many, *few])
    assert [order.index(one) for one in many] == sorted(order.index(one) for one in many)
    assert order.index(few[1]) in (2, 3)
    assert order.index(few[0]) in (6, 7, 8)
