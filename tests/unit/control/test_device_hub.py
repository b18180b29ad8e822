"""Streams of devices as the hub keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from hatoba.v1 import device_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import DeviceCame, DeviceTold, Synced
from hatoba_scheduler.control.device_hub import AFTER_STOP, DeviceHub, DeviceSession


def hello(name: str) -> device_pb2.DeviceHello:
    """A device that comes."""
    return device_pb2.DeviceHello(
        device=name, boot_id="boot", incarnation="i" * 8, installation="installation", generation=3
    )


def opened(hub: DeviceHub, name: str = "lamp") -> DeviceSession:
    """Its stream."""
    return hub.open(hello(name), "ipv4:127.0.0.1:1")


def hub_of(*names: str) -> tuple[DeviceHub, list[DeviceSession]]:
    """A hub to which these have come."""
    hub = DeviceHub(FakeClock(), 30.0)
    return hub, [opened(hub, name) for name in names]


def test_of_what_is_wanted_only_the_newest_waits() -> None:
    hub, (session,) = hub_of("lamp")
    for generation in (1, 2):
        assert hub.send("lamp", device_pb2.DeviceDesired(generation=generation))
    session.stored(7)
    first, second = session.take(), session.take()
    assert first is not None
    assert second is not None
    assert [one.desired.generation for one in first.items] == [2]
    assert [one.stored.position for one in second.items] == [7]
    assert session.take() is None


def test_who_serves_a_stream_hears_of_what_waited_before() -> None:
    hub, (session,) = hub_of("lamp")
    woken: list[str] = []
    hub.send("lamp", device_pb2.DeviceDesired(generation=1))
    session.listen(lambda: woken.append("waited"))
    assert woken == ["waited"]
    session.stored(1)
    assert len(woken) == 2


def test_nothing_waiting_wakes_nobody() -> None:
    _, (session,) = hub_of("lamp")
    woken: list[str] = []
    session.listen(lambda: woken.append("woken"))
    assert not woken


def test_those_that_are_told_the_same_share_one_message() -> None:
    hub, sessions = hub_of("a", "b", "c")
    desired = device_pb2.DeviceDesired(generation=1)
    for name in ("a", "b"):
        hub.send(name, desired)
    hub.send("c", device_pb2.DeviceDesired(generation=2))
    first, second, third = (one.take() for one in sessions)
    assert first is second
    assert third is not None
    assert third.items[0].desired.generation == 2


async def test_who_follows_later_is_told_what_was_said_before() -> None:
    hub, (session,) = hub_of("lamp")
    report = device_pb2.DeviceReport(generation=3, settled=True)
    hub.told(session, report)
    hub.told(session, device_pb2.DeviceReport(generation=2))
    watch = hub.watch()
    assert isinstance(watch, AsyncGenerator)
    async with aclosing(watch) as news, asyncio.timeout(10):
        assert await anext(news) == DeviceCame("lamp", hello("lamp"), "grpc")
        assert await anext(news) == DeviceTold("lamp", report)
        assert isinstance(await anext(news), Synced)


def test_the_more_devices_are_left_alone_the_longer_by_a_server_that_stops() -> None:
    hub, sessions = hub_of(*(f"device-{number}" for number in range(3_000)))
    hub.close()
    assert {one.farewell for one in sessions} == {AFTER_STOP + 1.5}
    few, (session,) = hub_of("lamp")
    few.close()
    assert AFTER_STOP <= session.farewell < AFTER_STOP + 0.1
    assert session.ended is not None


def works_of(session: DeviceSession) -> int:
    """How often a device is told that there are jobs."""
    count = 0
    while (response := session.take()) is not None:
        count += sum(one.HasField("work") for one in response.items)
    return count


def test_who_comes_hears_of_its_jobs_and_who_has_none_hears_nothing() -> None:
    hub = DeviceHub(FakeClock(), 30.0)
    hub.works = lambda device: device == "lamp"
    assert works_of(opened(hub, "lamp")) == 1
    assert works_of(opened(hub, "fan")) == 0


def test_who_is_there_hears_of_new_jobs_once() -> None:
    hub, (session,) = hub_of("lamp")
    woken: list[str] = []
    session.listen(lambda: woken.append("woken"))
    hub.tell_of_work("lamp")
    hub.tell_of_work("lamp")
    hub.tell_of_work("nobody")
    assert woken
    assert works_of(session) == 1
