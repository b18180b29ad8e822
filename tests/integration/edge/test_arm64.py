"""A device for arm64: the agent of an arm64 Python on a Debian for arm64, run by QEMU."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import bed_system
import pytest
from agent_footprint import footprint
from bed_device import System
from bed_place import Unavailable
from counting_link import counting_link
from edge_world import PATIENCE, World
from pushed_images import Pushed, Pusher
from testbed_fixtures import DockerEngine, Testbed, fresh_name
from waiting import eventually

from hatoba.v1 import device_pb2, model_pb2

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
REJECTED = device_pb2.DEVICE_STAGE_REJECTED
PYTHON = "python3"
LAYER = 6_000_000
LITTLE = 20_000
"""Bytes of a registry's answers that are indexes, manifests and configurations, but no layer."""
AMD_PROGRAM = Path(sys.executable)
WHY = {
    "version": "its image is there for amd64, the device is arm64",
    "index": "the image is there for amd64, this device is arm64",
    "lie": "the image is for amd64, this device is arm64",
}
MADE_FOR_AMD = "python3 in the image is made for amd64, this device is arm64"


@pytest.fixture(scope="module")
def system(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory, full_round: bool) -> System:
    """What is on a disk of an arm64 machine."""
    if not full_round and not bed_system.is_made():
        pytest.skip("Debian for arm64 takes minutes to make: make long, or demo-edge, does it once")
    testbed.up("arm64")
    try:
        return bed_system.system(tmp_path_factory.mktemp("arm64"))
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
async def push(registry: str) -> AsyncIterator[Pusher]:
    async with aiohttp.ClientSession() as session:
        yield Pusher(session, registry, fresh_name("arm"))


async def test_it_runs_a_model_and_is_told_of_as_what_it_is(world: World, system: System) -> None:
    shop = await world.device("shop", system=system)
    told = (await world.get("shop")).platform
    assert (told.architecture, told.variant) == ("arm64", "")
    await world.deploy(await world.model("one", python=PYTHON))
    await world.until_runs(shop, 1)
    answer = await world.answer(shop)
    assert (answer["name"], answer["machine"]) == ("one", "aarch64")
    found = await footprint(shop, 5.0)
    print(f"arm64 under QEMU, at rest: {found.memory / 1e6:.1f} MB, {found.share:.2%} of a core")
    await asyncio.to_thread(shop.power_cut)
    await asyncio.to_thread(shop.boot)
    assert (await world.answer(shop))["machine"] == "aarch64"


async def test_what_is_for_another_machine_is_refused(
    world: World, system: System, push: Pusher, docker_engine: DockerEngine
) -> None:
    """Before a layer comes, both named; only a program that belies all labels takes its layer."""
    images, address = await made(push), world.network.address
    host, _, port = push.host.partition(":")
    async with counting_link(host, int(port), address) as mirror:
        await machine(world, system, docker_engine, f"{address}:{mirror.port}")
        for name, why in WHY.items():
            await refused(world, name, images[name], why)
        assert mirror.carried < LITTLE
        await refused(world, "program", images["program"], MADE_FOR_AMD)
    listed = await asyncio.to_thread(docker_engine.docker, "image", "ls", "--digests")
    assert images["program"][1].digest not in listed


async def machine(world: World, system: System, engine: DockerEngine, mirror: str) -> None:
    """One with a container engine, which reaches all registries by a mirror."""
    seen = replace(system, shown=Path(engine.socket).parent)
    shop = await world.machine("shop", system=seen)
    await asyncio.to_thread(shop.power_on)
    token = await world.token({"site": "tokyo"})
    await world.enroll(shop, "shop", token, "--engine", engine.socket)
    words = ("agent", "registry", "*", "--at", mirror, "--plain", "--data", shop.data)
    assert (await asyncio.to_thread(shop.hatoba, *words)).returncode == 0
    await asyncio.to_thread(shop.start_agent)
    await world.until_connected("shop")


async def made(push: Pusher) -> dict[str, tuple[str, Pushed]]:
    """Images with the architecture that their version is said to have been built for."""
    noise = bytes(LAYER)
    program = await asyncio.to_thread(_head_of, AMD_PROGRAM)
    amd = await push.image({"main": noise}, "amd64")
    arm = await push.image({"usr/bin/python3": program + noise, "main": b"#!/bin/sh"}, "arm64")
    return {
        "version": ("amd64", amd),
        "index": ("arm64", await push.index((amd, "amd64", ""))),
        "lie": ("arm64", await push.index((amd, "arm64", ""))),
        "program": ("arm64", arm),
    }


def _head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


async def refused(world: World, name: str, image: tuple[str, Pushed], why: str) -> None:
    """Deploy it, and wait until that is why it is refused."""
    version = await world.model(name, python=PYTHON)
    request = model_pb2.RecordImagesRequest(name=version)
    architecture, pushed = image
    reference = f"{pushed.host}/{pushed.name}:{name}"
    request.images.add(
        architecture=architecture, reference=reference, digest=pushed.digest, pushed=True
    )
    await world.wire.once(request, model_pb2.ModelVersion)
    await world.deploy(version, name=name)

    async def look() -> device_pb2.RolloutDevice | None:
        row = (await world.rows(name)).get("shop")
        return row if row is not None and row.stage == REJECTED else None

    found = await eventually(look, PATIENCE)
    assert why in found.cause.message
