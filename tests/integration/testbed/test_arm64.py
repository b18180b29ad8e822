"""The testbed's arm64: a format that the machine has once, for all testbeds."""

from __future__ import annotations

from pathlib import Path

import bed_arm64
import pytest
from testbed_fixtures import Testbed, own_testbed
from testbed_traces import traces

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_testbed_that_found_the_format_leaves_it(
    testbed: Testbed, bed_place: Path, full_round: bool
) -> None:
    if not full_round:
        pytest.skip("installs QEMU: make long")
    testbed.up("arm64")
    with own_testbed(bed_place) as own:
        assert own.facts("arm64") == {"mounted": False, "enabled": False}
    assert bed_arm64.registered()
    assert traces(bed_place) == []
