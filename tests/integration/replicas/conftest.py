"""A scripted server, a real keeper, real workers and real model servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from replica_house import ReplicaHouse


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ReplicaHouse]:
    """A host that is connected; whatever a test leaves, nothing outlives it."""
    place = ReplicaHouse(tmp_path)
    await place.server.start()
    try:
        await place.start_worker()
        yield place
    finally:
        await place.close()
    assert await place.marked() == []
