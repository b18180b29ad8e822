"""kill -9 at random while jobs go through; `make faults` is the same for longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fault_round import Plan, Round
from faults import show


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("backend", "kills"), [("hosts", 30), ("mock", 30), ("null", 15)])
async def test_nothing_is_lost_doubled_or_left_behind(
    backend: str, kills: int, tmp_path: Path, full_round: bool
) -> None:
    if backend != "null" and not full_round:
        pytest.skip("make test runs these kills as a step of its own, 30 on each backend")
    count = kills * (5 if full_round else 1)
    plan = Plan(backend, count, 6 * count, random.SystemRandom().randrange(1 << 32))
    print(f"seed {plan.seed}")
    verdict = await Round(plan, tmp_path, print).run()
    show(verdict)
    assert verdict.violations == []
    assert sum(verdict.kills.values()) == count
    assert set(verdict.kills) == (
        {"server", "worker", "keeper"} if backend == "hosts" else {"server"}
    )
