"""A scripted server, a real keeper and real workers, and the testbed's Docker engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from container_house import ContainerHouse
from testbed_fixtures import DockerEngine


@pytest.fixture
async def house(tmp_path: Path, docker_engine: DockerEngine) -> AsyncIterator[ContainerHouse]:
    """A host that is connected and drives an engine; no container of it outlives a test."""
    place = ContainerHouse(tmp_path, docker_engine)
    await place.server.start()
    try:
        await place.start_worker()
        yield place
    finally:
        await place.close()
        await place.clear()
