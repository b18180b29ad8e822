"""A server with a real worker, and a desk at it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from batch_desk import Desk, sitting
from house_fixtures import own_server, own_wire, server, wire
from server_process import HatobaServer
from wire import Wire

__all__ = ["own_server", "own_wire", "server", "wire"]


@pytest.fixture
async def desk(server: HatobaServer, wire: Wire) -> AsyncIterator[Desk]:
    async with sitting(server, wire) as one:
        yield one
