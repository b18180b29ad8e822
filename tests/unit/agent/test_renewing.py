"""Certificates over time: a new one is shown first, proven by a welcome, and given up by none."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from authority import DAY
from cryptography import x509
from device_site import DeviceSite
from linked_device import LinkedDevice

from hatoba_worker.agent.settings import Settings

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DeviceSite]:
    made = await asyncio.to_thread(DeviceSite, tmp_path)
    await made.start()
    yield made
    await made.stop()


async def enrolled(
    site: DeviceSite, root: Path, age: int, built: dt.datetime | None = None
) -> LinkedDevice:
    """A device whose certificate is so many of its thirty days old; the next one is fresh."""
    device = LinkedDevice(site, root / "device", built=built)
    site.begins = site.today - age * DAY
    await asyncio.to_thread(device.enroll)
    site.begins = site.today - DAY / 2
    return device


def current(device: LinkedDevice) -> int:
    found = device.identity.current().path.read_bytes()
    return x509.load_pem_x509_certificate(found).serial_number


async def test_what_is_young_is_left_alone(site: DeviceSite, tmp_path: Path) -> None:
    device = await enrolled(site, tmp_path, 19)
    async with device.running():
        await device.connected()
        assert len(site.serials) == 1


async def test_at_two_thirds_of_its_life_another_one_takes_its_place(
    site: DeviceSite, tmp_path: Path
) -> None:
    device = await enrolled(site, tmp_path, 21)
    async with device.running():
        await site.news.until(lambda: site.streams == 2)
        await device.news.until(lambda: device.ups == [True, False, True])
    old, new = site.serials
    assert site.shown == [old, new]
    assert device.waits == []
    assert await asyncio.to_thread(current, device) == new
    assert await asyncio.to_thread(device.identity.candidate) is None


async def test_one_that_the_server_does_not_know_is_given_up_for_the_old_one(
    site: DeviceSite, tmp_path: Path
) -> None:
    device = await enrolled(site, tmp_path, 21)

    class Forgetful(set[int]):
        """All but the first."""

        def __contains__(self, serial: object) -> bool:
            return serial != site.serials[0]

    site.unknown = Forgetful()
    async with device.running():
        await device.news.until(lambda: device.ups == [True, False, False, True])
        site.trouble = grpc.StatusCode.UNAVAILABLE
    assert site.shown[:3] == [site.serials[0], site.serials[1], site.serials[0]]
    assert await asyncio.to_thread(current, device) == site.serials[0]


async def test_a_cut_does_not_decide_against_a_new_one(site: DeviceSite, tmp_path: Path) -> None:
    device = await enrolled(site, tmp_path, 21)
    async with device.running():
        await device.connected()
        await site.news.until(lambda: len(site.serials) == 2)
        await site.stop()
        await device.tried(2)
        await site.start()
        await site.news.until(lambda: site.shown[-1] == site.serials[1])
        await device.connected()
    assert await asyncio.to_thread(current, device) == site.serials[1]


async def test_one_that_has_ended_asks_for_another_before_anything_else(
    site: DeviceSite, tmp_path: Path
) -> None:
    device = await enrolled(site, tmp_path, 1)
    site.life = 60 * DAY
    site.time = (site.today + 40 * DAY).timestamp()
    device.date = site.time
    device.clock.learn(site.time)
    async with device.running():
        await device.connected()
    assert site.shown == [site.serials[1]]
    assert await asyncio.to_thread(current, device) == site.serials[1]


async def test_where_the_date_is_not_sure_what_seems_over_is_shown_all_the_same(
    site: DeviceSite, tmp_path: Path
) -> None:
    device = await enrolled(site, tmp_path, 1)
    device.date = (site.today + 40 * DAY).timestamp()
    async with device.running():
        await device.connected()
        assert site.shown == [site.serials[0]]
        assert site.proofs == 0


async def test_one_that_is_not_taken_any_more_asks_for_another_by_turns(
    site: DeviceSite, tmp_path: Path
) -> None:
    device = await enrolled(site, tmp_path, 1)
    site.unknown.add(site.serials[0])
    async with device.running():
        await device.connected()
    assert site.shown == site.serials
    assert len(device.waits) == 1


async def test_one_that_tls_refuses_is_renewed_by_proof_though_no_clock_says_that_it_ended(
    site: DeviceSite, tmp_path: Path
) -> None:
    device = await enrolled(site, tmp_path, 40, built=site.today - 1_000 * DAY)
    device.date = 0.0
    async with device.running():
        await device.tried()
        assert "without a word" in device.link.problem
        await device.connected()
    assert site.proofs == 1
    assert site.shown == [site.serials[1]]


async def test_one_that_was_forgotten_stays_away_and_is_tried_for_ever(
    site: DeviceSite, tmp_path: Path
) -> None:
    device = await enrolled(site, tmp_path, 1)
    site.unknown.add(site.serials[0])
    site.forgotten.add(site.serials[0])
    async with device.running():
        await device.tried(6)
        assert "UNAUTHENTICATED" in device.link.problem
    assert 2 <= site.proofs <= 4
    assert len(site.serials) == 1


async def test_where_the_ordinary_port_is_away_both_are_tried_by_turns(
    site: DeviceSite, tmp_path: Path
) -> None:
    device = await enrolled(site, tmp_path, 1)
    known = await asyncio.to_thread(Settings.load, device.data)
    assert known is not None
    await asyncio.to_thread(replace(known, server="localhost:1").save, device.data)
    site.unknown.add(site.serials[0])
    async with device.running():
        await device.tried(2)
        assert "localhost:1: " in device.link.problem
        assert "Connect call failed" in device.link.problem
        site.unknown.clear()
        await device.connected()


async def test_a_certificate_for_another_key_is_not_taken(site: DeviceSite, tmp_path: Path) -> None:
    device = await enrolled(site, tmp_path, 21)
    site.answers_others = True
    async with device.running():
        await device.tried(2)
        assert device.link.connected
        site.answers_others = False
        await site.news.until(lambda: site.streams == 2)
        await device.connected()
    assert site.shown == [site.serials[0], site.serials[-1]]


async def test_what_was_damaged_is_said_and_the_link_goes_on_trying(
    site: DeviceSite, tmp_path: Path
) -> None:
    device = await enrolled(site, tmp_path, 1)
    current_path = (await asyncio.to_thread(device.identity.current)).path
    whole = await asyncio.to_thread(current_path.read_bytes)
    await asyncio.to_thread(current_path.write_bytes, whole[:100] + b"\xff\xff")
    async with device.running():
        await device.tried(2)
        assert "not enrolled" in device.link.problem
        await asyncio.to_thread(current_path.write_bytes, whole)
        await device.connected()
