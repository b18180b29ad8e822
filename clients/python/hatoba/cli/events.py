"""`hatoba events`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from hatoba.cli.exits import Exit
from hatoba.cli.output import emit_line, output_option
from hatoba.cli.session import open_client, server_options, with_client
from hatoba.cli.words import event_line
from hatoba.following import FROM_THE_OLDEST, Resync

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import common_pb2

# The log is read to where it ended when we asked; a quiet project ends it sooner.
QUIET_SECONDS = 1.0


@click.command()
@click.argument("names", nargs=-1, metavar="[JOB]...")
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen.")
@click.option("--cursor", metavar="CURSOR", help="Begin after this event; 0: the oldest kept.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Without -f: the newest N.",
)
@output_option
@server_options()
@click.pass_context
def events(
    ctx: click.Context,
    /,
    names: tuple[str, ...],
    follow: bool,
    cursor: str | None,
    limit: int,
    output: str,
) -> None:
    """Every change of every job (or of those named), oldest first."""
    if follow:
        ctx.exit(stream_events(names, cursor or "", output))
    found = with_client(lambda client: _newest(client, names, cursor or FROM_THE_OLDEST, limit))
    for event in found:
        emit_line(event, output, event_line(event))


def stream_events(names: Sequence[str], cursor: str, output: str) -> Exit:
    """Write events as they come; without names until Ctrl-C."""

    async def stream() -> None:
        async with (
            open_client() as client,
            aclosing(client.events(*names, cursor=cursor)) as source,
        ):
            async for event in source:
                if isinstance(event, Resync):
                    click.echo("hatoba: some events are not kept any more", err=True)
                else:
                    emit_line(event, output, event_line(event))

    try:
        asyncio.run(stream())
    except KeyboardInterrupt:
        return Exit.DETACHED
    return Exit.OK


async def _newest(
    client: AsyncClient, names: Sequence[str], cursor: str, limit: int
) -> Sequence[common_pb2.Event]:
    from hatoba.v1 import admin_pb2

    last = (
        await client.call(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)
    ).last_event
    kept: deque[common_pb2.Event] = deque(maxlen=limit)
    source = client.events(*names, cursor=cursor)
    async with aclosing(source):
        while (event := await _soon(source)) is not None:
            kept.append(event)
            if event.seq >= last:
                break
    return kept


async def _soon(
    source: AsyncGenerator[common_pb2.Event | Resync, None],
) -> common_pb2.Event | None:
    """The next event, or None when none comes."""
    try:
        async with asyncio.timeout(QUIET_SECONDS):
            async for event in source:
                if not isinstance(event, Resync):
                    return event
    except TimeoutError:
        return None
    return None
