"""The agent's link to AWS IoT on a real broker, mosquitto: TLS with certificates, sessions that are
kept, links that are cut or held, a broker that restarts, and another client with the same id.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from held_link import HeldLink
from iot_policy import rights
from linked_thing import LinkedThing
from mosquitto_yard import HOST, Mosquitto, SmallIot, mosquitto, running, small_iot
from mqtt_client import MqttClient
from waiting import until

from hatoba import shadows
from hatoba.v1 import device_pb2
from hatoba_plugins.conformance.sites import document, report
from hatoba_worker import keys
from hatoba_worker.agent import mqtt, mqtt_link
from hatoba_worker.agent.provisioning import request
from hatoba_worker.agent.redial import FIRST_WAIT

__all__ = ["mosquitto"]

THING, OTHER = "hatoba-cam-1", "hatoba-cam-2"


@pytest.fixture
async def iot(mosquitto: Mosquitto) -> AsyncIterator[SmallIot]:
    """AWS IoT behind the broker."""
    async with small_iot(mosquitto) as made:
        yield made


@pytest.fixture
async def net(mosquitto: Mosquitto) -> AsyncIterator[HeldLink]:
    """What carries the device to the broker."""
    made = HeldLink(mosquitto.port)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def device(mosquitto: Mosquitto, net: HeldLink, tmp_path: Path) -> AsyncIterator[LinkedThing]:
    """A device that is on, over a network that can be cut."""
    made = await asyncio.to_thread(enrolled, tmp_path / "device", mosquitto, net.port)
    async with made.running():
        yield made


def enrolled(data: Path, broker: Mosquitto, port: int, name: str = "cam-1") -> LinkedThing:
    data.mkdir()
    made, thing = LinkedThing(data, redials=True), f"hatoba-{name}"
    made.hello_said = device_pb2.DeviceHello(device=name, incarnation="0123456789")
    certificate, authority = broker.signed(request(data), thing), broker.authority.pem.read_text()
    made.enroll(name, f"{HOST}:{port}", thing, certificate, authority)
    return made


async def up(device: LinkedThing, times: int = 1) -> None:
    """Wait until it has been connected so often."""
    await device.news.until(lambda: device.ups.count(True) >= times)


async def hears(device: LinkedThing, generation: int) -> None:
    await device.news.until(lambda: device.heard and device.heard[-1].generation == generation)


async def test_what_is_wishcomes_and_what_is_said_arrives(
    iot: SmallIot, device: LinkedThing
) -> None:
    await up(device)
    await iot.want(THING, document(1))
    await hears(device, 1)
    await device.tells(report(1))
    await iot.news.until(lambda: iot.report(THING) == report(1))
    assert iot.said(THING).there
    assert device.clock.certain


async def test_it_says_goodbye(
    mosquitto: Mosquitto, iot: SmallIot, net: HeldLink, tmp_path: Path
) -> None:
    device = await asyncio.to_thread(enrolled, tmp_path / "device", mosquitto, net.port)
    async with device.running():
        await up(device)
        await iot.news.until(lambda: iot.said(THING).there)
    await iot.news.until(lambda: not iot.said(THING).link)


async def test_who_is_not_known_is_not_let_in(
    mosquitto: Mosquitto, iot: SmallIot, net: HeldLink, tmp_path: Path
) -> None:
    device = await asyncio.to_thread(enrolled, tmp_path / "device", mosquitto, net.port)
    await asyncio.to_thread(make_foreign, device, tmp_path)
    async with device.running():
        await device.news.until(lambda: len(device.waits) > 1)
        assert not device.ups.count(True)
        assert device.link.problem
    assert not iot.said(THING).version


def make_foreign(device: LinkedThing, tmp_path: Path) -> None:
    """Its certificate is of somebody else's authority."""
    other, key = Mosquitto(tmp_path / "other"), keys.new_key()
    certificate = other.signed(keys.request_for(key))
    keys.write_own(device.identity.current().path, key, certificate)


async def test_what_came_while_it_was_cut_off_is_kept_for_it(
    iot: SmallIot, device: LinkedThing, net: HeldLink
) -> None:
    await up(device)
    await iot.want(THING, document(1))
    await hears(device, 1)
    # The session has it, whatever becomes of the question.
    iot.mute.add("/hatoba/get")
    net.there = 1
    net.cut()
    await device.news.until(lambda: not device.link.connected and device.waits)
    await iot.want(THING, document(2))
    await iot.want(THING, document(3))
    net.there = iot.broker.port
    await hears(device, 3)
    await up(device, 2)


async def test_of_a_session_that_is_lost_nothing_is_missed(
    mosquitto: Mosquitto, iot: SmallIot, device: LinkedThing
) -> None:
    await up(device)
    await mosquitto.stop(signal.SIGKILL)
    await device.news.until(lambda: not device.link.connected)
    await mosquitto.start()
    async with small_iot(mosquitto) as other:
        await other.want(THING, document(5))
        await hears(device, 5)
        await device.tells(report(5))
        await other.news.until(lambda: other.report(THING) == report(5))


