"""A device that runs its model in an image, in an engine of its own: whatever dies in the middle of
an update, it comes back without a network and runs what was good or what is new, in that image.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest
from bed_edge_registry import EdgeRegistry, edge_registry
from bed_engine import SOCKET, EngineMachine
from bed_place import Broken, Unavailable
from edge_world import QUICK_LINKS, World

from hatoba.v1 import model_pb2

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1_800)]
SIZE = 1 << 20
SHORT, FULL = 4, 50
LONGEST_UPDATE = 4.0
"""Seconds, about, from the order to the moment when it is good."""
T = TypeVar("T")
Fault = Callable[[EngineMachine], None]


@pytest.fixture
async def registry(world: World, tmp_path: Path) -> AsyncIterator[EdgeRegistry]:
    """One that the world's devices reach; skips where no device can have an engine."""
    beside = ExitStack()

    def entered() -> EdgeRegistry:
        return beside.enter_context(edge_registry(tmp_path, world.network))

    made = await here(entered)
    try:
        yield made
    finally:
        await asyncio.to_thread(beside.close)


async def here(made: Callable[[], T]) -> T:
    """What is made; skips where it cannot be."""
    try:
        return await asyncio.to_thread(made)
    except (Unavailable, Broken) as reason:
        pytest.skip(f"no device can have an engine here: {reason}")


@pytest.fixture
async def shop(world: World, registry: EdgeRegistry) -> EngineMachine:
    """A device with an engine."""
    machine = await world.machine("shop", kind=EngineMachine, environ=QUICK_LINKS)
    assert isinstance(machine, EngineMachine)
    await asyncio.to_thread(machine.power_on)
    await here(machine.until_engine)
    token = await world.token({"site": "tokyo"})
    await world.enroll(machine, "shop", token, "--engine", SOCKET)
    words = ("agent", "registry", registry.address, "--plain", "--data", machine.data)
    assert (await asyncio.to_thread(machine.hatoba, *words)).returncode == 0
    await asyncio.to_thread(machine.start_agent)
    await world.until_connected("shop")
    return machine


def cut_power(machine: EngineMachine) -> None:
    """Everything dies at once, and what was not synced is gone."""
    machine.power_cut()
    machine.boot()


def kill_agent_and_engine(machine: EngineMachine) -> None:
    """kill -9 of both, whose containers the engine ends when it is there again."""
    machine.kill_engine()
    machine.kill_agent()
    machine.start_agent()
    machine.start_engine()


FAULTS: tuple[Fault, ...] = (cut_power, kill_agent_and_engine)


async def version(world: World, registry: EdgeRegistry, name: str) -> str:
    """A model that says this name, and runs in the image."""
    made = await world.model(name, os.urandom(SIZE))
    request = model_pb2.RecordImagesRequest(name=made)
    request.images.add(
        architecture="amd64",
        reference=registry.image.name,
        digest=registry.image.digest,
        pushed=True,
    )
    await world.wire.once(request, model_pb2.ModelVersion)
    return made


def strike(machine: EngineMachine, fault: Fault) -> None:
    """It has no network from now on, and this happens to it; its engine is there again after."""
    assert machine.link is not None
    machine.link.cut()
    fault(machine)
    machine.until_engine()


async def mend(machine: EngineMachine) -> None:
    assert machine.link is not None
    await asyncio.to_thread(machine.link.mend)


async def test_whatever_dies_it_runs_what_was_good_or_is_new_in_its_image(
    world: World, registry: EdgeRegistry, shop: EngineMachine, full_round: bool
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    versions = {name: await version(world, registry, name) for name in ("even", "odd")}
    await world.deploy(versions["even"])
    await world.until_runs(shop, 1)
    fetched = await asyncio.to_thread(registry.fetched)
    assert fetched > registry.image.size
    for number in range(1, 1 + (FULL if full_round else SHORT)):
        before, after = ("even", "odd") if number % 2 else ("odd", "even")
        ran = await asyncio.to_thread(shop.containers)
        await world.update(versions[after])
        await asyncio.sleep(rng.uniform(0, LONGEST_UPDATE))
        fault = FAULTS[number % len(FAULTS)]
        await asyncio.to_thread(strike, shop, fault)
        assert (await world.answer(shop))["name"] in (before, after), f"{fault.__name__} {number}"
        assert not set(ran) & set(await asyncio.to_thread(shop.containers))
        await mend(shop)
        await world.until_runs(shop, number + 1)
        assert (await world.answer(shop))["name"] == after
    assert await asyncio.to_thread(registry.fetched) == fetched
