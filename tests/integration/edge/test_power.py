"""The power fails at any moment of an update, and what was not synced is gone: without a network
the device comes back with what was good before, or what is new, and never with half of either.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Set
from functools import partial
from pathlib import Path

import pytest
from bed_device import FarMachine
from edge_versions import (
    Content,
    Version,
    boot_without_link,
    mend_link,
    pointed_device,
    said,
    spoil,
    stop_at,
    until_stopped,
    version,
)
from edge_world import NAME, QUICK_LINKS, World
from waiting import until

from hatoba.v1 import deployment_pb2

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
BITS = 40_000_000
SHOPS = ("north", "east", "south", "west")
SHORT, FULL = 12, 500
POINTS = [
    f"journal.{kind}.{where}"
    for kind in ("wanted", "staged", "switched", "good")
    for where in ("before", "between", "after")
]
AT_A_POINT = 2 / 3
"""Share of the updates of what is settled, about half of all, that are cut at one of these."""
LONGEST_UPDATE = 3.0
"""Seconds, about, from the order to the moment when it is good."""


async def fail(machine: FarMachine) -> None:
    """The power fails; it comes back, the network does not."""
    await asyncio.to_thread(machine.power_cut)
    await boot_without_link(machine)


def cut_once_written(machine: FarMachine, journal: Path, known: int, kind: str) -> None:
    """Have the power fail as soon as an entry of this kind stands in the journal, perhaps before it
    is on the disk.
    """
    mark, until = f'"kind":"{kind}"'.encode(), time.monotonic() + 60
    while mark not in journal.read_bytes()[known:]:
        assert time.monotonic() < until, f"nothing was {kind}"
    machine.power_cut()


async def test_after_a_power_cut_at_each_step_it_runs_what_was_good_or_is_new(
    world: World,
) -> None:
    shop = await world.device("shop", environ=QUICK_LINKS)
    before = await version(world, "one")
    await world.deploy(before.model)
    await world.until_runs(shop, 1)
    for revision, kind in enumerate(("wanted", "staged", "switched", "good"), start=2):
        journal = shop.seen / "journal"
        known = (await asyncio.to_thread(journal.stat)).st_size
        newer = await version(world, f"to be cut once {kind}")
        cut = asyncio.to_thread(cut_once_written, shop, journal, known, kind)
        await asyncio.gather(cut, world.update(newer.model))
        await boot_without_link(shop)
        assert await said(world, shop) in (before.content, newer.content), kind
        await mend_link(shop)
        await world.until_runs(shop, revision)
        assert await said(world, shop) == newer.content
        before = newer


async def cut_at(machine: FarMachine, point: str) -> None:
    """Have the power fail at a point of the journal; it comes back, the network does not."""
    await asyncio.to_thread(until_stopped, machine, point)
    await asyncio.to_thread(stop_at, machine)
    await fail(machine)


@pytest.mark.parametrize("where", ["before", "between", "after"])
async def test_cut_while_what_crashes_is_given_up_it_runs_what_was_good(
    world: World, where: str
) -> None:
    shop = await pointed_device(world, "shop")
    good, crashes = await version(world, "one"), await version(world, "two", does="crashes")
    await world.deploy(good.model)
    await world.until_runs(shop, 1)
    await asyncio.to_thread(stop_at, shop, point := f"journal.bad.{where}")
    await world.update(crashes.model)
    await cut_at(shop, point)
    assert await said(world, shop) == good.content
    await world.until_slot(shop, phase="SLOT_PHASE_BAD", revision=2, running=1)
    await mend_link(shop)
    # The server has taken it back.
    await world.until_runs(shop, 1)
    assert await said(world, shop) == good.content


@pytest.mark.parametrize("where", ["before", "between", "after"])
async def test_cut_while_it_is_removed_nothing_of_it_comes_back(world: World, where: str) -> None:
    shop = await pointed_device(world, "shop")
    await world.deploy((await version(world, "one")).model)
    await world.until_runs(shop, 1)
    await asyncio.to_thread(stop_at, shop, point := f"journal.removed.{where}")
    await select(world, "osaka")
    await cut_at(shop, point)
    await until(partial(has_nothing, shop))
    await mend_link(shop)
    await world.until_connected("shop")
    await select(world, "tokyo")
    await world.until_slot(shop, phase="SLOT_PHASE_GOOD")


def has_nothing(machine: FarMachine) -> bool:
    """Whether its agent of this boot runs nothing, and has nothing to run."""
    told, boot = machine.status(), (machine.root / f"boot-{machine.boots}").read_text().strip()
    has_slots = told.get("boot") != boot or told["report"].get("slots")
    return not has_slots and not machine.model_pids()


async def select(world: World, site: str) -> None:
    """The deployment is for devices of this site from now on."""
    request = deployment_pb2.UpdateDeploymentRequest(name=NAME, allow_removal=True)
    request.update_mask.paths.append("devices")
    request.spec.devices.selector.add(key="site", values=[site])
    await world.wire.once(request, deployment_pb2.Deployment)


async def test_what_was_spoiled_on_the_disk_is_found_out_and_fetched_anew(world: World) -> None:
    shop = await world.device("shop", environ=QUICK_LINKS)
    first, second = await version(world, "one"), await version(world, "two")
    await world.deploy(first.model)
    await world.until_runs(shop, 1)
    journal = shop.seen / "journal"
    known = (await asyncio.to_thread(journal.stat)).st_size
    cut = asyncio.to_thread(cut_once_written, shop, journal, known, "staged")
    await asyncio.gather(cut, world.update(second.model))
    await asyncio.to_thread(spoil, shop, second.content)
    await boot_without_link(shop)
    assert await said(world, shop) == first.content
    await mend_link(shop)
    await world.until_runs(shop, 2)
    assert await said(world, shop) == second.content


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(5_400)
async def test_whenever_the_power_fails_it_comes_back_with_what_was_good_or_is_new(
    world: World, full_round: bool
) -> None:
    """Cuts at random times of updates, half of which begin before the last one is through; a third
    of them just before an entry is in the journal, just after, or when one of its files has it.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    versions = [await version(world, name) for name in ("even", "odd")]
    cuts = (FULL if full_round else SHORT) // len(SHOPS)
    async with asyncio.TaskGroup() as shops:
        for name in SHOPS:
            rng = random.Random(f"{seed} {name}")
            one = Shop(world, name, versions, rng)
            shops.create_task(one.live(cuts), name=name)


