"""Machines whose clocks are wrong: in 1970, three days behind, ten years ahead."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wrong_clock
from bed_device import FarMachine
from edge_world import World
from waiting import eventually

from hatoba.v1 import device_pb2

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(wrong_clock.why_not()), reason=wrong_clock.why_not()),
]
DAY = 86_400.0
NEAR = 60.0
CLOCKS = {"epoch": -time.time(), "behind": -3 * DAY, "ahead": 3_650 * DAY}


async def test_whatever_its_clock_says_a_device_gets_what_is_wanted_and_tells_true_dates(
    world: World, tmp_path: Path
) -> None:
    library = await asyncio.to_thread(wrong_clock.built, tmp_path)
    async with asyncio.TaskGroup() as tasks:
        for name, off in CLOCKS.items():
            environ = wrong_clock.wrong_by(off, library)
            tasks.create_task(world.device(name, environ=environ))
    await world.deploy(await world.model("one"))
    for name, off in CLOCKS.items():
        machine = world.machines[name]
        assert await asyncio.to_thread(date_on, machine) == near(time.time() + off)
        await world.until_runs(machine, 1)
        assert await told_at(world, name) == near(time.time())
    async with asyncio.TaskGroup() as tasks:
        for machine in world.machines.values():
            tasks.create_task(runs_without_a_link(world, machine))
    await world.update(await world.model("two"))
    for machine in world.machines.values():
        await world.until_runs(machine, 2)


async def runs_without_a_link(world: World, machine: FarMachine) -> None:
    """Booted with nobody to tell it the date; then its link is back."""
    assert machine.link is not None
    await asyncio.to_thread(machine.link.cut)
    await asyncio.to_thread(machine.power_cut)
    await asyncio.to_thread(machine.boot)
    assert (await world.answer(machine))["name"] == "one"
    await asyncio.to_thread(machine.link.mend)


def near(date: float) -> object:
    """That date, or a moment before or after."""
    return pytest.approx(date, abs=NEAR)


def date_on(machine: FarMachine) -> float:
    """What programs on a machine take for the date."""
    command = machine.command(sys.executable, "-c", "import time; print(time.time())")
    done = subprocess.run(command, env=dict(machine.environ), capture_output=True, check=True)
    return float(done.stdout)


async def told_at(world: World, device: str) -> float:
    """When the newest line of a device's log was written, as it told."""
    request = device_pb2.ListDeviceLogsRequest(name=device)

    async def lines() -> list[device_pb2.DeviceLog]:
        told = await world.wire.once(request, device_pb2.ListDeviceLogsResponse)
        return list(told.lines)

    return (await eventually(lines))[-1].time.ToNanoseconds() / 1e9
