"""What cannot be on a device is refused before a byte of it comes, and why is told."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from edge_world import World
from waiting import eventually

from hatoba.v1 import device_pb2, model_pb2

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
REJECTED = device_pb2.DEVICE_STAGE_REJECTED
MIB = 1 << 20
BIG = 48 * MIB
LITTLE = MIB // 2
"""Bytes of a link that keep a device connected, while nothing is fetched."""
MACHINES: dict[str, dict[str, Any]] = {
    "other": {},
    "unlimited": {"limits_memory": False},
    "small": {"disk_mib": 64},
    "tiny": {"disk_mib": 40},
}
WHY = {
    "other": "its image is there for arm64, the device is amd64",
    "unlimited": "enforces no limit on memory",
    "small": "MB of disk, and there are",
    "tiny": "it needs 48 MiB of disk, there are 3",
}


async def test_what_does_not_fit_is_refused_before_it_is_fetched(world: World) -> None:
    """Wrong machine, no memory cgroup; a disk that has no room for all of it, or for none of it."""
    async with asyncio.TaskGroup() as tasks:
        for name, fields in MACHINES.items():
            tasks.create_task(world.device(name, site=name, **fields))
    if not world.machines["small"].mounts:
        pytest.skip("this machine mounts no files, so that all disks are as large as its own")
    before = {name: await down(world, name) for name in MACHINES}
    big, for_arm = await world.model("one", os.urandom(BIG)), await world.model("two")
    await only_for_arm64(world, for_arm)
    await world.deploy(for_arm, name="other", site="other")
    await world.deploy(big, name="unlimited", site="unlimited", memory=256 * MIB)
    for name in ("small", "tiny"):
        await world.deploy(big, name=name, site=name)
    for name, why in WHY.items():
        assert why in (await rejected(world, name)).cause.message
        assert why in (await world.get(name)).explanation
        assert await down(world, name) - before[name] < LITTLE


async def test_where_nobody_enforces_limits_it_may_go_all_the_same_for_who_says_so(
    world: World,
) -> None:
    shop = await world.device("shop", limits_memory=False)
    await world.deploy(await world.model("one"), memory=256 * MIB, allow_unenforced_limits=True)
    await world.until_runs(shop, 1)


async def down(world: World, name: str) -> int:
    """Bytes that have come to a machine."""
    link = world.machines[name].link
    assert link is not None
    return (await asyncio.to_thread(link.carried)).down


async def only_for_arm64(world: World, version: str) -> None:
    """Have a version be one that was built for other machines."""
    request = model_pb2.RecordImagesRequest(name=version)
    request.images.add(
        architecture="arm64",
        reference=f"registry.example/{version}-arm64",
        digest=f"sha256:{'0' * 64}",
        pushed=True,
    )
    await world.wire.once(request, model_pb2.ModelVersion)


async def rejected(world: World, name: str) -> device_pb2.RolloutDevice:
    """Where the device of a deployment stands, once it is refused there."""

    async def look() -> device_pb2.RolloutDevice | None:
        row = (await world.rows(name)).get(name)
        return row if row is not None and row.stage == REJECTED else None

    return await eventually(look)
