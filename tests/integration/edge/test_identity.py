"""Who devices are, over their lives: certificates that end, tokens that were used, one that is
revoked.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest
import wrong_clock
from bed_device import FarMachine
from cryptography import x509
from edge_world import QUICK_LINKS, World, certificate, edge_world
from waiting import until

from hatoba.v1 import device_pb2

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
CUT_WITHIN = 60.0


@pytest.mark.skipif(bool(wrong_clock.why_not()), reason=wrong_clock.why_not())
async def test_certificates_are_renewed_before_they_end_and_for_a_while_after(place: Path) -> None:
    """After seventeen hours in a drawer one that is good for a day, and after thirty one that has
    ended.
    """
    library = await asyncio.to_thread(wrong_clock.built, place)
    async with edge_world(place, more="certificate_days = 1") as world:
        for hours in (17, 30):
            name = f"off-for-{hours}"
            machine = await world.device(name, environ=QUICK_LINKS)
            first = await asyncio.to_thread(certificate, machine)
            await asyncio.to_thread(machine.power_cut)
            await world.later(hours, library)
            await asyncio.to_thread(machine.boot)
            await until(partial(renewed, machine, first))
            await asyncio.to_thread(machine.close)
            await world.later(0, library)


def renewed(machine: FarMachine, first: x509.Certificate) -> bool:
    """Whether it is connected by another certificate, and has no other one any more."""
    one_is_left = len(list((machine.seen / "tls").glob("device-*.pem"))) == 1
    connected = machine.status().get("link", {}).get("connected")
    return bool(connected) and one_is_left and certificate(machine) != first


async def test_who_is_revoked_is_cut_and_stays_out_and_runs_what_it_has(world: World) -> None:
    shop = await world.device("shop", environ=QUICK_LINKS)
    await world.deploy(await world.model("one"))
    await world.until_runs(shop, 1)
    began = time.monotonic()
    done = await world.cli("devices", "revoke", "shop", "--reason", "stolen", "--yes")
    assert done.code == 0, done.err
    await until(lambda: "revoked" in shop.status()["link"]["problem"], CUT_WITHIN)
    assert time.monotonic() - began < CUT_WITHIN
    await until(lambda: not shop.status()["link"]["connected"])
    dialled = shop.status()["link"]["connections"]
    await until(lambda: shop.status()["link"]["connections"] > dialled)
    assert not (await world.get("shop")).connected
    assert (await world.answer(shop))["name"] == "one"


async def test_a_token_makes_one_device_and_opens_nothing_else(world: World) -> None:
    first, second = await world.machine("first"), await world.machine("second")
    token = await world.token({"site": "tokyo"})
    for machine in (first, second):
        await asyncio.to_thread(machine.power_on)
    await world.enroll(first, "first", token)
    where = ("--server", world.server.address, "--token", token, "--data", second.data)
    refused = await asyncio.to_thread(second.hatoba, "agent", "enroll", *where)
    assert refused.returncode == 1
    assert "as many devices as it may" in refused.stderr
    # Again on the same machine is the same device, and no further use.
    await world.enroll(first, "first", token)
    listed = await world.wire.once(device_pb2.ListDevicesRequest(), device_pb2.ListDevicesResponse)
    assert [one.name for one in listed.devices] == ["devices/first"]
