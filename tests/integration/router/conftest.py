"""A router with its server and replicas."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from house_fixtures import own_server
from router_house import RouterHouse

__all__ = ["own_server"]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[RouterHouse]:
    """The server runs, and no router yet."""
    one = RouterHouse(tmp_path)
    await one.feed.start()
    yield one
    await one.close()
