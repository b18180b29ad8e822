"""Devices that are away for long, or lose their power: they run what they have, and fetch what is
newest.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
import wrong_clock
from bed_device import FarMachine
from edge_world import HOUR, World, certificate, edge_world

from hatoba.v1 import device_pb2

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SIZE = 2 << 20
RELEASES = {3: "two", 6: "three", 9: "four", 12: "five", 14: "six"}
"""By the days after which they come."""
OFF = 14 * 24.0
"""Hours."""
SUCCEEDED = device_pb2.DEVICE_STAGE_SUCCEEDED
SUPERSEDED = device_pb2.DEVICE_STAGE_SUPERSEDED


async def down(machine: FarMachine) -> int:
    """Bytes that have come to it, as they were on its wire."""
    assert machine.link is not None
    return (await asyncio.to_thread(machine.link.carried)).down


@pytest.mark.skipif(bool(wrong_clock.why_not()), reason=wrong_clock.why_not())
async def test_who_was_off_for_fourteen_days_and_five_releases_fetches_the_newest_alone(
    place: Path,
) -> None:
    """Its certificate has ended, too."""
    library = await asyncio.to_thread(wrong_clock.built, place)
    async with edge_world(place, more="certificate_days = 14") as world:
        shop = await world.device("shop")
        await world.deploy(await world.model("one", os.urandom(SIZE)))
        await world.until_runs(shop, 1)
        first = await asyncio.to_thread(certificate, shop)
        await asyncio.to_thread(shop.power_cut)
        await world.until_connected("shop", there=False)
        for day, name in RELEASES.items():
            await world.later(day * 24, library)
            await world.update(await world.model(name, os.urandom(SIZE)))
        now = time.time() + OFF * HOUR
        assert first.not_valid_after_utc.timestamp() < now
        shop.environ = wrong_clock.wrong_by(OFF * HOUR, library)
        before = await down(shop)
        await asyncio.to_thread(shop.boot)
        await world.until_runs(shop, 6)
        assert (await world.answer(shop))["name"] == "six"
        assert await down(shop) - before <= 1.05 * SIZE
        await world.stage("shop", SUCCEEDED)
        rows = [(await world.rows(rollout=number))["shop"] for number in range(1, 7)]
        assert [one.stage for one in rows] == [SUCCEEDED, *[SUPERSEDED] * 4, SUCCEEDED]
        assert await asyncio.to_thread(certificate, shop) != first
        log = await asyncio.to_thread(shop.log.read_text)
        tried = {f"-{number}-0-" in log for number in range(2, 6)}
        assert tried == {False}


async def test_after_a_power_cut_without_a_link_it_runs_and_is_left_alone_when_that_is_back(
    world: World,
) -> None:
    shop = await world.device("shop")
    assert shop.link is not None
    await world.deploy(await world.model("one"))
    await world.until_runs(shop, 1)
    await asyncio.to_thread(shop.link.cut)
    await asyncio.to_thread(shop.power_cut)
    await asyncio.to_thread(shop.boot)
    answer = await world.answer(shop)
    assert answer["name"] == "one"
    pids = await asyncio.to_thread(shop.model_pids)
    await asyncio.to_thread(shop.kill_agent)
    await asyncio.to_thread(shop.start_agent)
    await asyncio.to_thread(shop.link.mend)
    await world.until_connected("shop")
    await world.until_runs(shop, 1)
    assert await world.answer(shop) == answer
    assert await asyncio.to_thread(shop.model_pids) == pids
