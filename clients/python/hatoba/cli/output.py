"""What goes to stdout: tables for people, proto JSON and YAML for programs. Nothing else does."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hatoba.plain import to_plain
from hatoba.units import say_seconds

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("table", "wide", "json", "yaml")
STATE_STYLES = {
    "SUCCEEDED": "green",
    "RUNNING": "cyan",
    "STARTING": "cyan",
    "FAILED": "bold red",
    "TIMED_OUT": "bold red",
    "UPSTREAM_FAILED": "red",
    "LOST": "red",
    "CANCELLED": "yellow",
    "STOPPING": "yellow",
}
GAP = 2


def output_option(function: F) -> F:
    """`-o`: how the result is written."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        help="How to write the result; json and yaml are proto JSON.",
    )(function)


def console(*, err: bool = False) -> Console:
    """Where tables are written, stdout unless `err`: rich's rules for colour, and never a width of
    its own when piped.
    """
    from rich.console import Console

    file = sys.stderr if err else sys.stdout
    plain = Console(file=file, highlight=False, markup=False, emoji=False)
    if not plain.is_terminal:
        plain = Console(file=file, highlight=False, markup=False, emoji=False, width=100_000)
    return plain


def emit(message: Message, output: str, show: Callable[[], None]) -> None:
    """Write a message as asked: `show` writes it for people."""
    if output == "json":
        click.echo(to_json(message))
    elif output == "yaml":
        click.echo(to_yaml(message), nl=False)
    else:
        show()


def to_json(message: Message, *, indent: int | None = 2) -> str:
    """A message as proto JSON; without `indent` on one line."""
    return json.dumps(to_plain(message), indent=indent, ensure_ascii=False)


def to_yaml(message: Message) -> str:
    """A message as a YAML document."""
    import yaml

    return yaml.safe_dump(to_plain(message), sort_keys=False, allow_unicode=True, width=100)


def emit_line(message: Message, output: str, line: str) -> None:
    """Write one message of a stream: a line for people, a JSON line, or a YAML document."""
    if output == "json":
        click.echo(to_json(message, indent=None))
    elif output == "yaml":
        click.echo("---\n" + to_yaml(message), nl=False)
    else:
        click.echo(line)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str = "") -> None:
    """Columns under their heads; `empty` is told on stderr when there are no rows."""
    if not rows and empty:
        click.echo(empty, err=True)
        return
    from rich.cells import cell_len
    from rich.text import Text

    columns = list(zip(heads, *rows, strict=True))
    widths = [max(cell_len(cell) for cell in column) + GAP for column in columns]
    target = console()
    for number, row in enumerate([heads, *rows]):
        line = Text()
        for cell, width in zip(row, widths, strict=True):
            padding = " " * (width - cell_len(cell))
            line.append(cell + padding, style="bold" if number == 0 else STATE_STYLES.get(cell, ""))
        line.rstrip()
        target.print(line, soft_wrap=True)


def pairs(rows: Sequence[tuple[str, str]], *, indent: int = 2) -> None:
    """Names and values under each other, those without a value left out."""
    from rich.text import Text

    target = console()
    width = max((len(name) for name, value in rows if value), default=0) + GAP
    for name, value in rows:
        if not value:
            continue
        first, *others = value.split("\n")
        line = Text(" " * indent)
        line.append(name.ljust(width), style="dim")
        line.append(first, style=STATE_STYLES.get(first, ""))
        target.print(line, soft_wrap=True)
        for other in others:
            target.print(Text(" " * (indent + width) + other), soft_wrap=True)


def age(stamp: Timestamp, *, now: float | None = None) -> str:
    """How long ago, for example `3m12s`; empty when it is not set."""
    if not stamp.seconds:
        return ""
    moment = stamp.seconds + stamp.nanos / 1e9
    return say_seconds(max((time.time() if now is None else now) - moment, 0))


def between(start: Timestamp, end: Timestamp) -> str:
    """The time from one moment to another, to now when the other is not set; empty without a
    start.
    """
    if not start.seconds:
        return ""
    if not end.seconds:
        return age(start)
    return say_seconds((end.seconds - start.seconds) + (end.nanos - start.nanos) / 1e9)


def moment(stamp: Timestamp) -> str:
    """A moment in local time, for example `2026-03-01 14:05:12`; empty when it is not set."""
    if not stamp.seconds:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stamp.seconds))
