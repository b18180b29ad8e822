"""What an agent has in memory, with and without a container engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from agent_house import PATIENCE, AgentHouse
from authority import DAY
from contained_house import ContainedHouse, ImageShop
from counting_link import CountingLink
from testbed_fixtures import DockerEngine

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

pytestmark = pytest.mark.timeout(300)
MEMORY, PLAIN = 75e6, 63e6
"""Bytes with a container in use, and of one that knows no engine. Found: 68 and 56 MB."""
SETTLES = 8.0
"""Seconds after which what was begun is over."""


@pytest.fixture
async def house(
    tmp_path: Path, docker_engine: DockerEngine, registry: str, link: CountingLink
) -> AsyncIterator[ContainedHouse]:
    at = f"127.0.0.1:{link.port}"
    made = await asyncio.to_thread(ContainedHouse, tmp_path, docker_engine, registry, at)
    try:
        await made.site.start()
        await made.enroll()
        await made.start()
        yield made
    finally:
        await made.close()
        await asyncio.to_thread(made.engine.clear)


async def test_with_a_container_in_use_it_is_small(house: ContainedHouse, shop: ImageShop) -> None:
    """It brought the image in, and after another start took up the container that runs."""
    image = await asyncio.to_thread(shop.image, {"data": b"1"})
    spec = await asyncio.to_thread(lambda: house.contained(image, 1, 5))
    await house.site.news.until(lambda: house.site.hellos, PATIENCE)
    (slot,) = (await house.settled(house.site.want(spec))).slots
    assert slot.running == 1
    brought = await at_rest(house)
    await house.kill()
    await house.start()
    await house.site.news.until(lambda: len(house.site.hellos) == 2, PATIENCE)
    taken_up = await at_rest(house)
    print(f"brought in: {brought / 1e6:.1f} MB, taken up: {taken_up / 1e6:.1f} MB")
    assert max(brought, taken_up) <= MEMORY


async def test_what_renews_its_certificate_does_not_stay(tmp_path: Path) -> None:
    house = await asyncio.to_thread(AgentHouse, tmp_path)
    try:
        await house.site.start()
        house.site.begins = house.site.today - 21 * DAY
        await house.enroll()
        house.site.begins = house.site.today - DAY / 2
        await house.start()
        await house.site.news.until(lambda: house.site.streams == 2, PATIENCE)
        memory = await at_rest(house)
        print(f"without containers: {memory / 1e6:.1f} MB")
        assert house.site.shown == house.site.serials
        assert memory <= PLAIN
        maps = await asyncio.to_thread(Path(f"/proc/{house.pid}/maps").read_text)
        assert "/cryptography/" not in maps
    finally:
        await house.close()


async def at_rest(house: AgentHouse) -> int:
    """Resident bytes of the agent, once nothing happens."""
    await asyncio.sleep(SETTLES)
    text = await asyncio.to_thread(Path(f"/proc/{house.pid}/statm").read_text)
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")