async def test_a_broker_that_restarts_keeps_the_session(
    mosquitto: Mosquitto, iot: SmallIot, device: LinkedThing
) -> None:
    await up(device)
    await mosquitto.stop()
    await device.news.until(lambda: not device.link.connected)
    await mosquitto.start()
    await up(device, 2)
    assert "(p2, c0, k60" in await asyncio.to_thread((mosquitto.root / "log").read_text)


async def test_another_client_with_its_name_is_answered_with_patience(
    mosquitto: Mosquitto, iot: SmallIot, device: LinkedThing, tmp_path: Path
) -> None:
    await up(device)
    for round_ in range(2, 5):
        other = await MqttClient.connect(mosquitto.plain, THING)
        await up(device, round_)
        await other.leave()
    assert len(device.waits) >= 3
    assert min(device.waits) >= FIRST_WAIT
    await iot.want(THING, document(1))
    await hears(device, 1)


async def test_a_link_that_carries_nothing_is_noticed(
    iot: SmallIot,
    mosquitto: Mosquitto,
    net: HeldLink,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mqtt, "KEEP_ALIVE", 1)
    device = await asyncio.to_thread(enrolled, tmp_path / "device", mosquitto, net.port)
    async with device.running():
        await up(device)
        net.hold()
        await up(device, 2)
        await iot.want(THING, document(1))
        await hears(device, 1)


async def test_the_doorbell_has_it_look(iot: SmallIot, device: LinkedThing) -> None:
    await up(device)
    await iot.news.until(lambda: iot.asked.count(f"$aws/things/{THING}/shadow/name/hatoba/get"))
    # It hears of no change, and is rung for.
    iot.asked.clear()
    await iot.ring(THING)
    await iot.news.until(lambda: f"$aws/things/{THING}/shadow/name/hatoba/get" in iot.asked)


async def test_who_is_taken_for_gone_says_hello_again(iot: SmallIot, device: LinkedThing) -> None:
    await up(device)
    await device.tells(report(1))
    await iot.news.until(lambda: iot.report(THING) == report(1))
    first = iot.said(THING).link
    await iot.take_for_gone(THING)
    await iot.news.until(lambda: iot.said(THING).link != first)
    await iot.news.until(lambda: iot.report(THING) == report(1))
    assert device.ups == [True]


async def test_a_refusal_is_told_and_tried_again(iot: SmallIot, device: LinkedThing) -> None:
    await up(device)
    iot.refuses["/hatoba-said/update"] = {"code": 429, "message": "Too many requests"}
    device.link.tell(report(1))
    await device.news.until(lambda: not device.link.connected)
    assert "429 Too many requests" in device.link.problem
    iot.refuses.clear()
    await iot.news.until(lambda: iot.report(THING) == report(1))


async def test_what_is_old_or_cannot_be_read_changes_nothing(
    iot: SmallIot, device: LinkedThing
) -> None:
    await up(device)
    for generation in (1, 2):
        await iot.want(THING, document(generation))
    await hears(device, 2)
    topic = shadows.topic(THING, "hatoba", "update/delta")
    late = shadows.wanted(9, shadows.pack(document(9)), 60)["desired"]
    for told in (
        {"version": 1, "state": late},
        {"version": 90, "state": {"generation": 9, "set": "what is this"}},
        {"version": 91, "state": {**late, "generation": 8}},
        {"version": "92", "state": late},
        {"version": 93},
        ["nothing"],
    ):
        await iot.tell(topic, told)
    await iot.tell(shadows.topic(THING, "hatoba-said", "update/delta"), {"state": 5})
    # The next look says what is so.
    await iot.ring(THING)
    await iot.want(THING, document(3))
    await iot.ring(THING)
    await hears(device, 3)
    assert {one.generation for one in device.heard} == {1, 2, 3}
    assert device.ups == [True]


async def test_a_long_report_goes_into_several_shadows(iot: SmallIot, device: LinkedThing) -> None:
    await up(device)
    long, rng = report(1, slots=60), random.Random(1)
    for slot in long.slots:
        slot.cause.message = "".join(chr(rng.randrange(33, 127)) for _ in range(250))
    await device.tells(long)
    await iot.news.until(lambda: iot.said(THING).parts > 1)
    said = iot.said(THING)
    names = shadows.part_names("hatoba-said", said.parts)
    parts = [iot.told(THING, name) for name in names]
    assert {one["turn"] for one in parts} == {said.turn}
    text = "".join(one["report"] for one in parts)
    assert shadows.unpack(text, device_pb2.DeviceReport) == long


async def test_who_has_nothing_to_say_says_that_it_lives_and_looks(
    iot: SmallIot, device: LinkedThing
) -> None:
    await up(device)
    await iot.want(THING, document(1), every=1)
    await hears(device, 1)
    asked = iot.asked.count(shadows.topic(THING, "hatoba", "get"))
    version = iot.said(THING).version
    await iot.news.until(lambda: iot.said(THING).version > version + 1)
    await iot.news.until(lambda: iot.asked.count(shadows.topic(THING, "hatoba", "get")) > asked + 1)
    assert iot.said(THING).there


