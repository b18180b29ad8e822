"""Schedules while a zone's clock is changed: a zone whose changes are seconds away."""

from __future__ import annotations

import datetime as dt
import os
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from server_process import HatobaServer, running_server
from waiting import eventually
from wire import Wire

from hatoba.v1 import job_pb2, schedule_pb2

from .conftest import configure, spec

DAY, HOUR = 86_400, 3_600
LEAD = 6
"""Seconds from now to the first change, in which the schedules are made."""


def zone_file(path: Path, change: int, local: int, step: int) -> None:
    """A zone in which it is `local` seconds after midnight at the moment `change`, when the clock
    is put `step` seconds on (RFC 8536, version 1).
    """
    offset = (local - change + DAY // 2) % DAY - DAY // 2
    counts = struct.pack(">6l", 0, 0, 0, 1, 2, 8)
    types = struct.pack(">lbB", offset, 0, 0) + struct.pack(">lbB", offset + step, 1, 4)
    changes = struct.pack(">lB", change, 1)
    path.write_bytes(b"TZif" + bytes(16) + counts + changes + types + b"STD\0DST\0")


async def schedule(wire: Wire, name: str, cron: str, zone: str) -> str:
    """A schedule whose runs do not wait for each other; its full name."""
    given = schedule_pb2.Schedule(
        cron=cron,
        spec=spec(name, backend="null"),
        time_zone=zone,
        overlap=schedule_pb2.OVERLAP_POLICY_ALLOW,
    )
    request = schedule_pb2.CreateScheduleRequest(schedule_id=name, schedule=given)
    return (await wire.once(request, schedule_pb2.Schedule)).name


async def runs_of(wire: Wire, name: str) -> list[int]:
    """The moments that a schedule's jobs were submitted for, in seconds, oldest first."""
    request = job_pb2.ListJobsRequest(filter=f"labels.hatoba/schedule = {name}")
    reply = await wire.once(request, job_pb2.ListJobsResponse)
    said = [dict(job.spec.labels)["hatoba/scheduled-for"] for job in reply.jobs]
    return sorted(round(dt.datetime.fromisoformat(text).timestamp()) for text in said)


async def next_run(wire: Wire, full_name: str) -> int:
    request = schedule_pb2.GetScheduleRequest(name=full_name)
    return (await wire.once(request, schedule_pb2.Schedule)).next_time.seconds


@pytest.fixture
def zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers look for zones first. They know all names once one was asked for."""
    place = tmp_path / "zones"
    place.mkdir()
    monkeypatch.setenv("PYTHONTZPATH", os.pathsep.join([str(place), "/usr/share/zoneinfo"]))
    return place


@pytest.fixture
async def own_server(zones: Path, tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """Started anew: a process that had its imports done would look where it looked then."""
    async with running_server(configure(tmp_path / "data"), worker=False) as one:
        yield one


async def test_what_the_clock_jumps_over_runs_at_once_and_what_comes_twice_runs_once(
    zones: Path, own_server: HatobaServer
) -> None:
    async with Wire(own_server) as wire:
        soon = int(time.time()) + LEAD
        zone_file(zones / "Forward", soon, 2 * HOUR, HOUR)
        zone_file(zones / "Back", soon + 3, 2 * HOUR + 3, -10)
        left_out = await schedule(wire, "left-out", "30 2 * * *", "Forward")
        doubled = await schedule(wire, "doubled", "0 2 * * *", "Back")
        await schedule(wire, "each-minute", "* * * * *", "Back")
        assert await next_run(wire, left_out) == soon
        assert await next_run(wire, doubled) == soon

        async def both_minutes_came() -> bool:
            return await runs_of(wire, "each-minute") == [soon, soon + 10]

        await eventually(both_minutes_came, patience=LEAD + 40)
        assert await runs_of(wire, "left-out") == [soon]
        assert await runs_of(wire, "doubled") == [soon]
        # The next ones are a day away on the wall's clock: 02:30 is half an hour after the jump.
        assert await next_run(wire, left_out) == soon + DAY - HOUR // 2
        assert await next_run(wire, doubled) == soon + DAY + 10
