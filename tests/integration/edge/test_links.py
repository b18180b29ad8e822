"""Links that break, move and are slow; devices reach out, and nobody reaches in."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from bed_device import FarMachine
from edge_world import QUICK_LINKS, World, edge_world
from waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SIZE = 64 << 20
PARTS, PART = 20, 1 << 20
BITS = 200_000_000
HTTPS = 443
KNOCK = """
import socket, sys
with socket.socket() as knock:
    knock.settimeout(2)
    sys.exit(knock.connect_ex((sys.argv[1], 80)) != 0)
"""
LISTENS = "0A"
STOPS_WITHIN = 15.0
"""Seconds: for so long `hatoba server stop` waits."""


async def test_of_a_download_that_is_cut_at_every_tenth_nothing_much_comes_twice(
    relayed_world: World,
) -> None:
    world, relay = relayed_world, relayed_world.relay
    shop = await world.device("shop", environ=QUICK_LINKS)
    assert relay is not None
    assert shop.link is not None
    await asyncio.to_thread(shop.link.slow, BITS)
    weights = os.urandom(SIZE)
    version = await world.model("one", weights)
    before = relay.carried
    relay.cut_at = [before + SIZE * tenth // 10 for tenth in range(1, 10)]
    await world.deploy(version)
    await world.until_runs(shop, 1)
    share = (relay.carried - before) / SIZE
    print(f"{share:.3f} times its size came")
    assert relay.cut_at == []
    assert 1.0 <= share <= 1.05
    assert (await world.answer(shop))["weights"] == hashlib.sha256(weights).hexdigest()


async def test_of_new_weights_only_what_is_new_moves(relayed_world: World) -> None:
    world, relay = relayed_world, relayed_world.relay
    assert relay is not None
    shop = await world.device("shop")
    weights = os.urandom(PARTS * PART)
    await world.deploy(await world.model("one", weights, parts=PARTS))
    await world.until_runs(shop, 1)
    weights = os.urandom(len(weights) // 10) + weights[len(weights) // 10 :]
    version = await world.model("two", weights, parts=PARTS)
    before = relay.carried
    await world.update(version)
    await world.until_runs(shop, 2)
    share = (relay.carried - before) / len(weights)
    print(f"{share:.3f} times its size came")
    assert 0.1 <= share <= 0.15
    assert (await world.answer(shop))["weights"] == hashlib.sha256(weights).hexdigest()


async def test_nobody_reaches_a_device_and_it_lives_through_a_router_that_forgets_it(
    world: World,
) -> None:
    shop = await world.device("shop", environ=QUICK_LINKS)
    await world.deploy(await world.model("one"))
    await world.until_runs(shop, 1)
    answer = await world.answer(shop)
    assert await asyncio.to_thread(listeners, shop) == {"0100007F"}
    with socket.socket() as knock:
        knock.settimeout(1.0)
        assert await asyncio.to_thread(knock.connect_ex, (world.network.outside, 22)) != 0
    dialled = await asyncio.to_thread(connections, shop)
    await asyncio.to_thread(world.network.rebind)
    await until(lambda: connections(shop) > dialled)
    await world.until_connected("shop")
    assert await world.answer(shop) == answer
    await world.update(await world.model("two"))
    await world.until_runs(shop, 2)


async def test_a_device_that_may_reach_443_alone_has_all_that_it_needs(place: Path) -> None:
    async with edge_world(place, port=HTTPS) as world:
        await asyncio.to_thread(world.network.let_out_only, HTTPS)
        shop = await world.device("shop")
        first, second = await world.model("one"), await world.model("two")
        await world.promote(first, "production")
        await world.deploy("toy@production")
        await world.until_runs(shop, 1)
        await world.promote(second, "production")
        await world.until_runs(shop, 2)
        assert (await world.answer(shop))["name"] == "two"
        # Nothing was tried that did not get through; what is not allowed does not.
        assert await asyncio.to_thread(world.network.kept_in) == 0
        knock = shop.beside(sys.executable, "-c", KNOCK, world.network.address)
        assert await asyncio.to_thread(subprocess.call, knock, timeout=30) == 1
        assert await asyncio.to_thread(world.network.kept_in) > 0


def listeners(machine: FarMachine) -> set[str]:
    """Addresses on which anything listens in a machine's network, as the kernel writes them."""
    rows = Path(f"/proc/{machine.agent_pid()}/net/tcp").read_text().splitlines()[1:]
    rows += Path(f"/proc/{machine.agent_pid()}/net/tcp6").read_text().splitlines()[1:]
    fields = [row.split() for row in rows]
    return {one[1].partition(":")[0] for one in fields if one[3] == LISTENS}


def connections(machine: FarMachine) -> int:
    """How often its agent has dialled with success."""
    return int(machine.status().get("link", {}).get("connections", 0))


async def test_a_link_that_broke_in_a_download_does_not_keep_a_server_from_stopping(
    world: World,
) -> None:
    shop = await world.device("shop")
    assert shop.link is not None
    await asyncio.to_thread(shop.link.slow, BITS // 10)
    await world.deploy(await world.model("one", os.urandom(SIZE)))
    arrived = (await asyncio.to_thread(shop.link.carried)).down + SIZE // 10
    await until(lambda: shop.link is not None and shop.link.carried().down > arrived)
    await asyncio.to_thread(shop.link.cut)
    assert await world.server.terminate() < STOPS_WITHIN
