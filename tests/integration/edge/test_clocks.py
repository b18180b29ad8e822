"""Machines whose clocks are wrong, in 1970, three days behind, ten years ahead, in 2038, or are set
while they run.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wrong_clock
from bed_device import FarMachine
from edge_world import QUICK_LINKS, World
from waiting import eventually, until

from hatoba.v1 import device_pb2

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(wrong_clock.why_not()), reason=wrong_clock.why_not()),
]
BAKING = "SLOT_PHASE_BAKING"
DAY = 86_400.0
NEAR = 60.0
IN_2038 = dt.datetime(2038, 1, 20, tzinfo=dt.UTC).timestamp()
"""Seconds since 1970 do not go into 32 bits any more."""
CLOCKS = {
    "epoch": -time.time(),
    "behind": -3 * DAY,
    "ahead": 3_650 * DAY,
    "late": IN_2038 - time.time(),
}
YEAR = 365 * DAY
BAKE = 8.0
ABOUT = 3.0
"""Seconds: a device writes how it is at most once a second."""


async def test_whatever_its_clock_says_a_device_gets_what_is_wanted_and_tells_true_dates(
    world: World, tmp_path: Path
) -> None:
    library = await asyncio.to_thread(wrong_clock.built, tmp_path)
    async with asyncio.TaskGroup() as tasks:
        for name, off in CLOCKS.items():
            environ = wrong_clock.wrong_by(off, library)
            tasks.create_task(world.device(name, environ=environ))
    async with asyncio.TaskGroup() as tasks:
        for machine in world.machines.values():
            tasks.create_task(bakes_in_its_time(world, machine, 1))
        await world.deploy(await world.model("one"), bake=BAKE)
    for name, off in CLOCKS.items():
        machine = world.machines[name]
        assert await asyncio.to_thread(date_on, machine) == near(time.time() + off)
        assert await told_at(world, name) == near(time.time())
    async with asyncio.TaskGroup() as tasks:
        for machine in world.machines.values():
            tasks.create_task(runs_without_a_link(world, machine))
    await world.update(await world.model("two"), bake=0.5)
    for machine in world.machines.values():
        await world.until_runs(machine, 2)


async def bakes_in_its_time(world: World, machine: FarMachine, revision: int) -> None:
    """From when it runs there to when it is good."""
    await world.until_slot(machine, phase=BAKING, revision=revision)
    began = time.monotonic()
    await world.until_runs(machine, revision)
    assert time.monotonic() - began == pytest.approx(BAKE, abs=ABOUT)


async def test_a_clock_that_is_set_during_a_bake_changes_nothing(
    world: World, tmp_path: Path
) -> None:
    library = await asyncio.to_thread(wrong_clock.built, tmp_path)
    clock = await asyncio.to_thread(wrong_clock.JumpingClock.made, library)
    shop = await world.device("shop", environ=QUICK_LINKS | clock.environ)
    await world.deploy(await world.model("one"), bake=BAKE)
    await world.until_slot(shop, phase=BAKING)
    began = time.monotonic()
    before = await asyncio.to_thread(state_of, shop)
    for part, seconds in enumerate((YEAR, -YEAR), start=1):
        await asyncio.to_thread(clock.jump, seconds)
        assert await asyncio.to_thread(date_on, shop) == near(time.time() + seconds)
        look = began + part * BAKE / 3
        await until(lambda look=look: time.monotonic() > look)  # type: ignore[misc]
        assert (await world.get("shop")).connected
    await world.until_runs(shop, 1)
    assert time.monotonic() - began == pytest.approx(BAKE, abs=ABOUT)
    assert await asyncio.to_thread(state_of, shop) == before
    await world.update(await world.model("two"), bake=0.5)
    await world.until_runs(shop, 2)
    assert await told_at(world, "shop") == near(time.time())


def state_of(machine: FarMachine) -> tuple[int, list[int], int]:
    """Its agent, its models, and how often it has dialled."""
    dialled = machine.status()["link"]["connections"]
    return machine.agent_pid(), machine.model_pids(), int(dialled)


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
