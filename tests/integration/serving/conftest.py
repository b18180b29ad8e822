"""A model server for each test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from model_server_house import Replica


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    """A server that is not started yet."""
    one = Replica(tmp_path)
    await asyncio.to_thread(one.prepare)
    try:
        yield one
    finally:
        await one.close()
