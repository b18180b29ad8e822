"""How the benchmark of devices adds up what their processes say, and counts connections."""

from __future__ import annotations

import json
import random

import pytest
import stream_floor
from device_clients import Device
from device_yard import PROCESSES, Came, Enrolled, connections, told

from hatoba.v1 import device_pb2
from hatoba_worker.agent.redial import Backoff

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 3
   3: 0100007F:1F90 0100007F:C351 06 00000000:00000000 00:00000000 00000000     0        0 4
   4: 0100007F:1F90 0100007F:C352 01 00000000:00000000 00:00000000 00000000     0        0 5
   5: 0100007F:0F90 0100007F:C353 01 00000000:00000000 00:00000000 00000000     0        0 6
"""


def line(times: list[float], dials: int) -> bytes:
    """What one process answers."""
    return json.dumps({"times": times, "dials": dials}).encode() + b"\n"


def test_what_all_processes_say_is_taken_together() -> None:
    came = told([line([12.0, 15.5], 3), line([11.0], 1)])
    assert came == Came([12.0, 15.5, 11.0], 4)
    assert came.last(10.0) == 5.5
    assert came.words(10.0) == "half in 2.0 s, 99 % in 5.5 s, all in 5.5 s"


def test_a_process_that_has_ended_is_no_answer() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        told([line([12.0], 1), b""])


def test_connections_are_those_at_the_servers_end_that_are_established() -> None:
    assert connections(TABLE, 0x1F90) == 2
    assert connections(TABLE, 0xF90) == 1
    assert connections(TABLE, 1) == 0


def test_every_device_is_played_by_one_process_with_what_it_shows() -> None:
    names = [f"device-{number}" for number in range(PROCESSES + 1)]
    shown = {name: [f"key of {name}", f"certificate of {name}"] for name in names}
    settings = Enrolled(names, "authority", shown).settings(7443)
    assert sorted(name for one in settings for name in one.names) == names
    for one in settings:
        assert (one.address, one.server_name) == ("127.0.0.1:7443", "devices.hatoba")
        assert one.shown == {name: shown[name] for name in one.names}
    plain = Enrolled(names).settings(7443)
    assert {(one.authority, one.server_name, len(one.shown)) for one in plain} == {("", "", 0)}


def test_a_device_has_what_it_is_told_and_says_that_it_is_good() -> None:
    device = Device("device-1", Backoff(random.Random(1)))
    device.take(stream_floor.desired(3), 7.0)
    device.take(stream_floor.desired(3), 8.0)
    assert (device.generation, device.told, device.reached) == (3, 8.0, {3: 7.0})
    (item,) = device_pb2.DeviceServiceConnectRequest.FromString(device.report).items
    (slot,) = item.report.slots
    assert (item.report.generation, item.report.settled) == (3, True)
    assert (slot.revision, slot.running, slot.phase) == (3, 3, device_pb2.SLOT_PHASE_GOOD)


def test_at_first_the_floor_wants_nothing() -> None:
    assert not stream_floor.desired(0).wants
