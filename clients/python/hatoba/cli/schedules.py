"""`hatoba schedules ...`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hatoba.cli.options import TIME, job_options, params_of, submit_options
from hatoba.cli.output import emit, moment, output_option, pairs, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from hatoba.aio import AsyncClient
    from hatoba.options import Parcel
    from hatoba.schedules import ScheduleOptions
    from hatoba.v1 import job_pb2, schedule_pb2

OF_FILES = {"params", "code"}
"""Options of a job that a job file may be given together with."""
OF_ONE_RUN = {"name", "start_after", "deadline"}
"""Options of a job that a schedule, which has its own name and many runs, cannot have."""


@click.group(cls=Group)
def schedules() -> None:
    """Jobs that are submitted again and again, by the clock."""


WHEN = [
    click.option("--tz", "time_zone", metavar="ZONE", help="Time zone of --cron. [default: UTC]"),
    click.option(
        "--overlap",
        type=click.Choice(["skip", "allow", "replace", "queue"]),
        help="What to do while the run before has not ended. [default: skip]",
    ),
    click.option(
        "--catch-up",
        type=click.Choice(["none", "last", "all"]),
        help="Which of the times run that passed while the server was away. [default: last]",
    ),
    click.option(
        "--max-catch-up",
        type=click.IntRange(1, 1000),
        metavar="N",
        help="With --catch-up all: at most the newest N. [default: 100]",
    ),
    click.option("--end", "end_time", type=TIME, metavar="TIME", help="Nothing runs after this."),
    click.option(
        "-f",
        "--file",
        metavar="FILE",
        help="Job file, YAML or JSON, instead of a command. `-` reads stdin.",
    ),
]
_CRON_HELP = "Minute, hour, day, month, weekday, or @hourly, @daily, @weekly, @monthly."


def _described(function: Any) -> Any:
    function = job_options(function)
    kept = [one for one in function.__click_params__ if one.name not in OF_ONE_RUN]
    function.__click_params__ = kept
    for option in reversed(WHEN):
        function = option(function)
    return function


def _options(said: dict[str, Any]) -> ScheduleOptions:
    """What was said of the schedule itself."""
    from hatoba.schedules import ScheduleOptions

    wanted = ("cron", "time_zone", "overlap", "catch_up", "max_catch_up", "end_time", "paused")
    options = ScheduleOptions()
    for name in wanted:
        if said.get(name) is not None:
            options[name] = said[name]  # type: ignore[literal-required]
    return options


def _parcel(name: str, said: dict[str, Any]) -> Parcel | None:
    """What was said of its jobs; None when nothing was."""
    from hatoba.options import build_parcel

    command: tuple[str, ...] = said["command"]
    job = submit_options(said)
    if said["file"] is None and command:
        return build_parcel(command, {**job, "name": name})
    if command:
        raise click.UsageError("give a job file or a command, not both")
    extra = sorted(set(job) - (OF_FILES if said["file"] else {"code"}))
    if extra:
        option = extra[0].replace("_", "-")
        where = "write that into the job file" if said["file"] else "name the command as well"
        raise click.UsageError(f"--{option} is for a command: {where}")
    return _of_file(said) if said["file"] else None


def _of_file(said: dict[str, Any]) -> Parcel:
    from hatoba.cli.submitting import read_files

    params = params_of(said["params"])
    documents = read_files([said["file"]], params, said["code"], no_code=said["no_code"])
    if len(documents) != 1:
        raise click.UsageError(f"a schedule is of one job, and the file has {len(documents)}")
    return documents[0].parcel


@schedules.command("create")
@click.argument("schedule", metavar="NAME")
@click.option("--cron", required=True, metavar="EXPRESSION", help=_CRON_HELP)
@_described
@click.option("--paused", is_flag=True, default=None, help="Begin only when it is resumed.")
@output_option
@server_options()
@click.argument("command", nargs=-1, metavar="[-- COMMAND [ARGUMENT]...]")
def create(schedule: str, output: str, **said: Any) -> None:
    """Submit a job at each time of --cron, from a job file or of a command.

    The directory goes along now: every run has the code as it is today. A local time that does not
    exist (the clock is put forward) runs at the moment of the change, one that comes twice once.

    \b
    Examples:
      hatoba schedules create nightly --cron '30 2 * * *' --tz Europe/Berlin -- python train.py
      hatoba schedules create hourly --cron @hourly --overlap queue -f job.yaml
    """
    parcel = _parcel(schedule, said)
    if parcel is None:
        raise click.UsageError("name what to run: -f FILE, or -- COMMAND")
    made = with_client(
        lambda client: client.schedules.create_of(schedule, parcel, **_options(said))
    )
    emit(made, output, lambda: show_one(made))


@schedules.command("list")
@output_option
@server_options()
def list_schedules(output: str) -> None:
    """List the schedules of the project, with their next and last times."""
    from hatoba.v1 import schedule_pb2

    found = with_client(lambda client: client.schedules.list())
    reply = schedule_pb2.ListSchedulesResponse(schedules=found)
    emit(reply, output, lambda: show(found))


def show(found: Sequence[schedule_pb2.Schedule]) -> None:
    """A table of schedules."""
    from hatoba.aio import short_name

    rows = [
        [
            short_name(one.name),
            one.cron,
            one.time_zone or "UTC",
            "paused" if one.paused else when(one.next_time, one.time_zone) or "never",
            one.last_outcome or "-",
        ]
        for one in found
    ]
    table(["SCHEDULE", "CRON", "ZONE", "NEXT", "LAST"], rows, empty="no schedules")


@schedules.command("get")
@click.argument("name")
@output_option
@server_options()
def get(name: str, output: str) -> None:
    """Show one schedule, its next times and newest jobs."""
    one = with_client(lambda client: client.schedules.get(name))
    emit(one, output, lambda: show_one(one))


def show_one(one: schedule_pb2.Schedule) -> None:
    """What is known of a schedule, for people."""
    from hatoba.aio import short_name
    from hatoba.v1 import schedule_pb2

    overlap = schedule_pb2.OverlapPolicy.Name(one.overlap).removeprefix("OVERLAP_POLICY_")
    catch_up = schedule_pb2.CatchUpPolicy.Name(one.catch_up).removeprefix("CATCH_UP_POLICY_")
    times = [when(time, one.time_zone) for time in one.next_times]
    last = f"{when(one.last_time, one.time_zone)}  {one.last_outcome}".strip()
    click.echo(short_name(one.name))
    pairs(
        [
            ("cron", f"{one.cron}  ({one.time_zone or 'UTC'})"),
            ("next", "paused" if one.paused else "never again" if not times else times[0]),
            *(("", time) for time in times[1:]),
            ("until", when(one.end_time, one.time_zone)),
            ("runs", shlex.join(one.spec.command)),
            ("overlap", overlap.lower()),
            ("catch-up", catch_up.lower()),
            ("last", last),
            ("jobs", ", ".join(short_name(job) for job in one.recent_jobs)),
            ("made", f"{moment(one.create_time)} by {one.created_by}"),
        ]
    )


def when(stamp: Timestamp, zone: str) -> str:
    """A moment as the clocks of a zone show it: `2026-11-27 02:30 CET`; empty for none."""
    import datetime as dt
    import zoneinfo

    if not stamp.seconds:
        return ""
    try:
        there: dt.tzinfo = zoneinfo.ZoneInfo(zone) if zone else dt.UTC
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        # This machine does not know the zone; the server does.
        there = dt.UTC
    return f"{dt.datetime.fromtimestamp(stamp.seconds, there):%Y-%m-%d %H:%M %Z}"


@schedules.command("update")
@click.argument("schedule", metavar="NAME")
@click.option("--cron", metavar="EXPRESSION", help=_CRON_HELP)
@_described
@click.option("--etag", default="", metavar="ETAG", help="Only if it is still as read.")
@output_option
@server_options()
@click.argument("command", nargs=-1, metavar="[-- COMMAND [ARGUMENT]...]")
def update(schedule: str, etag: str, output: str, **said: Any) -> None:
    """Change when a schedule runs, or what. Runs under way stay as they are.

    A job file or a command takes the place of all that was said of its jobs.
    """
    parcel, options = _parcel(schedule, said), _options(said)
    if parcel is None and not options:
        raise click.UsageError("nothing to change: say --cron, --tz, ..., -f FILE or -- COMMAND")
    changed = with_client(
        lambda client: client.schedules.update(schedule, parcel, etag=etag, **options)
    )
    emit(changed, output, lambda: show_one(changed))


@schedules.command("pause")
@click.argument("name")
@server_options()
def pause(name: str) -> None:
    """Submit nothing until it is resumed; times that pass are left out."""
    with_client(lambda client: client.schedules.pause(name))
    click.echo(f"schedule {name} is paused", err=True)


@schedules.command("resume")
@click.argument("name")
@server_options()
def resume(name: str) -> None:
    """Let a paused schedule go on from now."""
    one = with_client(lambda client: client.schedules.resume(name))
    click.echo(f"schedule {name} runs next {when(one.next_time, one.time_zone)}", err=True)


@schedules.command("delete")
@click.argument("name")
@server_options()
def delete(name: str) -> None:
    """End a schedule; its jobs stay. Twice is once."""
    with_client(lambda client: client.schedules.delete(name))
    click.echo(f"schedule {name} submits nothing any more", err=True)


@schedules.command("run")
@click.argument("name")
@output_option
@server_options()
def run(name: str, output: str) -> None:
    """Submit one run now, beside the times. Prints the job's name."""

    async def submit(client: AsyncClient) -> job_pb2.Job:
        return (await client.schedules.run(name)).record

    job = with_client(submit)
    emit(job, output, lambda: click.echo(job.name.rpartition("/")[2]))