class Shop:
    """A device whose power fails again and again."""

    def __init__(
        self, world: World, name: str, versions: list[Version], rng: random.Random
    ) -> None:
        self._world = world
        self._name = name
        self._versions = versions
        self._rng = rng
        self._revision = 0
        self._longest = 0.0

    async def live(self, cuts: int) -> None:
        """Updates, and so many power cuts."""
        world, name = self._world, self._name
        machine = await pointed_device(world, name, site=name)
        assert machine.link is not None
        await asyncio.to_thread(machine.link.slow, BITS)
        may_be = await self._release()
        await world.until_runs(machine, self._revision)
        settled = True
        for number in range(cuts):
            point = self._point() if settled else ""
            await asyncio.to_thread(stop_at, machine, point)
            if settled:
                may_be = {await said(world, machine)} | await self._release()
            await self._until(machine, point)
            await fail(machine)
            await self._comes_back(machine, may_be, f"cut {number} of {name} {point}")
            await mend_link(machine)
            settled = self._rng.random() < 0.5
            if settled:
                await world.until_runs(machine, self._revision)
        await world.until_runs(machine, self._revision)
        print(f"{name}: {cuts} power cuts, answers again after {self._longest:.1f} s at most")

    def _point(self) -> str:
        """Of the journal; empty: none, but any time."""
        return self._rng.choice(POINTS) if self._rng.random() < AT_A_POINT else ""

    async def _until(self, machine: FarMachine, point: str) -> None:
        """The moment of a cut."""
        if point:
            await asyncio.to_thread(until_stopped, machine, point)
            await asyncio.to_thread(stop_at, machine)
        else:
            await asyncio.sleep(self._rng.uniform(0, LONGEST_UPDATE))

    async def _comes_back(self, machine: FarMachine, may_be: Set[Content], when: str) -> None:
        began = time.monotonic()
        found = await said(self._world, machine)
        self._longest = max(self._longest, time.monotonic() - began)
        assert found in may_be, f"{when}: {found.name}"

    async def _release(self) -> set[Content]:
        """Another revision; what it says."""
        self._revision += 1
        chosen = self._versions[self._revision % 2]
        if self._revision == 1:
            await self._world.deploy(chosen.model, name=self._name, site=self._name)
        else:
            await self._world.update(chosen.model, name=self._name)
        return {chosen.content}
