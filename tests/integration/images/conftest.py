"""Images for arm64, on a machine that has QEMU run their programs."""

from __future__ import annotations

from typing import Any

import pytest
from testbed_fixtures import Testbed


@pytest.fixture(scope="session")
def arm64_images(testbed: Testbed, full_round: bool) -> dict[str, Any]:
    """Their names by target; they are in the engine and in the registry."""
    if not full_round:
        pytest.skip("images for arm64 take minutes under emulation: make long")
    return testbed.facts("arm64-images")
