"""The journal is damaged on the disk while the device is off, and it has no network when it comes
back: what was good runs, and the damage is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from bed_device import FarMachine
from edge_versions import (
    Version,
    boot_without_link,
    diagnosed,
    flip,
    mend_link,
    said,
    version,
)
from edge_world import PATIENCE, QUICK_LINKS, World
from waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
COPY = "journal.copy"
Damage = Callable[[Path], None]


def last_line(data: Path) -> None:
    path = data / "journal"
    flip(path, path.stat().st_size - 5)


def first_line(data: Path) -> None:
    flip(data / "journal", 20)


def gone(data: Path) -> None:
    """As a check of the file system leaves a file whose blocks are lost."""
    (data / "journal").unlink()


def first_line_of_both(data: Path) -> None:
    first_line(data)
    flip(data / COPY, 20)


def last_line_of_both(data: Path) -> None:
    last_line(data)
    flip(data / COPY, (data / COPY).stat().st_size - 5)


async def with_two(world: World) -> tuple[FarMachine, Version]:
    """A device on which a second version is good."""
    shop = await world.device("shop", environ=QUICK_LINKS)
    await world.deploy((await version(world, "one")).model)
    await world.until_runs(shop, 1)
    second = await version(world, "two")
    await world.update(second.model)
    await world.until_runs(shop, 2)
    return shop, second


async def comes_back(world: World, shop: FarMachine, damage: Damage) -> None:
    """The power fails, this happens to its disk, and it is on again without a network."""
    await asyncio.to_thread(shop.power_cut)

    def damaged() -> None:
        with shop.opened() as data:
            damage(data)

    await asyncio.to_thread(damaged)
    await boot_without_link(shop)


@pytest.mark.parametrize("damage", [last_line, first_line, gone])
async def test_what_one_file_lost_the_other_has(world: World, damage: Damage) -> None:
    shop, second = await with_two(world)
    before = await asyncio.to_thread((shop.seen / "journal").read_bytes)
    await comes_back(world, shop, damage)
    assert await said(world, shop) == second.content
    slot = await world.until_slot(shop, phase="SLOT_PHASE_GOOD", revision=2, running=2)
    assert not slot.get("cause")
    after = await asyncio.to_thread((shop.seen / "journal").read_bytes)
    assert after.startswith(before)


@pytest.mark.parametrize("damage", [last_line_of_both, first_line_of_both])
async def test_what_both_files_lost_ends_nothing(world: World, damage: Damage) -> None:
    shop, second = await with_two(world)
    await comes_back(world, shop, damage)
    assert await said(world, shop) == second.content
    third = await version(world, "three")
    await mend_link(shop)
    await world.update(third.model)
    await world.until_runs(shop, 3)
    assert await said(world, shop) == third.content


async def test_damage_is_told_on_the_device_and_by_the_server(world: World) -> None:
    shop, _ = await with_two(world)
    line = (await asyncio.to_thread((shop.seen / "journal").read_bytes)).splitlines(True)[0]
    await comes_back(world, shop, first_line)
    words = f"its journal was damaged: {len(line)} bytes cannot be read, its entries are all there"
    await world.answer(shop)
    assert words in await diagnosed(shop)
    await mend_link(shop)

    async def told() -> bool:
        events = await world.cli("devices", "events", "shop")
        return f"journal     {words}" in events.out

    await eventually(told, PATIENCE)
    assert words in (await world.get("shop")).explanation
    # The next boot finds what was put right.
    await asyncio.to_thread(shop.power_cut)
    await asyncio.to_thread(shop.boot)
    await world.answer(shop)
    assert "damaged" not in await diagnosed(shop)
