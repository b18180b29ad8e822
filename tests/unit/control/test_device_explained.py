"""Where a device is on the way to what is wanted of it, in a sentence."""

from __future__ import annotations

from device_house import FleetHouse
from device_reports import BAD, CRASHES

from hatoba.v1 import deployment_pb2
from hatoba_scheduler.domain.devices import Capacity
from hatoba_scheduler.services.device_words import explained

MIB = 1 << 20


def words(house: FleetHouse, name: str) -> str:
    """What is said of a device now."""
    now = round(house.clock.time() * 1e6)
    device = house.devices.named(name)
    return explained(device, house.loop.connected(name), house.loop.fleets(), now)


async def test_who_is_away_is_told_what_the_newest_needs_and_what_there_is() -> None:
    async with FleetHouse().running() as house:
        await house.add("a", capacity=Capacity(1.0, 1 << 30, 900 * MIB))
        live = await house.deploy()
        await house.work("a")
        await house.go("a")
        await house.update(live, 2, disk=410 * MIB, memory=64 * MIB)
        told = words(house, "a")
        assert "; gets generation 2 (reader: digits:2) when it comes; " in told
        assert (
            "reader: digits:2 needs 410 MiB of disk (it has 900 MiB)"
            " and 64 MiB of memory (it has 1,024 MiB)"
        ) in told
        await house.come("a", generation=1)
        assert "needs" not in words(house, "a")
        await house.work("a")
        await house.go("a")
        assert "needs" not in words(house, "a")


async def test_what_would_not_fit_is_said_before_its_turn_comes() -> None:
    async with FleetHouse().running() as house:
        await house.add("big", labels=(("ring", "canary"), ("site", "tokyo")))
        await house.add("small", comes=False, capacity=Capacity(1.0, 1 << 30, 220 * MIB))
        canary = deployment_pb2.DeviceGroup()
        canary.require.add(key="ring", values=["canary"])
        live = await house.deploy(groups=[canary], abort_share=1.0)
        await house.update(live, 2, disk=410 * MIB)
        told = words(house, "small")
        assert told.startswith("never connected; ")
        assert "would not fit: it needs 410 MiB of disk, there are 220 MiB" in told
        await house.work("big")
        told = words(house, "small")
        assert "the newest reader cannot be here: it needs 410 MiB" in told
        assert "there are 220 MiB (it is offered once that is different)" in told


async def test_what_failed_somewhere_says_how_it_is_tried_again() -> None:
    async with FleetHouse().running() as house:
        await house.add("a", "b")
        await house.deploy(abort_share=1.0)
        await house.work("a")
        await house.say(["b"], BAD, cause=CRASHES)
        told = words(house, "b")
        assert "failed here: It ended with exit code 1. (`hatoba deployments retry reader" in told
        assert "--device b` has it tried again)" in told
