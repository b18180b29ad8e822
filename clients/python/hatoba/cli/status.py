"""`hatoba status`: the operator's first screen, and at its end what is mine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hatoba.cli.backends import show_backends
from hatoba.cli.jobs import show_jobs
from hatoba.cli.output import age, emit, output_option, table
from hatoba.cli.session import server_options, with_client
from hatoba.units import say_seconds

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import admin_pb2, job_pb2

SHOWN = 5
"""Lines of each part; `-o json` has all."""
PHASES = {
    "restored": "nothing is started or changed before `hatoba server adopt`",
    "read-only": "the disk takes no writes: changes are refused until it does",
}
"""What a phase means in which not all is well."""


@click.command()
@output_option
@server_options()
def status(output: str) -> None:
    """Server and backends, who has what in which queue, what waits, is late or unclear; mine."""
    overview, jobs, address = with_client(_read)
    emit(overview, output, lambda: _show(overview, jobs, address))


async def _read(client: AsyncClient) -> tuple[admin_pb2.Overview, list[job_pb2.Job], str]:
    from hatoba import settings

    overview = await client.operations.overview()
    me = settings.recall(client.server.key).principal
    wanted = "active = true" + (f" AND created_by = {me}" if me else "")
    return overview, await client.jobs(wanted, limit=SHOWN + 1), client.server.address


def _show(overview: admin_pb2.Overview, jobs: list[job_pb2.Job], address: str) -> None:
    _show_server(overview, address)
    click.echo()
    _show_backends(overview)
    _show_owners(overview.owners)
    _notable("waiting longest", overview.oldest_waiting)
    _notable("late", overview.overdue)
    _notable("out of reach", overview.unknown)
    _notable("ended, not let go", overview.releasing)
    _lines("hosts that take no work", overview.hosts)
    _lines("queues that start nothing", overview.queues)
    click.echo()
    _show_mine(jobs)


def _show_server(overview: admin_pb2.Overview, address: str) -> None:
    server = overview.server
    up = age(server.start_time)
    click.echo(f"server {address}  {server.phase}  hatoba {server.version}  up {up}")
    if server.phase in PHASES:
        click.echo(f"  {PHASES[server.phase]}")
    click.echo(
        f"  unfinished jobs {server.active_jobs}, attempts that hold resources "
        f"{server.live_attempts}"
    )
    click.echo(
        f"  a minute: {overview.submit_rate:.1f} submitted, {overview.start_rate:.1f} started, "
        f"{overview.end_rate:.1f} ended; loop {_ms(overview.loop_lag)} late"
    )
    click.echo(
        f"  longest (mean) of the last 100: planning {_ms(overview.planner_max)} "
        f"({_ms(overview.planner_mean)}), commit {_ms(overview.commit_max)} "
        f"({_ms(overview.commit_mean)})"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else say_seconds(seconds)


def _show_backends(overview: admin_pb2.Overview) -> None:
    from hatoba.v1 import admin_pb2

    show_backends(
        admin_pb2.ListBackendsResponse(backends=overview.backends, failures=overview.failures)
    )


def _show_owners(owners: Sequence[admin_pb2.OwnedInQueue]) -> None:
    if not owners:
        return
    click.echo()
    rows = [[one.queue, one.created_by, str(one.waiting), str(one.running)] for one in owners]
    table(["QUEUE", "OWNER", "WAITING", "RUNNING"], rows[:SHOWN])
    _more(len(rows))


def _notable(title: str, found: Sequence[admin_pb2.NotableJob]) -> None:
    from hatoba.aio import short_name

    if not found:
        return
    click.echo(f"\n{title}")
    for one in found[:SHOWN]:
        name = short_name(one.job) + (f"[{one.index}]" if one.HasField("index") else "")
        click.echo(f"  {name}  {age(one.since)}  {one.queue}, {one.created_by}: {one.message}")
    _more(len(found))


def _lines(title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    click.echo(f"\n{title}")
    for line in lines[:SHOWN]:
        click.echo(f"  {line}")
    _more(len(lines))


def _more(count: int) -> None:
    if count > SHOWN:
        click.echo(f"  and {count - SHOWN} more: hatoba status -o json")


def _show_mine(jobs: list[job_pb2.Job]) -> None:
    if not jobs:
        click.echo("no unfinished jobs of yours")
        return
    show_jobs(jobs[:SHOWN])
    if len(jobs) > SHOWN:
        click.echo("  and more: hatoba jobs list --active")
    _show_waiting(jobs)


def _show_waiting(jobs: list[job_pb2.Job]) -> None:
    from hatoba.aio import short_name

    for job in [job for job in jobs if job.waiting_reason][:3]:
        click.echo(f"  {short_name(job.name)} waits: {job.waiting_reason}")
