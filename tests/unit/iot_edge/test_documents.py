"""What is in shadows: times of either unit, sizes, parts, and what no device of ours writes."""

from __future__ import annotations

import base64
import gzip
import json
import random
from typing import Any

import pytest

from hatoba.shadows import (
    DOCUMENT,
    MOST_BYTES,
    MOST_PARTS,
    Json,
    Shadow,
    compact,
    generation_of,
    goodbye_state,
    hello_state,
    pack,
    part_names,
    part_of,
    report_states,
    said_of,
    seconds,
    set_of,
    shadow_of,
    size,
    unpack,
    wanted,
)
from hatoba.v1 import device_pb2
from hatoba_plugins.backends.iot_edge.letters import word_of
from hatoba_plugins.conformance.sites import document, hello, report


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        (1_573_002_230, 1_573_002_230.0),
        (1_573_002_230.5, 1_573_002_230.5),
        (1_573_002_230_757, 1_573_002_230.757),
        (4_102_444_800, 4_102_444_800.0),
        (0, 0.0),
        (True, 0.0),
        ("1573002230", 0.0),
        (None, 0.0),
    ],
)
def test_times_are_told_apart_by_their_size(told: object, meant: float) -> None:
    assert seconds(told) == meant


def test_a_message_comes_back_as_it_was() -> None:
    told = document(7, 64)
    assert unpack(pack(told), device_pb2.DeviceDesired) == told
    assert pack(told) == pack(document(7, 64))


@pytest.mark.parametrize(
    "text",
    [
        "no base64 at all!",
        base64.b64encode(b"no gzip").decode(),
        base64.b64encode(gzip.compress(b"no message")).decode(),
        pack(document(1))[:-12],
        base64.b64encode(gzip.compress(bytes(MOST_BYTES + 1))).decode(),
    ],
    ids=["base64", "gzip", "message", "cut off", "bomb"],
)
def test_what_is_no_message_is_not_unpacked(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        unpack(text, device_pb2.DeviceDesired)


def shadow(desired: Json | None = None, reported: Json | None = None) -> Shadow:
    return Shadow(3, desired or {}, reported or {})


def test_what_is_wanted_is_read_as_it_was_written() -> None:
    state = wanted(7, pack(document(7)), 1200.0)
    told = shadow(state["desired"])
    assert generation_of(told) == 7
    assert set_of(told) == document(7)
    assert told.desired["alive_every"] == 1200
    assert size(state) == len(compact(state))


def test_nothing_was_wanted_yet() -> None:
    told = shadow({"format": 1})
    assert generation_of(told) == 0
    assert set_of(told) is None


@pytest.mark.parametrize("generation", ["7", 7.5, True, -1, None])
def test_a_generation_that_is_none_is_not_taken_for_an_old_one(generation: object) -> None:
    with pytest.raises(ValueError, match="its generation is"):
        generation_of(shadow({"generation": generation}))


def test_a_set_of_another_generation_is_no_set() -> None:
    with pytest.raises(ValueError, match="another generation"):
        set_of(shadow(wanted(8, pack(document(7)), 1200.0)["desired"]))


def test_what_a_device_writes_is_read_as_it_was_meant() -> None:
    written: Json = {}
    written |= hello_state("link", hello("a"))["reported"]
    written |= report_states(report(4), "link", 9)[0]["reported"]
    said = said_of(shadow({"gone": "other"}, written))
    assert (said.link, said.by, said.turn, said.parts) == ("link", "link", 9, 1)
    assert said.there
    assert said.told_now
    assert unpack(said.report, device_pb2.DeviceReport) == report(4)
    assert not said_of(shadow({"gone": "link"}, written)).there
    assert goodbye_state() == {"reported": {"link": None}}


@pytest.mark.parametrize(
    "told",
    [{"link": 1}, {"turn": "1"}, {"parts": 0}, {"parts": MOST_PARTS + 1}, {"hello": ["x"]}],
)
def test_what_no_device_of_ours_writes_is_not_read(told: Json) -> None:
    with pytest.raises(ValueError, match=r".+"):
        said_of(shadow(reported=told))


def long_report(slots: int) -> device_pb2.DeviceReport:
    """One that does not become smaller when it is compressed."""
    told, rng = report(1, slots=slots), random.Random(0)
    for slot in told.slots:
        slot.cause.message = "".join(chr(rng.randrange(33, 127)) for _ in range(300))
    return told


def test_a_large_report_goes_in_parts_that_each_fit() -> None:
    told = long_report(64)
    states = report_states(told, "link", 5)
    assert len(states) > 2
    assert all(size(state) <= DOCUMENT for state in states)
    # With the hello beside it, too.
    assert size({"reported": {**states[-1]["reported"], **hello_state("l", hello("a"))}}) < DOCUMENT
    first = said_of(shadow(reported=states[-1]["reported"]))
    assert first.parts == len(states)
    assert list(part_names("said", 3)) == ["said", "said-2", "said-3"]
    text = first.report
    for state in reversed(states[:-1]):
        part = part_of(shadow(reported=state["reported"]), 5)
        assert part is not None
        text += part
    assert unpack(text, device_pb2.DeviceReport) == told


def test_a_part_of_another_report_is_none() -> None:
    assert part_of(shadow(reported={"turn": 4, "report": "x"}), 5) is None
    assert part_of(shadow(), 5) is None


def test_a_report_that_no_shadow_takes_is_refused_to_its_device() -> None:
    with pytest.raises(ValueError, match=f"more than {MOST_PARTS} shadows have"):
        report_states(long_report(250), "link", 1)


@pytest.mark.parametrize(
    "told", [None, [], {}, {"version": "1"}, {"version": 1, "state": []}, {"state": {}}]
)
def test_what_is_no_shadow(told: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        shadow_of(told)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "7",
        "{}",
        '{"thing": "a"}',
        '{"thing": 1, "shadow": {"version": 1}}',
        '{"eventType": "connected", "clientId": "a"}',
        '{"eventType": "connected", "clientId": 7, "timestamp": 1}',
    ],
)
def test_a_letter_that_our_rules_do_not_write(body: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        word_of(body)


@pytest.mark.parametrize("kind", ["subscribed", "connect_failed", 7, None])
def test_events_that_are_about_something_else(kind: object) -> None:
    """Anybody can be refused a connection: nothing follows from that."""
    told = {"eventType": kind, "clientId": "hatoba-a", "timestamp": 1573002230757}
    assert word_of(json.dumps(told)) is None


def test_an_odd_number_of_things_in_a_document_is_none_of_our_business() -> None:
    told: dict[str, Any] = {"version": 4, "state": {"desired": {"x": [1]}}, "more": 1}
    assert shadow_of(told) == Shadow(4, {"x": [1]})
