"""`hatoba status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hatoba.cli.backends import read_backends, show_backends
from hatoba.cli.jobs import show_jobs
from hatoba.cli.output import age, emit, output_option
from hatoba.cli.session import server_options, with_client

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import admin_pb2, job_pb2

SHOWN_JOBS = 20


@click.command()
@output_option
@server_options()
def status(output: str) -> None:
    """Server, backends and my unfinished jobs; for the first that wait, why."""
    found = with_client(_read)
    server, backends, jobs, address = found
    emit(server, output, lambda: _show(server, backends, jobs, address))


async def _read(
    client: AsyncClient,
) -> tuple[admin_pb2.ServerStatus, admin_pb2.ListBackendsResponse, list[job_pb2.Job], str]:
    from hatoba import settings
    from hatoba.v1 import admin_pb2

    server = await client.call(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)
    me = settings.recall(client.server.key).principal
    wanted = "active = true" + (f" AND created_by = {me}" if me else "")
    jobs = await client.jobs(wanted, limit=SHOWN_JOBS)
    return server, await read_backends(client), jobs, client.server.address


def _show(
    server: admin_pb2.ServerStatus,
    backends: admin_pb2.ListBackendsResponse,
    jobs: list[job_pb2.Job],
    address: str,
) -> None:
    up = age(server.start_time)
    click.echo(f"server {address}  {server.phase}  hatoba {server.version}  up {up}")
    click.echo(
        f"  {server.active_jobs} unfinished jobs, {server.live_attempts} attempts hold resources"
    )
    click.echo()
    show_backends(backends)
    click.echo()
    if not jobs:
        click.echo("no unfinished jobs of yours")
        return
    show_jobs(jobs)
    _show_waiting(jobs)


def _show_waiting(jobs: list[job_pb2.Job]) -> None:
    from hatoba.aio import short_name

    for job in [job for job in jobs if job.waiting_reason][:3]:
        click.echo(f"  {short_name(job.name)} waits: {job.waiting_reason}")
