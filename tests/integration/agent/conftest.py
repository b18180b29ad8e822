"""Images that devices may run, and what carries a device to their registry."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from bed_images import AMD64, load_base
from contained_house import ImageShop
from counting_link import CountingLink, counting_link
from testbed_fixtures import DockerEngine


@pytest.fixture
async def link(registry: str) -> AsyncIterator[CountingLink]:
    """What carries a device to the registry."""
    host, _, port = registry.partition(":")
    async with counting_link(host, int(port)) as made:
        yield made


@pytest.fixture(scope="session")
def shop(docker_engine: DockerEngine, registry: str) -> ImageShop:
    """Makes images into the registry."""
    load_base(docker_engine.socket, AMD64)
    return ImageShop(docker_engine, registry)
