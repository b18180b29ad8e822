"""What the agent costs a device while nothing happens, for which `make bench` looks for longer, and
of its disk while releases come faster than its link brings them.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from agent_footprint import footprint
from bed_device import FarMachine
from bed_edge import EdgeLink
from edge_world import World, edge_world
from waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SECONDS = 20.0
MEMORY = 75e6
SHARE = 0.003
LINK = 2_048.0
WAITS = 30.0
"""A second, of all its threads. Ten are of gRPC's, which look for work so often by themselves; who
is busy for nothing comes to hundreds.
"""
SIZE, PARTS = 8 << 20, 16
BITS = 30_000_000
ONE_SIGN = 400.0
"""Bytes of one sign of life, of which there may be one more in a short while than on average."""


async def test_an_idle_agent_is_small_quiet_and_says_little(place: Path) -> None:
    async with edge_world(place, alive_every=30) as world:
        shop = await world.device("shop")
        await world.deploy(await world.model("one"))
        await world.until_runs(shop, 1)
        found = await footprint(shop, SECONDS)
    print(f"{found.memory / 1e6:.1f} MB, {found.share:.2%} of a core, {found.link:.0f} bytes/min")
    print(f"{found.waits:.2f} waits/s")
    assert found.memory <= MEMORY
    assert found.link <= LINK + ONE_SIGN * 60 / SECONDS
    # On a machine that does much else the clock's ticks are shared out roughly.
    assert found.share <= 2 * SHARE
    assert found.waits < WAITS


async def test_releases_that_never_came_whole_leave_nothing_on_the_disk(world: World) -> None:
    shop = await world.device("shop")
    link = shop.link
    assert link is not None
    await world.deploy(await world.model("good", os.urandom(SIZE), parts=PARTS))
    await world.until_runs(shop, 1)
    empty = await asyncio.to_thread(used, shop) - SIZE
    await asyncio.to_thread(link.slow, BITS)
    for number in range(5):
        half = (await asyncio.to_thread(link.carried)).down + SIZE // 2
        await world.update(await world.model(f"{number}", os.urandom(SIZE), parts=PARTS))
        await until(partial(came, link, half))
        assert await asyncio.to_thread(used, shop) - empty <= 2 * SIZE
    await asyncio.to_thread(link.slow, 0)
    await world.until_runs(shop, 6)
    assert await asyncio.to_thread(used, shop) - empty <= 2 * SIZE


def came(link: EdgeLink, count: int) -> bool:
    """Whether so many bytes have come to it."""
    return link.carried().down >= count


def used(machine: FarMachine) -> int:
    """Bytes of the disk that its content takes, while that comes and goes."""
    found = 0
    for folder in ("trees", "blobs"):
        for directory, _, names in os.walk(machine.seen / folder):
            for name in names:
                with suppress(FileNotFoundError):
                    found += (Path(directory) / name).lstat().st_size
    return found
