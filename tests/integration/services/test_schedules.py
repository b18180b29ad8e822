"""ScheduleService: made once, shown with its next times, run by hand, and once for each time."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import pytest
from command_line import CommandLine
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message
from server_process import HatobaServer, runs
from waiting import eventually, until
from wire import Wire

from hatoba.aio import AsyncClient
from hatoba.errors import InvalidSpec
from hatoba.v1 import common_pb2, job_pb2, schedule_pb2

from .conftest import Refusal, cancel, held, refused, running, spec, state

Schedule = schedule_pb2.Schedule
HOUR = 3600


async def create(
    wire: Wire, project: str, name: str = "nightly", request_id: str = "", **settings: Any
) -> Schedule:
    given = Schedule(**{"cron": "30 2 * * *", "spec": held("any"), **settings})
    request = schedule_pb2.CreateScheduleRequest(
        project=project, schedule_id=name, schedule=given, request_id=request_id
    )
    return await wire.once(request, Schedule)


async def get(wire: Wire, name: str) -> Schedule:
    return await wire.once(schedule_pb2.GetScheduleRequest(name=name), Schedule)


async def update(wire: Wire, schedule: Schedule, *paths: str) -> Schedule:
    request = schedule_pb2.UpdateScheduleRequest(schedule=schedule)
    request.update_mask.paths.extend(paths)
    return await wire.once(request, Schedule)


async def run(wire: Wire, name: str, request_id: str = "") -> job_pb2.Job:
    request = schedule_pb2.RunScheduleRequest(name=name, request_id=request_id)
    return await wire.once(request, job_pb2.Job)


def moments(stamps: Any) -> list[dt.datetime]:
    return [stamp.ToDatetime(dt.UTC) for stamp in stamps]


# -- making and changing ------------------------------------------------------------------------


async def test_made_read_listed_removed(wire: Wire, project: str) -> None:
    made = await create(wire, project, time_zone="Europe/Berlin", labels={"a": "b"})
    assert made.name == f"projects/{project}/schedules/nightly"
    assert (made.created_by, made.overlap, made.catch_up, made.max_catch_up) == (
        "admin",
        schedule_pb2.OVERLAP_POLICY_SKIP,
        schedule_pb2.CATCH_UP_POLICY_LAST,
        100,
    )
    assert made.spec.name == "nightly"
    assert len(made.next_times) == 5
    assert made.next_time == made.next_times[0]
    assert all(moment.minute == 30 for moment in moments(made.next_times))
    assert await get(wire, made.name) == made
    for name in ("c", "a", "b"):
        await create(wire, project, name)
    listed: list[str] = []
    token = ""
    while True:
        request = schedule_pb2.ListSchedulesRequest(project=project, page_size=3, page_token=token)
        reply = await wire.once(request, schedule_pb2.ListSchedulesResponse)
        listed += [one.name.rpartition("/")[2] for one in reply.schedules]
        assert not any(one.next_times for one in reply.schedules)
        assert all(one.HasField("next_time") for one in reply.schedules)
        token = reply.next_page_token
        if not token:
            break
    assert listed == ["a", "b", "c", "nightly"]
    for _ in range(2):
        ending = schedule_pb2.DeleteScheduleRequest(name=made.name)
        await wire.once(ending, schedule_pb2.DeleteScheduleResponse)
    assert (await refused(get(wire, made.name))).code is grpc.StatusCode.NOT_FOUND


async def test_made_twice_is_made_once(wire: Wire, project: str) -> None:
    made = await create(wire, project, request_id="one")
    assert await create(wire, project, request_id="one") == made
    assert await create(wire, project) == made
    refusal = await refused(create(wire, project, cron="@daily"))
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert "hatoba schedules update nightly" in refusal.message


async def test_changed_on_what_was_read(wire: Wire, project: str) -> None:
    made = await create(wire, project)
    changed = Schedule(name=made.name, etag=made.etag, cron="@hourly", paused=True)
    after = await update(wire, changed, "cron", "paused")
    assert (after.cron, after.paused, after.time_zone) == ("@hourly", True, "")
    assert after.spec == made.spec
    assert not after.HasField("next_time")
    refusal = await refused(update(wire, changed, "cron"))
    assert refusal.code is grpc.StatusCode.ABORTED
    resumed = await update(wire, Schedule(name=made.name), "paused")
    assert resumed.HasField("next_time")
    assert (await get(wire, made.name)).etag == resumed.etag


async def test_a_field_of_the_mask_that_is_not_given_goes_back(wire: Wire, project: str) -> None:
    end = timestamp_pb2.Timestamp(seconds=4_000_000_000)
    made = await create(wire, project, end_time=end, time_zone="Asia/Tokyo", labels={"a": "b"})
    after = await update(wire, Schedule(name=made.name), "end_time", "time_zone", "labels")
    assert not after.HasField("end_time")
    assert (after.time_zone, dict(after.labels)) == ("", {})


# -- bad input ----------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "never": ({"cron": "0 0 31 2 *"}, "schedule.cron", "never comes"),
    "seconds": ({"cron": "0 * * * * *"}, "schedule.cron", "no seconds"),
    "no expression": ({"cron": "tomorrow"}, "schedule.cron", "five fields"),
    "bad minute": ({"cron": "61 * * * *"}, "schedule.cron", "minute"),
    "macro": ({"cron": "@reboot"}, "schedule.cron", "@hourly"),
    "empty": ({"cron": ""}, "schedule.cron", ""),
    "long": ({"cron": "1," * 200 + "1 * * * *"}, "schedule.cron", ""),
    "zone": ({"time_zone": "Europe/Berln"}, "schedule.time_zone", "'Europe/Berlin'"),
    "zone's case": ({"time_zone": "europe/berlin"}, "schedule.time_zone", "'Europe/Berlin'"),
    "path": ({"time_zone": "../../etc/passwd"}, "schedule.time_zone", "names no time zone"),
    "overlap": ({"overlap": 9}, "schedule.overlap", ""),
    "catch-up": ({"catch_up": 9}, "schedule.catch_up", ""),
    "most": ({"max_catch_up": 1001}, "schedule.max_catch_up", "1000"),
    "fewer than none": ({"max_catch_up": -1}, "schedule.max_catch_up", ""),
    "over": ({"end_time": timestamp_pb2.Timestamp(seconds=1)}, "schedule.end_time", "'1970-01-01"),
    "before time": (
        {"end_time": timestamp_pb2.Timestamp(seconds=-5)},
        "schedule.end_time",
        "1970 to 9999",
    ),
    "no command": ({"spec": job_pb2.JobSpec()}, "schedule.spec.command", ""),
    "queue": (
        {"spec": job_pb2.JobSpec(command=["a"], queue="none")},
        "schedule.spec.queue",
        "queue",
    ),
    "backend": (
        {"spec": job_pb2.JobSpec(command=["a"], backend="none")},
        "schedule.spec.backend",
        "backend",
    ),
    "dependency": (
        {"spec": job_pb2.JobSpec(command=["a"], after_ok=["gone-7"])},
        "schedule.spec.after_ok[0]",
        "'gone-7'",
    ),
    "deadline": (
        {"spec": job_pb2.JobSpec(command=["a"], deadline=timestamp_pb2.Timestamp(seconds=9**10))},
        "schedule.spec.deadline",
        "max_queue_time",
    ),
    "queue time": (
        {"spec": job_pb2.JobSpec(command=["a"], max_queue_time=duration_pb2.Duration(seconds=-1))},
        "schedule.spec.max_queue_time",
        "",
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_wrong_is_named(wire: Wire, project: str, name: str) -> None:
    settings, field, words = BAD[name]
    refusal = await refused(create(wire, project, **settings))
    assert_named(refusal, field, words)
    made = await create(wire, project)
    path = next(iter(settings))
    changed = Schedule(name=made.name, **settings)
    assert_named(await refused(update(wire, changed, path)), field, words)
    assert await get(wire, made.name) == made


def assert_named(refusal: Refusal, field: str, words: str) -> None:
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in refusal.fields
    assert words in refusal.message


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (schedule_pb2.GetScheduleRequest(name="a/b/c"), "INVALID_ARGUMENT", "schedules/S"),
        (schedule_pb2.GetScheduleRequest(name="none"), "NOT_FOUND", "schedules list"),
        (schedule_pb2.RunScheduleRequest(name="none"), "NOT_FOUND", "'none'"),
        (schedule_pb2.DeleteScheduleRequest(name="Ä"), "INVALID_ARGUMENT", "schedules/S"),
        (schedule_pb2.UpdateScheduleRequest(), "INVALID_ARGUMENT", "update_mask"),
        (schedule_pb2.CreateScheduleRequest(schedule_id="a"), "INVALID_ARGUMENT", "cron"),
        (schedule_pb2.CreateScheduleRequest(schedule_id="A B"), "INVALID_ARGUMENT", "schedule_id"),
        (schedule_pb2.ListSchedulesRequest(page_token="x"), "INVALID_ARGUMENT", "page"),
        (schedule_pb2.ListSchedulesRequest(page_size=-1), "INVALID_ARGUMENT", "page_size"),
    ],
)
async def test_bad_requests(wire: Wire, request_: Message, code: str, words: str) -> None:
    refusal = await refused(wire.once(request_, Schedule))
    assert refusal.code.name == code
    assert words in refusal.message


async def test_a_mask_names_settings_only(wire: Wire, project: str) -> None:
    made = await create(wire, project)
    for path in ("name", "created_by", "nothing", "spec.command"):
        refusal = await refused(update(wire, Schedule(name=made.name), path))
        assert refusal.fields == ["update_mask"]


# -- running ------------------------------------------------------------------------------------


async def test_run_by_hand(wire: Wire, project: str) -> None:
    made = await create(wire, project, spec=running("any"))
    first = await run(wire, made.name, "one")
    assert (await run(wire, made.name, "one")).uid == first.uid
    second = await run(wire, made.name)
    assert first.name == f"projects/{project}/jobs/nightly-1"
    assert dict(first.spec.labels)["hatoba/schedule"] == "nightly"
    assert list((await get(wire, made.name)).recent_jobs) == [second.name, first.name]
    listing = job_pb2.ListJobsRequest(project=project, filter="labels.hatoba/schedule = nightly")
    found = await wire.once(listing, job_pb2.ListJobsResponse)
    assert [job.uid for job in found.jobs] == [second.uid, first.uid]
    await cancel(wire, first.name, second.name)


async def test_what_a_run_needs_may_be_gone(wire: Wire, project: str) -> None:
    made = await create(wire, project, spec=spec("any"))
    await update(wire, Schedule(name=made.name, spec=held("any")), "spec")
    job = await run(wire, made.name)
    assert state(job) == "HELD"


async def wind_back(server: HatobaServer, seconds: int) -> None:
    """The schedules of a server that does not run, as if it had been away for so long."""

    def work() -> None:
        with sqlite3.connect(server.data / "hatoba.db") as connection:
            connection.execute("UPDATE schedules SET position = position - ?", (seconds * 10**6,))
        connection.close()

    await asyncio.to_thread(work)


POINTS = ["intent.before", "intent.after", "submit.after", "moved.after"]


@pytest.mark.parametrize("point", POINTS)
async def test_a_time_is_one_job_whatever_a_kill_interrupts(
    own_server: HatobaServer, project: str, point: str
) -> None:
    async with Wire(own_server) as wire:
        made = await create(wire, project, cron="0 * * * *")
    await own_server.kill()
    await wind_back(own_server, HOUR)
    own_server.launcher.environ = {"HATOBA_FAILPOINTS": f"schedule.{point}:kill9"}
    own_server.launch()
    await until(lambda: not runs(own_server.pid))
    own_server.launcher.environ = {}
    await own_server.start()
    async with Wire(own_server) as wire:

        async def submitted() -> bool:
            return (await get(wire, made.name)).last_outcome.startswith("submitted nightly-1")

        await eventually(submitted)
        request = job_pb2.ListJobsRequest(project=project)
        (job,) = (await wire.once(request, job_pb2.ListJobsResponse)).jobs
        assert (job.created_by, job.name) == ("admin", f"projects/{project}/jobs/nightly-1")
        schedule = await get(wire, made.name)
        assert list(schedule.recent_jobs) == [job.name]
        wanted = dict(job.spec.labels)["hatoba/scheduled-for"]
        assert moments([schedule.last_time])[0] == dt.datetime.fromisoformat(wanted)


async def test_a_refused_run_says_why(own_server: HatobaServer, project: str) -> None:
    async with Wire(own_server) as wire:
        made = await create(wire, project, cron="0 * * * *", spec=spec("any", backend="null"))
    await own_server.kill()
    await wind_back(own_server, HOUR)
    config = own_server.data / "hatoba.toml"
    text = await asyncio.to_thread(config.read_text)
    await asyncio.to_thread(config.write_text, text.replace('[backends.null]\ntype = "null"', ""))
    await own_server.start()
    async with Wire(own_server) as wire:

        async def refused_now() -> bool:
            return "names no opened backend" in (await get(wire, made.name)).last_outcome

        await eventually(refused_now)


# -- deadlines and times in a queue -------------------------------------------------------------


async def test_a_deadline_ends_whatruns(wire: Wire, project: str) -> None:
    wanted = running("late")
    wanted.deadline.GetCurrentTime()
    wanted.deadline.seconds += 2
    job = await wire.once(job_pb2.SubmitJobRequest(spec=wanted, project=project), job_pb2.Job)
    over = await wire.ended(job.name)
    assert state(over) == "TIMED_OUT"
    assert over.cause.code == common_pb2.CAUSE_CODE_DEADLINE


async def test_who_finds_no_place_in_time_is_over(wire: Wire, project: str) -> None:
    wanted = spec("patient", backend="hosts")
    wanted.resources.cpus = 1000
    wanted.max_queue_time.seconds = 1
    job = await wire.once(job_pb2.SubmitJobRequest(spec=wanted, project=project), job_pb2.Job)
    over = await wire.ended(job.name)
    assert (state(over), over.cause.code) == ("TIMED_OUT", common_pb2.CAUSE_CODE_QUEUE_TIMEOUT)


# -- the SDK ------------------------------------------------------------------------------------


async def test_the_sdk(server: HatobaServer, project: str) -> None:
    token = str(server.data / "admin.token")
    async with AsyncClient(server.address, token_file=token, project=project) as client:
        schedules = client.schedules
        made = await schedules.create(
            "weekly", "sleep 1", {"code": None, "hold": True}, cron="@weekly", overlap="queue"
        )
        assert (list(made.spec.command), made.overlap) == (
            ["sleep", "1"],
            schedule_pb2.OVERLAP_POLICY_QUEUE,
        )
        job = await schedules.run("weekly")
        assert job.name == "weekly-1"
        end = dt.datetime.now(dt.UTC) + dt.timedelta(days=30)
        changed = await schedules.update("weekly", max_catch_up=3, end_time=end)
        assert (changed.max_catch_up, moments([changed.end_time])) == (3, [end])
        assert not (await schedules.update("weekly", end_time=None)).HasField("end_time")
        assert (await schedules.pause("weekly")).paused
        assert not (await schedules.resume("weekly")).paused
        assert [one.name for one in await schedules.list()] == [made.name]
        for refused_now in (
            schedules.update("weekly"),
            schedules.update("weekly", overlap="sometimes"),
        ):
            with pytest.raises(InvalidSpec):
                await refused_now
        await schedules.delete("weekly")
        assert await schedules.list() == []


# -- the command line ---------------------------------------------------------------------------


async def test_the_command_line(server: HatobaServer, wire: Wire, tmp_path: Path) -> None:
    cli = CommandLine(server, tmp_path)

    async def hatoba(*arguments: str, code: int = 0) -> str:
        done = await cli("schedules", *arguments)
        assert done.code == code, done
        return done.out + done.err

    name = f"cli-{os.getpid()}"
    when = ("--cron", "30 2 * * *", "--tz", "Europe/Berlin", "--overlap", "queue")
    told = await hatoba("create", name, *when, "--no-code", "--hold", "--", "echo", "a b")
    assert "30 2 * * *  (Europe/Berlin)" in told
    assert "echo 'a b'" in told
    assert told.count("02:30 CE") == 5
    assert name in await hatoba("list")
    assert (await hatoba("run", name)).strip() == f"{name}-1"
    assert f"{name}-1" in await hatoba("get", name)
    file = tmp_path / "job.yaml"
    await asyncio.to_thread(file.write_text, "name: other\ncommand: [sleep, '1']\n")
    told = await hatoba("update", name, "--cron", "@hourly", "-f", str(file), "--no-code")
    assert "sleep 1" in told
    await hatoba("pause", name)
    assert "paused" in await hatoba("list")
    assert "runs next" in await hatoba("resume", name)
    assert "never comes" in await hatoba("update", name, "--cron", "0 0 31 2 *", code=1)
    assert "name what to run" in await hatoba("create", "x", "--cron", "@daily", code=2)
    assert "--memory is for a command" in await hatoba(
        "create", "x", "--cron", "@daily", "-f", str(file), "--memory", "1Gi", code=2
    )
    for _ in range(2):
        await hatoba("delete", name)
    await hatoba("get", name, code=3)