async def test_what_it_keeps_is_sent_piece_by_piece_and_only_once(
    iot: SmallIot, device: LinkedThing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_link, "RECORDS_EVERY", 0.0)
    await device.records.open()
    for number in range(5):
        device.records.happened("boot", f"number {number}")
    await device.records.flush()
    await up(device)
    # Nobody hears it yet.
    await iot.want(THING, document(1))
    await hears(device, 1)
    assert not iot.pieces
    await iot.want(THING, document(2), records=True)
    await iot.news.until(lambda: len(iot.records) == 5)
    iot.stores = False
    device.records.happened("bad", "the last")
    await device.records.flush()
    await iot.news.until(lambda: len(iot.pieces) > 1)
    # That piece was lost; with another connection it comes again, and what is stored does not.
    iot.stores = True
    await device.tunnel.cut()
    await up(device, 2)
    await iot.news.until(lambda: len(iot.records) == 6)
    told = [iot.records[at].happening.message for at in sorted(iot.records)]
    assert told == [*(f"number {number}" for number in range(5)), "the last"]
    assert [one.first for one in iot.pieces] == [1, 6, 6]
    await until(lambda: device.records.durable == 6)


# -- a hostile device, and the policy that devices have -------------------------------------------


@pytest.fixture
async def listed(tmp_path: Path) -> AsyncIterator[SmallIot]:
    """AWS IoT with our policy of devices."""
    async with running(tmp_path / "broker", rights()) as broker, small_iot(broker) as made:
        yield made


def forgeries() -> dict[str, object]:
    """What one device would say to another, for it, and to the server in its name."""
    wish = shadows.wanted(9, shadows.pack(document(9)), 60)["desired"]
    state = shadows.report_states(report(9), "link", 1)[0]
    records = device_pb2.DeviceRecords(first=1)
    records.records.add().log.text = "all is lost"
    told = {"version": 99, "state": wish}
    return {
        shadows.topic(THING, "hatoba", "update/delta"): told,
        shadows.topic(THING, "hatoba", "get/accepted"): {"version": 99, "state": {"desired": wish}},
        shadows.topic(THING, "hatoba", "update"): {"state": {"desired": wish}},
        shadows.topic(THING, "hatoba-said", "update"): {"state": state},
        shadows.topic(THING, "hatoba-said-2", "update"): {"state": state},
        shadows.records_topic(THING): {"records": shadows.pack(records)},
        # What is wanted of itself is not for it to say either.
        shadows.topic(OTHER, "hatoba", "update"): {"state": {"desired": wish}},
        "$aws/certificates/create-from-csr/json": {"certificateSigningRequest": "none"},
    }


async def test_a_device_neither_speaks_for_another_nor_hears_what_is_for_it(
    listed: SmallIot, tmp_path: Path
) -> None:
    """Both have the rights of our own policy, and who means no harm gets along with them."""
    device, hostile = [
        await asyncio.to_thread(enrolled, tmp_path / name, listed.broker, listed.broker.port, name)
        for name in ("cam-1", "cam-2")
    ]
    async with device.running(), hostile.tunnel.open():
        await hostile.shown.choose()
        await up(device)
        await listed.want(THING, document(1))
        await hears(device, 1)
        await device.tells(report(1))
        await listed.news.until(lambda: listed.report(THING) == report(1))
        async with mqtt.connected(str(hostile.tunnel.path), OTHER, kept=False) as client:
            await does_harm(client, listed)
            await listed.want(THING, document(2))
            await hears(device, 2)
            await device.tells(report(2))
            await listed.news.until(lambda: listed.report(THING) == report(2))
            # Nothing came to it of all this: the first that does is its own.
            await listed.want(OTHER, document(5))
            first = await anext(client.messages())
            assert first.topic == shadows.topic(OTHER, "hatoba", "update/delta")
    assert {one.generation for one in device.heard} == {1, 2}
    assert device.ups == [True]


async def does_harm(client: mqtt.Connection, iot: SmallIot) -> None:
    """All of it is dropped, and what is its own to say is not."""
    for topics in (
        [f"$aws/things/{THING}/#", f"hatoba/{THING}/records"],
        ["$aws/things/+/shadow/name/+/update/delta"],
        [shadows.topic(OTHER, "hatoba", "update/delta")],
    ):
        await client.subscribe(topics)
    before = iot.report(THING), iot.said(THING).version, len(iot.pieces)
    for topic, told in forgeries().items():
        await client.publish(topic, json.dumps(told).encode())
    own = shadows.topic(OTHER, "hatoba-said", "get")
    await client.publish(own, b"")
    await iot.news.until(lambda: own in iot.asked)
    assert (iot.report(THING), iot.said(THING).version, len(iot.pieces)) == before
    assert not {shadows.topic(one, "hatoba", "update") for one in (THING, OTHER)} & {*iot.asked}
    assert "$aws/certificates/create-from-csr/json" not in iot.asked
