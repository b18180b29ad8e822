"""The power fails at any moment of an update, and what was not synced is gone: without a network
the device comes back with what was good before, or what is new, and never with half of either.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

import pytest
from bed_device import FarMachine
from edge_world import QUICK_LINKS, World

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SIZE = 3 << 20
BITS = 40_000_000
SHOPS = ("north", "east", "south", "west")
SHORT, FULL = 12, 500
LONGEST_UPDATE = 3.0
"""Seconds, about, from the order to the moment when it is good."""


class Content(NamedTuple):
    """What a model says that is whole."""

    name: str
    weights: str


class Version(NamedTuple):
    """A model's version, and what it says."""

    model: str
    content: Content


async def version(world: World, name: str) -> Version:
    weights = os.urandom(SIZE)
    model = await world.model(name, weights)
    return Version(model, Content(name, hashlib.sha256(weights).hexdigest()))


async def said(world: World, machine: FarMachine) -> Content:
    answer = await world.answer(machine)
    return Content(answer["name"], answer["weights"])


async def fail(machine: FarMachine) -> None:
    """The power fails; it comes back, the network does not."""
    assert machine.link is not None
    await asyncio.to_thread(machine.power_cut)
    await asyncio.to_thread(machine.link.cut)
    await asyncio.to_thread(machine.boot)


async def mend(machine: FarMachine) -> None:
    assert machine.link is not None
    await asyncio.to_thread(machine.link.mend)


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
    assert shop.link is not None
    before = await version(world, "one")
    await world.deploy(before.model)
    await world.until_runs(shop, 1)
    for revision, kind in enumerate(("wanted", "staged", "switched", "good"), start=2):
        journal = shop.seen / "journal"
        known = (await asyncio.to_thread(journal.stat)).st_size
        newer = await version(world, f"to be cut once {kind}")
        cut = asyncio.to_thread(cut_once_written, shop, journal, known, kind)
        await asyncio.gather(cut, world.update(newer.model))
        await asyncio.to_thread(shop.link.cut)
        await asyncio.to_thread(shop.boot)
        assert await said(world, shop) in (before.content, newer.content), kind
        await mend(shop)
        await world.until_runs(shop, revision)
        assert await said(world, shop) == newer.content
        before = newer


async def test_what_was_spoiled_on_the_disk_is_found_out_and_fetched_anew(world: World) -> None:
    shop = await world.device("shop", environ=QUICK_LINKS)
    assert shop.link is not None
    first, second = await version(world, "one"), await version(world, "two")
    await world.deploy(first.model)
    await world.until_runs(shop, 1)
    journal = shop.seen / "journal"
    known = (await asyncio.to_thread(journal.stat)).st_size
    cut = asyncio.to_thread(cut_once_written, shop, journal, known, "staged")
    await asyncio.gather(cut, world.update(second.model))
    await asyncio.to_thread(spoil, shop, second.content)
    await asyncio.to_thread(shop.link.cut)
    await asyncio.to_thread(shop.boot)
    assert await said(world, shop) == first.content
    await mend(shop)
    await world.until_runs(shop, 2)
    assert await said(world, shop) == second.content


def spoil(machine: FarMachine, content: Content) -> None:
    """Turn one bit of what is on the disk of this content."""
    with machine.opened() as data:
        trees = data / "trees"
        weights = [one for one in trees.glob("*/weights*") if _digest(one) == content.weights]
        assert weights, "it is not on the disk"
        for path in weights:
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.seek(SIZE // 2)
                byte = file.read(1)[0]
                file.seek(SIZE // 2)
                file.write(bytes([byte ^ 1]))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(5_400)
async def test_whenever_the_power_fails_it_comes_back_with_what_was_good_or_is_new(
    world: World, full_round: bool
) -> None:
    """Cuts at random points of updates, which mostly begin before the last one is through."""
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
        machine = await world.device(name, site=name, environ=QUICK_LINKS)
        assert machine.link is not None
        await asyncio.to_thread(machine.link.slow, BITS)
        may_be = await self._release()
        await world.until_runs(machine, self._revision)
        settled = True
        for number in range(cuts):
            if settled:
                may_be = {await said(world, machine)} | await self._release()
            await asyncio.sleep(self._rng.uniform(0, LONGEST_UPDATE))
            await fail(machine)
            await self._comes_back(machine, may_be, f"cut {number} of {name}")
            await mend(machine)
            settled = self._rng.random() < 0.5
            if settled:
                await world.until_runs(machine, self._revision)
        await world.until_runs(machine, self._revision)
        print(f"{name}: {cuts} power cuts, answers again after {self._longest:.1f} s at most")

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
