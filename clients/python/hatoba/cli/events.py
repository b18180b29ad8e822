"""`hatoba events`."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from hatoba.cli.exits import Exit
from hatoba.cli.options import Parsed
from hatoba.cli.output import emit_line, output_option
from hatoba.cli.session import open_client, server_options, with_client
from hatoba.cli.words import event_line
from hatoba.following import FROM_THE_OLDEST, Resync
from hatoba.units import parse_past

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import admin_pb2, common_pb2

# The log is read to where it ended when we asked; a quiet project ends it sooner.
QUIET_SECONDS = 1.0
FEWEST_READ = 1_000
SINCE = Parsed("TIME", parse_past)


@dataclass(frozen=True)
class Wanted:
    """Which events, as it was said on the command line."""

    names: Sequence[str] = ()
    cursor: str = ""
    filter: str = ""
    reasons: Sequence[str] = ()

    def of(self, client: AsyncClient) -> AsyncGenerator[common_pb2.Event | Resync, None]:
        """Those events, from the cursor on."""
        return client.events(
            *self.names, cursor=self.cursor, filter=self.filter, reasons=self.reasons
        )


@click.command()
@click.argument("names", nargs=-1, metavar="[JOB]...")
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen.")
@click.option(
    "--filter",
    "expression",
    default="",
    metavar="EXPR",
    help='Only of jobs that match, such as: queue = gpu AND labels.team = "vision".',
)
@click.option("--reason", "reasons", multiple=True, metavar="WORD", help="Only these, as `retry`.")
@click.option("--since", type=SINCE, help="Begin so long ago (`2h`), or at a time.")
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
    expression: str,
    reasons: tuple[str, ...],
    since: dt.datetime | None,
    cursor: str | None,
    limit: int,
    output: str,
) -> None:
    """Every change of every job (or of those named), oldest first."""
    if expression and names:
        raise click.UsageError("name jobs, or choose them by --filter, not both")
    if cursor and since:
        raise click.UsageError("say --since or --cursor, not both")
    wanted = Wanted(names, cursor or "", expression, reasons)
    if follow:
        ctx.exit(follow_events(wanted, output, since))
    for event in with_client(lambda client: _newest(client, wanted, limit, since)):
        emit_line(event, output, event_line(event))


def stream_events(names: Sequence[str], cursor: str, output: str) -> Exit:
    """Write the events of these jobs as they come, until all of them have ended or Ctrl-C."""
    return follow_events(Wanted(names, cursor), output)


def follow_events(wanted: Wanted, output: str, since: dt.datetime | None = None) -> Exit:
    """Write events as they come; without names until Ctrl-C."""

    async def stream() -> None:
        async with open_client() as client:
            begun = replace(wanted, cursor=await _since(client, since)) if since else wanted
            async with aclosing(begun.of(client)) as source:
                async for event in source:
                    if isinstance(event, Resync):
                        click.echo(passed_over(event), err=True)
                    elif since is None or _moment(event) >= since:
                        emit_line(event, output, event_line(event))

    try:
        asyncio.run(stream())
    except KeyboardInterrupt:
        return Exit.DETACHED
    return Exit.OK


def passed_over(resync: Resync) -> str:
    """What a reader is told when events were left out."""
    going_on = f" after {resync.cursor}" if resync.cursor else ""
    return (
        "hatoba: events were passed over: they are not kept any more, or too many came at once; "
        f"`hatoba jobs list` says how jobs are now. Going on{going_on}"
    )


async def _newest(
    client: AsyncClient, wanted: Wanted, limit: int, since: dt.datetime | None
) -> Sequence[common_pb2.Event]:
    """The newest events that are wanted; the log is read backwards in growing steps."""
    from hatoba.v1 import admin_pb2

    status = await client.call(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)
    if wanted.cursor or wanted.names:
        return await _read(client, wanted, status.last_event, limit, told=bool(wanted.cursor))
    span = max(FEWEST_READ, 10 * limit)
    while True:
        start = max(status.last_event - span, 0)
        found = await _read(
            client, replace(wanted, cursor=_cursor(status, start)), status.last_event, limit
        )
        if since is not None and found:
            late = [event for event in found if _moment(event) >= since]
            if len(late) < len(found) or not start:
                return late
        if len(found) >= limit or not start:
            return found
        span *= 10


def _cursor(status: admin_pb2.ServerStatus, seq: int) -> str:
    return f"{status.store_epoch}.{seq}" if seq > 0 else FROM_THE_OLDEST


async def _since(client: AsyncClient, since: dt.datetime) -> str:
    """A cursor before all events from a time on, and not much before: by halving the log."""
    from hatoba.v1 import admin_pb2

    status = await client.call(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)
    low, high = 0, status.last_event
    while high - low > FEWEST_READ:
        middle = (low + high) // 2
        source = client.events(cursor=_cursor(status, middle))
        async with aclosing(source):
            event = await _soon(source)
        if event is None or _moment(event) >= since:
            high = middle
        else:
            low = middle
    return _cursor(status, low)


def _moment(event: common_pb2.Event) -> dt.datetime:
    return event.time.ToDatetime(dt.UTC)


async def _read(
    client: AsyncClient, wanted: Wanted, last: int, limit: int, *, told: bool = False
) -> Sequence[common_pb2.Event]:
    """The newest of what is wanted up to a position; `told`: also say what was passed over."""
    kept: deque[common_pb2.Event] = deque(maxlen=limit)
    source = replace(wanted, cursor=wanted.cursor or FROM_THE_OLDEST).of(client)
    async with aclosing(source):
        while (event := await _soon(source, told=told)) is not None:
            kept.append(event)
            if event.seq >= last:
                break
    return kept


async def _soon(
    source: AsyncGenerator[common_pb2.Event | Resync, None], *, told: bool = False
) -> common_pb2.Event | None:
    """The next event, or None when none comes."""
    try:
        async with asyncio.timeout(QUIET_SECONDS):
            async for event in source:
                if not isinstance(event, Resync):
                    return event
                if told:
                    click.echo(passed_over(event), err=True)
    except TimeoutError:
        return None
    return None
