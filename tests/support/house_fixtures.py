"""Servers for whole suites, and for tests that break them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from server_process import HatobaServer, running_server
from wire import Wire


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HatobaServer]:
    """One server with a worker, for all tests that break nothing."""
    async with running_server(tmp_path_factory.mktemp("house") / "data") as one:
        yield one


@pytest.fixture
async def wire(server: HatobaServer) -> AsyncIterator[Wire]:
    """Calls to the shared server."""
    async with Wire(server) as one:
        yield one


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """A server with a worker for one test alone, to be killed and restarted."""
    async with running_server(tmp_path / "data") as one:
        yield one


@pytest.fixture
async def own_wire(own_server: HatobaServer) -> AsyncIterator[Wire]:
    """Calls to the test's own server."""
    async with Wire(own_server) as one:
        yield one
