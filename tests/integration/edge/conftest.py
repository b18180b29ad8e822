"""A real server and real agents, behind a router, on machines whose links and power fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from edge_world import World, edge_world, why_not


@pytest.fixture
async def place(tmp_path: Path) -> Path:
    """Where a world may be; skips where there can be none."""
    if reason := await asyncio.to_thread(why_not):
        pytest.skip(reason)
    return tmp_path


@pytest.fixture
async def world(place: Path) -> AsyncIterator[World]:
    """One that has no machines yet."""
    async with edge_world(place) as made:
        yield made


@pytest.fixture
async def relayed_world(place: Path) -> AsyncIterator[World]:
    """One whose devices reach the server through a link that counts and breaks."""
    async with edge_world(place, relayed=True) as made:
        yield made
