"""`hatoba logs`."""

from __future__ import annotations

import asyncio

import click

from hatoba.aio import AsyncClient
from hatoba.cli.exits import Exit
from hatoba.cli.following import Follower, detached, print_log
from hatoba.cli.session import open_client, server_options
from hatoba.errors import InvalidSpec
from hatoba.following import TERMINAL, LogQuery


@click.command()
@click.argument("job", required=False)
@click.option(
    "-f", "--follow", is_flag=True, help="Go on until the job has ended, retries included."
)
@click.option(
    "--stream", type=click.Choice(["stdout", "stderr", "build"]), help="Only this stream."
)
@click.option(
    "--index",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Which task of an array, or of a job on devices.",
)
@click.option("--device", metavar="NAME", help="What it wrote on this device.")
@click.option(
    "--attempt", type=click.IntRange(1), metavar="N", help="Which attempt. [default: the last one]"
)
@click.option("--tail", type=click.IntRange(1, 100_000), metavar="N", help="Only the last N lines.")
@server_options()
@click.pass_context
def logs(
    ctx: click.Context,
    job: str | None,
    follow: bool,
    stream: str | None,
    index: int,
    device: str | None,
    attempt: int | None,
    tail: int | None,
) -> None:
    """Show what JOB wrote: its stdout on stdout, its stderr on stderr. Without JOB, my latest
    one.
    """
    query = LogQuery(job or "", index, attempt or 0, stream or "", tail or 0, follow)
    found: list[str] = []
    try:
        asyncio.run(_show(query, found, device or ""))
    except KeyboardInterrupt:
        ctx.exit(detached(found[0]) if found else Exit.DETACHED)


async def _show(query: LogQuery, found: list[str], device: str) -> None:
    async with open_client() as client:
        query = await _named(client, query)
        found.append(query.job)
        record = await client.get(query.job)
        if device:
            query = _on_device(query, list(record.spec.devices.names), device)
        if not query.follow or query.attempt or record.state in TERMINAL:
            await print_log(client, query)
            return
        await Follower(client, query.job, query, states=False).from_newest()


def _on_device(query: LogQuery, devices: list[str], device: str) -> LogQuery:
    """The query about the task of a device. Raises InvalidSpec."""
    from dataclasses import replace

    if device not in devices:
        there = ", ".join(devices) or "none"
        raise InvalidSpec(f"the job is not for device {device!r}", remedy=f"its devices: {there}")
    return replace(query, index=devices.index(device))


async def _named(client: AsyncClient, query: LogQuery) -> LogQuery:
    """The query with the job's full name; the latest job's where none was named."""
    from dataclasses import replace

    if query.job:
        return replace(query, job=client.job_name(query.job))
    return replace(query, job=(await client.latest_job()).name)
