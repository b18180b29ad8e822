"""kill -9 of the server while jobs go through real components; `make faults BACKEND=...` goes on
for longer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fault_backends import REAL
from fault_round import Plan, Round
from faults import show
from testbed_fixtures import Testbed

SHORT, FULL = 30, 300


@pytest.fixture(params=sorted(REAL))
def backend(request: pytest.FixtureRequest, testbed: Testbed) -> str:
    """Each one whose components this machine can have."""
    name = str(request.param)
    testbed.up(*REAL[name].components)
    return name


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(7200)
async def test_nothing_is_lost_doubled_or_left_on_the_platform(
    backend: str, tmp_path: Path, full_round: bool
) -> None:
    count = FULL if full_round else SHORT
    jobs = count * REAL[backend].jobs_a_kill
    plan = Plan(backend, count, jobs, random.SystemRandom().randrange(1 << 32))
    print(f"seed {plan.seed}")
    verdict = await Round(plan, tmp_path, print).run()
    show(verdict)
    assert verdict.violations == []
    assert sum(verdict.kills.values()) >= count
