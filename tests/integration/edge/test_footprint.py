"""What the agent costs a device while nothing happens; `make bench` looks at it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_footprint import footprint
from edge_world import edge_world

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SECONDS = 20.0
MEMORY = 75e6
SHARE = 0.003
LINK = 2_048.0
ONE_SIGN = 400.0
"""Bytes of one sign of life, of which there may be one more in a short while than on average."""


async def test_an_idle_agent_is_small_quiet_and_says_little(place: Path) -> None:
    async with edge_world(place, alive_every=30) as world:
        shop = await world.device("shop")
        await world.deploy(await world.model("one"))
        await world.until_runs(shop, 1)
        found = await footprint(shop, SECONDS)
    print(f"{found.memory / 1e6:.1f} MB, {found.share:.2%} of a core, {found.link:.0f} bytes/min")
    assert found.memory <= MEMORY
    assert found.link <= LINK + ONE_SIGN * 60 / SECONDS
    # On a machine that does much else the clock's ticks are shared out roughly.
    assert found.share <= 2 * SHARE
