"""A scripted server, a real keeper and real workers, on a directory of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from worker_house import House


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A host that is connected; whatever a test leaves, nothing outlives it."""
    place = House(tmp_path)
    await place.server.start()
    try:
        await place.start_worker()
        yield place
    finally:
        await place.close()
    assert await place.marked() == []
