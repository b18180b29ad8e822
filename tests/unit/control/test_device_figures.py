"""Numbers of devices and their roll-outs on the metrics page."""

from __future__ import annotations

from device_house import FleetHouse
from device_reports import BAD, CRASHES, GOOD

from hatoba_scheduler.control.device_figures import DAY, DEPLOYMENTS, DeviceFigures
from hatoba_scheduler.control.devices import Happening, put_into
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.devices import DeviceState

LIFE = 90


def samples(house: FleetHouse, name: str) -> dict[tuple[str, ...], float]:
    """What one family says now, by the values of its labels; without those that are 0."""
    made = DeviceFigures(house.devices, lambda: [house.loop], house.clock, LIFE)
    (family,) = [one for one in made.read() if one.name == name]
    return {tuple(one.labels.values()): one.value for one in family.samples if one.value}


async def test_devices_are_counted_by_state_and_link() -> None:
    async with FleetHouse().running() as house:
        await house.add("a", "b")
        await house.add("c", "d", comes=False)
        await house.devices.change(
            "d", lambda one: put_into(one, DeviceState.REVOKED), Happening("revoked", "", "ann")
        )
        assert samples(house, "hatoba_devices") == {
            ("ENROLLED", "connected"): 2,
            ("ENROLLED", "away"): 1,
            ("REVOKED", "away"): 1,
        }


async def test_who_is_behind_counts_also_while_it_is_away() -> None:
    async with FleetHouse().running() as house:
        await house.add("a")
        await house.add("b", comes=False)
        assert samples(house, "hatoba_devices_behind") == {}
        await house.deploy()
        assert samples(house, "hatoba_devices_behind") == {(): 2}
        await house.say(("a",), GOOD)
        assert samples(house, "hatoba_devices_behind") == {(): 1}


async def test_a_roll_out_is_counted_by_stage_also_on_another_server() -> None:
    house = FleetHouse()
    async with house.running():
        await house.add("a", "b", "c")
        await house.deploy(retries=0)
        assert samples(house, "hatoba_device_rollout") == {("default", "reader", "OFFERED"): 3}
        await house.say(("a", "b"), GOOD)
        await house.say(("c",), BAD, cause=CRASHES)
        told = {("default", "reader", "SUCCEEDED"): 2, ("default", "reader", "FAILED"): 1}
        assert samples(house, "hatoba_device_rollout") == told
    async with house.running():
        assert samples(house, "hatoba_device_rollout") == told


async def test_the_deployments_on_most_devices_are_shown() -> None:
    async with FleetHouse().running() as house:
        await house.add("a", comes=False)
        for number in range(DEPLOYMENTS + 1):
            await house.deploy(name=f"d-{number}")
        assert len(samples(house, "hatoba_device_rollout")) == DEPLOYMENTS


async def test_certificates_that_should_have_been_renewed_are_counted() -> None:
    async with FleetHouse().running() as house:
        now = round(house.clock.time() * 1e6)
        ends = {"fresh": LIFE, "renews": LIFE // 3 - 1, "ended": -1}
        for name, days in ends.items():
            await house.add(name, certificate_end=now + days * DAY)
        await house.add("by-aws", certificate_end=0)
        assert samples(house, "hatoba_device_certificates_ending") == {(): 2}
        await house.devices.change(
            "ended",
            lambda one: changed(one, state=DeviceState.REVOKED, version=one.version + 1),
            Happening("revoked", "", "ann"),
        )
        assert samples(house, "hatoba_device_certificates_ending") == {(): 1}


async def test_a_server_without_devices_tells_nothing_of_them() -> None:
    async with FleetHouse().running() as house:
        assert not list(DeviceFigures(house.devices, tuple, house.clock, LIFE).read())
