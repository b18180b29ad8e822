"""What is heard through a queue that loses, doubles and shuffles, and by looking."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from scripted_iot import CLUSTER_ID, SAID, IotDesk, iot_desk

from hatoba.shadows import Json, goodbye_state, hello_state, pack, report_states
from hatoba.v1 import device_pb2
from hatoba_plugins.backends.iot_edge.far import MISSED, TRANSPORT
from hatoba_plugins.conformance.sites import hello, report, until_synced
from hatoba_plugins.errors import Retry
from hatoba_plugins.values import (
    DeviceCame,
    DeviceKept,
    DeviceNews,
    DeviceTold,
    DeviceWent,
    Gap,
    HealthStatus,
    Released,
    Synced,
)

GET = "iot-data:GetThingShadow"


def came(said: device_pb2.DeviceHello) -> DeviceCame:
    return DeviceCame(said.device, said, TRANSPORT, vouched=True)


def told(name: str, generation: int, note: str = "") -> DeviceTold:
    return DeviceTold(name, report(generation, note))


def tells(desk: IotDesk, name: str, turn: int, link: str = "link-1") -> str:
    """A device tells how it is, with the turn as generation; the message."""
    (state,) = report_states(report(turn), link, turn)
    return desk.aws.say(desk.options.thing_prefix + name, state)


def event(desk: IotDesk, name: str, kind: str, **more: object) -> None:
    """AWS tells of a connection, in milliseconds."""
    at = round(desk.clock.time() * 1000)
    thing = desk.options.thing_prefix + name
    event = {"clientId": thing, "timestamp": at, "eventType": kind, "sessionIdentifier": "s1"}
    desk.aws.queue.append(json.dumps(event | more))


async def test_nothing_is_told_before_every_shadow_was_read() -> None:
    async with iot_desk() as desk:
        for name in ("a", "b"):
            desk.device(name)
        said = desk.comes("a")
        tells(desk, "a", 1)
        desk.aws.queue.clear()
        desk.aws.refuse(GET, "InternalFailure", 500)
        assert await desk.pass_time(0.1) == []
        assert (await desk.role.health()).status is HealthStatus.UNHEALTHY
        assert await desk.pass_time(2.0) == [came(said), told("a", 1), Synced()]
        assert (await desk.role.health()).status is HealthStatus.HEALTHY


async def begun(desk: IotDesk, name: str = "a") -> device_pb2.DeviceHello:
    """A device is there, and that was told."""
    desk.device(name)
    said = desk.comes(name)
    assert await desk.pass_time(2.0) == [came(said), Synced()]
    return said


async def test_words_come_late_doubled_and_out_of_order() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        words = [tells(desk, "a", turn) for turn in range(1, 6)]
        desk.aws.queue.clear()
        desk.aws.queue.extend([words[1], words[4], words[0], words[4], words[2], words[3]])
        assert await desk.pass_time() == [told("a", 5)]
        assert desk.aws.taken[-6:] == [words[n] for n in (1, 4, 0, 4, 2, 3)]


async def test_who_is_told_of_slowly_gets_the_newest() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        slow = desk.role.reports()
        assert [await anext(slow) for _ in range(2)][1] == Synced()
        for turn in range(1, 4):
            tells(desk, "a", turn)
            await desk.pass_time()
        assert await anext(slow) == told("a", 3)


async def test_a_goodbye_is_heard_at_once() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        desk.aws.say("hatoba-a", goodbye_state())
        assert await desk.pass_time() == [DeviceWent("a")]


async def test_whose_connection_ended_is_taken_for_away_after_a_while() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        event(desk, "a", "disconnected")
        assert await desk.pass_time(10.0) == []
        assert await desk.pass_time(3.0) == [DeviceWent("a")]
        # Written down: the next start knows it, and so does the device.
        assert desk.aws.document("hatoba-a", SAID)["state"]["desired"] == {"gone": "link-1"}


async def test_who_came_again_in_time_never_went() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        await desk.pass_time(5.0)
        event(desk, "a", "disconnected")
        await desk.pass_time(3.0)
        said = desk.comes("a", "link-2")
        assert await desk.pass_time(60.0) == [came(said)]


async def test_a_hint_that_was_wrong_is_seen_to_be_when_it_is_looked_at() -> None:
    """It wrote after that, though the message of it is lost."""
    async with iot_desk() as desk:
        await begun(desk)
        await desk.pass_time(5.0)
        event(desk, "a", "disconnected")
        await desk.pass_time(3.0)
        tells(desk, "a", 1)
        desk.aws.queue.clear()
        assert await desk.pass_time(60.0) == [told("a", 1)]


async def test_who_was_taken_for_away_and_is_not_says_so() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        event(desk, "a", "disconnected")
        assert await desk.pass_time(13.0) == [DeviceWent("a")]
        said = desk.comes("a", "link-2")
        assert await desk.pass_time() == [came(said)]


async def test_it_says_something_while_it_is_judged() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        event(desk, "a", "disconnected")
        await desk.pass_time(9.0)

        def says_hello() -> None:
            desk.comes("a", "link-2")

        desk.aws.before("iot-data:UpdateThingShadow", says_hello)
        (again,) = await desk.pass_time(30.0)
        assert isinstance(again, DeviceCame)
        assert desk.aws.document("hatoba-a", SAID)["state"]["desired"] == {}


@pytest.mark.parametrize("queue", ["https://sqs.test/1/q", ""])
async def test_silence_is_noticed(queue: str) -> None:
    async with iot_desk(queue=queue, alive_every=100.0) as desk:
        await begun(desk)
        assert await desk.pass_time(MISSED * 100.0 - 10.0) == []
        desk.aws.put("hatoba-a", SAID, {"reported": {"turn": 0}})  # it lives
        assert await desk.pass_time(MISSED * 100.0 - 10.0) == []
        assert await desk.pass_time(20.0) == [DeviceWent("a")]


async def test_a_restart_judges_by_the_time_of_the_last_word() -> None:
    async with iot_desk(alive_every=100.0) as desk:
        desk.device("a")
        desk.comes("a")
        desk.aws.shadows["hatoba-a", SAID].spoke -= MISSED * 100.0 + 10.0
        desk.aws.queue.clear()
        news = await desk.pass_time(3.0)
        assert news[1:] == [Synced(), DeviceWent("a")]


async def test_without_a_queue_shadows_are_read() -> None:
    async with iot_desk(queue="", poll_every=30.0) as desk:
        await begun(desk)
        tells(desk, "a", 1)
        desk.device("b")
        said = desk.comes("b")
        assert await desk.pass_time(27.0) == []
        assert await desk.pass_time(2.0) == [came(said), told("a", 1)]
        assert desk.aws.counts["sqs:ReceiveMessage"] == 0


async def test_what_was_lost_on_the_way_is_found_by_the_sweep() -> None:
    async with iot_desk(sweep_every=600.0) as desk:
        await begun(desk)
        tells(desk, "a", 1)
        desk.aws.queue.clear()
        assert await desk.pass_time(590.0) == []
        assert await desk.pass_time(30.0) == [told("a", 1)]


async def test_a_device_of_which_nothing_was_heard_is_found_by_the_sweep() -> None:
    async with iot_desk(sweep_every=600.0) as desk:
        await begun(desk)
        desk.device("b")
        said = desk.comes("b")
        desk.aws.queue.clear()
        assert await desk.pass_time(605.0) == [came(said)]


async def test_a_sweep_reads_a_few_at_a_time() -> None:
    async with iot_desk(sweep_every=100.0) as desk:
        for number in range(50):
            desk.device(f"d{number}")
        await desk.pass_time(99.0)
        before = desk.aws.counts[GET]
        for _ in range(10):
            await desk.pass_time(1.0)
            assert desk.aws.counts[GET] - before <= 2
            before = desk.aws.counts[GET]


async def test_a_wish_that_somebody_wiped_out_is_asked_for_again() -> None:
    async with iot_desk(sweep_every=600.0) as desk:
        said = await begun(desk)
        await desk.wish("a", 3)
        shadow = desk.aws.shadows["hatoba-a", "hatoba"]
        shadow.state, shadow.there = {"desired": {}, "reported": {}}, False
        assert await desk.pass_time(620.0) == [Gap(), came(said), Synced()]
        await desk.wish("a", 3)
        assert desk.wanted_of("a") is not None


async def test_a_letter_that_nobody_understands_is_a_gap() -> None:
    async with iot_desk() as desk:
        said = await begun(desk)
        desk.aws.queue.append("?")
        assert await desk.pass_time(5.0) == [Gap(), came(said), Synced()]
        assert "?" in desk.aws.taken


async def test_who_is_refused_a_connection_costs_us_nothing() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        before = desk.aws.counts[GET]
        for name in ("a", "stranger") * 20:
            event(desk, name, "connect_failed")
        assert await desk.pass_time(5.0) == []
        assert desk.aws.counts[GET] == before
        assert not desk.aws.queue


async def test_a_letter_is_kept_while_aws_cannot_be_asked_about_it() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        desk.device("b")
        desk.comes("b")
        (word,) = desk.aws.queue
        desk.aws.refuse("iot:DescribeThing", "ThrottlingException", 429)
        assert await desk.pass_time() == []
        assert word not in desk.aws.taken
        desk.aws.queue.append(word)
        assert len(await desk.pass_time(3.0)) == 1


async def test_a_thing_that_was_removed_behind_our_back() -> None:
    async with iot_desk(sweep_every=600.0) as desk:
        await begun(desk)
        del desk.aws.things["hatoba-a"]
        assert await desk.pass_time(610.0) == [DeviceWent("a")]


async def test_a_device_that_is_new_is_heard_though_no_listing_has_it() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        desk.device("b")
        said = desk.comes("b")
        assert await desk.pass_time() == [came(said)]


async def test_stragglers_of_who_was_forgotten_say_nothing() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        word = tells(desk, "a", 1)
        desk.aws.queue.clear()
        assert await desk.role.forget(["a"]) == [Released("a")]
        assert await desk.pass_time() == [DeviceWent("a")]
        desk.aws.queue.append(word)
        event(desk, "a", "disconnected")
        assert await desk.pass_time() == []
        assert word in desk.aws.taken
        # A new device of this name: what the former said does not count.
        desk.device("a")
        desk.aws.queue.append(word)
        assert await desk.pass_time() == []


async def test_things_of_others_are_not_heard() -> None:
    async with iot_desk() as desk:
        desk.aws.things["hatoba-x"] = "another"
        desk.aws.things["other-y"] = CLUSTER_ID
        for thing in ("hatoba-x", "other-y"):
            desk.aws.say(thing, hello_state("link", hello(thing.partition("-")[2])))
        assert await desk.pass_time(2.0) == [Synced()]
        assert len(desk.aws.taken) == 2


def _for_another() -> Json:
    return hello_state("link", hello("b"))


def _of_no_rule() -> Json:
    return hello_state("link", device_pb2.DeviceHello(device="a", incarnation="x"))


def _of_no_text() -> Json:
    return {"reported": {"link": 7, "hello": {}}}


def _too_many_slots() -> Json:
    many = device_pb2.DeviceReport(slots=[device_pb2.DeviceSlot()] * 257)
    return {"reported": {"report": pack(many), "by": "link"}}


@pytest.mark.parametrize(
    "hostile", [_for_another, _of_no_rule, _of_no_text, _too_many_slots], ids=lambda f: f.__name__
)
async def test_what_a_hostile_device_writes_is_not_told(hostile: Callable[[], Json]) -> None:
    async with iot_desk() as desk:
        said = await begun(desk, "good")
        desk.device("a")
        desk.aws.say("hatoba-a", hostile())
        news: list[DeviceNews] = await desk.pass_time(5.0)
        assert news == []
        assert await until_synced(desk.role) == [came(said)]


async def test_a_report_in_parts_is_told_whole_and_never_mixed() -> None:
    large = device_pb2.DeviceReport(generation=2)
    for number in range(120):
        slot = large.slots.add(deployment=f"projects/p/deployments/{number}")
        slot.cause.message = "".join(chr(33 + (number * at * at) % 94) for at in range(400))
    async with iot_desk() as desk:
        await begun(desk)
        states = report_states(large, "link-1", 7)
        *parts, first = states
        assert parts
        for number, state in enumerate(parts):
            desk.aws.put("hatoba-a", f"{SAID}-{len(states) - number}", state)
        # The device is about to write the next one: a part of that is there already.
        last = desk.aws.shadows["hatoba-a", f"{SAID}-2"]
        whole = dict(last.state["reported"])
        last.state["reported"] = whole | {"turn": 8}
        desk.aws.say("hatoba-a", first)
        assert await desk.pass_time() == []
        last.state["reported"] = whole
        desk.aws.say("hatoba-a", first)
        assert await desk.pass_time() == [DeviceTold("a", large)]


async def test_a_report_that_a_former_link_brings_late_is_not_told() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        desk.comes("a", "link-2")
        tells(desk, "a", 1, "link-2")
        await desk.pass_time()
        tells(desk, "a", 9, "link-1")
        assert await desk.pass_time() == []


async def test_a_queue_that_does_not_wait_is_not_asked_all_the_time() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        before = desk.aws.counts["sqs:ReceiveMessage"]
        desk.aws.waits = False
        await desk.pass_time(60.0)
        assert desk.aws.counts["sqs:ReceiveMessage"] - before <= 2 * 61


async def test_health_says_what_is_missing() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        desk.aws.refuse("sqs:DeleteMessageBatch", "AccessDenied", 403)
        tells(desk, "a", 1)
        await desk.pass_time(1.0)
        health = await desk.role.health()
        assert health.status is HealthStatus.UNHEALTHY
        assert "Allow the server's role sqs:DeleteMessage." in health.message
        desk.aws.refuse("iot:DescribeEndpoint", "AccessDeniedException", 403)
        assert "iot:DescribeEndpoint" in (await desk.role.health()).message


def kept(desk: IotDesk, name: str, first: int, *texts: str) -> device_pb2.DeviceRecords:
    """A device sends what it kept."""
    records = device_pb2.DeviceRecords(first=first)
    for text in texts:
        records.records.add(log=device_pb2.DeviceLogLine(text=text))
    thing = desk.options.thing_prefix + name
    desk.aws.queue.append(json.dumps({"thing": thing, "records": pack(records)}))
    return records


async def test_what_a_device_kept_is_brought_and_answered_in_its_shadow() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        brought = desk.role.records()
        one = kept(desk, "a", 1, "first", "second")
        assert await desk.pass_time() == []
        assert await anext(brought) == DeviceKept("a", one)
        await desk.role.stored("a", 2)
        assert desk.aws.document("hatoba-a", SAID)["state"]["desired"]["stored"] == 2
        # What waits is replaced: a device sends the same again, until it is answered.
        kept(desk, "a", 3, "third")
        again = kept(desk, "a", 3, "third", "fourth")
        await desk.pass_time()
        assert await anext(brought) == DeviceKept("a", again)


async def test_what_nobody_kept_is_not_brought() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        brought = desk.role.records()
        kept(desk, "stranger", 1, "mine")
        kept(desk, "a", 0, "before all")
        desk.aws.queue.append(json.dumps({"thing": "hatoba-a", "records": "what is this"}))
        kept(desk, "a", 1)
        last = kept(desk, "a", 7, "good")
        await desk.pass_time(5.0)
        assert await anext(brought) == DeviceKept("a", last)


async def test_an_answer_that_is_lost_is_a_failure_that_passes() -> None:
    async with iot_desk() as desk:
        await begun(desk)
        desk.aws.lose("iot-data:UpdateThingShadow")
        with pytest.raises(Retry):
            await desk.role.stored("a", 2)
        await desk.role.stored("a", 2)
