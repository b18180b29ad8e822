"""The stream to the server: made again for ever, with what matters said first on each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from device_site import DEVICE, DeviceSite
from linked_device import LinkedDevice

from hatoba.v1 import device_pb2, worker_pb2
from hatoba_worker.agent.redial import FIRST_WAIT, LONGEST_WAIT, SPREAD

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

DEPLOYMENT = "projects/default/deployments/adder"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[DeviceSite]:
    made = await asyncio.to_thread(DeviceSite, tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def device(site: DeviceSite, tmp_path: Path) -> LinkedDevice:
    made = LinkedDevice(site, tmp_path / "device")
    await asyncio.to_thread(made.enroll)
    return made


async def test_it_says_who_it_is_and_hears_what_is_wanted(
    site: DeviceSite, device: LinkedDevice
) -> None:
    site.want(worker_pb2.ReplicaSpec(deployment=DEPLOYMENT, revision=3))
    async with device.running():
        await device.news.until(lambda: device.desired_of)
        assert [one.device for one in site.hellos] == [DEVICE]
        assert device.desired_of[0].wants[0].revision == 3
        assert device.link.connected
        assert device.link.problem == ""
        assert device.link.last_contact == pytest.approx(site.today.timestamp(), abs=60)
        site.want()
        await device.news.until(lambda: len(device.desired_of) == 2)
    assert device.ups == [True]


async def test_the_newest_report_alone_is_told_and_again_on_each_stream(
    site: DeviceSite, device: LinkedDevice
) -> None:
    for generation in (1, 2):
        device.link.tell(device_pb2.DeviceReport(generation=generation))
    async with device.running():
        await site.news.until(lambda: site.reports)
        await site.stop()
        await device.tried()
        device.link.tell(device_pb2.DeviceReport(generation=3))
        await site.start()
        await site.news.until(lambda: len(site.reports) == 2)
    assert [one.generation for one in site.reports] == [2, 3]


async def test_it_says_that_it_lives_when_it_has_nothing_else_to_say(
    site: DeviceSite, device: LinkedDevice
) -> None:
    site.alive_every = 0.1
    async with device.running():
        await site.news.until(lambda: site.alive >= 3)
    assert site.reports == []


async def test_records_are_sent_once_the_server_has_those_before(
    site: DeviceSite, device: LinkedDevice
) -> None:
    site.stores = False
    async with device.running():
        await device.connected()
        device.records.log("", "one")
        await device.records.flush()
        await site.news.until(lambda: site.batches)
        device.records.log("", "two")
        await device.records.flush()
        device.link.tell(device_pb2.DeviceReport(generation=1))
        await site.news.until(lambda: site.reports)
        assert len(site.batches) == 1
        site.stores = True
        site.say(stored=device_pb2.DeviceRecordsStored(position=1))
        await site.news.until(lambda: len(site.batches) == 2)
    assert [text for _, text in site.lines] == ["one", "two"]
    assert site.batches[1].first == 2


async def test_records_that_were_not_stored_are_sent_again(
    site: DeviceSite, device: LinkedDevice
) -> None:
    site.stores = False
    device.records.log("", "one")
    async with device.running():
        await device.records.flush()
        await site.news.until(lambda: site.batches)
        await site.stop()
        await device.tried()
        site.stores = True
        await site.start()
        await site.news.until(lambda: site.stored)
    assert [one.first for one in site.batches] == [1, 1]


async def test_records_beyond_what_a_day_may_cost_wait(site: DeviceSite, tmp_path: Path) -> None:
    device = LinkedDevice(site, tmp_path / "device", records_limit=200)
    await asyncio.to_thread(device.enroll)
    async with device.running():
        await device.connected()
        for number in (1, 2):
            device.records.log("", f"{number}" * 150)
            await device.records.flush()
            device.link.tell(device_pb2.DeviceReport(generation=number))
            await site.news.until(lambda number=number: len(site.reports) == number)  # type: ignore[misc]
            if number == 1:
                await site.news.until(lambda: site.stored == 1)
        assert len(site.batches) == 1


async def test_it_is_made_again_with_waits_that_grow(
    site: DeviceSite, device: LinkedDevice
) -> None:
    async with device.running():
        await device.connected()
        await site.stop()
        await device.tried(7)
        assert device.link.problem
        assert not device.link.connected
        assert device.link.way() is None
        await site.start()
        await device.connected()
        assert device.link.problem == ""
    waits = device.waits[:7]
    assert all(FIRST_WAIT <= one <= LONGEST_WAIT for one in waits)
    assert waits[0] <= SPREAD
    assert max(waits[3:]) > SPREAD
    assert len(set(waits)) == len(waits)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
    ],
)
async def test_whatever_the_server_says_it_is_asked_again(
    site: DeviceSite, device: LinkedDevice, code: grpc.StatusCode
) -> None:
    site.trouble = code
    async with device.running():
        await device.tried(3)
        assert code.name in device.link.problem
        site.trouble = None
        await device.connected()


async def test_a_server_that_goes_away_says_how_long_it_takes(
    site: DeviceSite, device: LinkedDevice
) -> None:
    async with device.running():
        await device.connected()
        away = worker_pb2.ServerGoingAway()
        away.after.FromSeconds(20)
        site.say(going_away=away)
        await device.tried()
        assert 20.0 < device.waits[0] < 30.0 + SPREAD
        await site.news.until(lambda: len(site.hellos) == 2)


async def test_without_an_identity_it_waits_for_one(site: DeviceSite, tmp_path: Path) -> None:
    device = LinkedDevice(site, tmp_path / "device")
    async with device.running():
        await device.tried(2)
        assert "hatoba agent enroll" in device.link.problem
        assert device.dials == 0
        await asyncio.to_thread(device.enroll)
        await device.connected()


async def test_a_clock_in_1970_does_not_matter_and_is_learned(
    site: DeviceSite, device: LinkedDevice
) -> None:
    device.date = 0.0
    site.time = site.today.timestamp() + 5 * 3_600.0
    async with device.running():
        await device.connected()
        assert device.clock.certain
        assert device.clock.now() == pytest.approx(site.time, abs=60)
        assert await asyncio.to_thread((device.data / "clock").exists)


async def test_a_server_whose_certificate_is_over_is_told_as_the_problem(
    site: DeviceSite, device: LinkedDevice
) -> None:
    device.date = site.today.timestamp() + 100 * 86_400.0
    device.clock.learn(device.date)
    async with device.running():
        await device.tried()
        assert "was good until" in device.link.problem


async def test_what_is_large_has_a_channel_of_its_own(
    site: DeviceSite, device: LinkedDevice
) -> None:
    async with device.running():
        await device.connected()
        way = device.link.way()
        assert way is not None
        assert dict(way.metadata) == {"authorization": f"Bearer dc_{DEVICE}"}
        async with asyncio.timeout(30):
            await way.channel.channel_ready()


async def test_before_each_dial_it_is_asked_whether_it_may(
    site: DeviceSite, device: LinkedDevice
) -> None:
    await site.stop()
    async with device.running():
        await device.tried(3)
    assert device.dials >= 3
