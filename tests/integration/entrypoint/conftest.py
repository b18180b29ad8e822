"""A scripted desk and real runners, with real keepers and commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from runner_house import RunnerHouse


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[RunnerHouse]:
    """Containers and the server that they know; nothing outlives it."""
    place = RunnerHouse(tmp_path)
    await place.desk.start()
    try:
        yield place
    finally:
        await place.close()
