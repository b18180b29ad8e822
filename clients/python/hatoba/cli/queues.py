"""`hatoba queues ...`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hatoba.cli.options import LABEL, Parsed, unique
from hatoba.cli.output import emit, output_option, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client
from hatoba.units import parse_cpus, parse_memory, say_bytes, say_seconds

if TYPE_CHECKING:
    from hatoba.queues import QueueOptions
    from hatoba.v1 import common_pb2, queue_pb2

Q = TypeVar("Q", bound="queue_pb2.Queue | queue_pb2.QueueUsage")

BAR_WIDTH = 20
FULL, FAIR, NONE = "#", "|", "."


def _amounts(text: str) -> common_pb2.Resources:
    """`cpus=8,memory=64GiB,gpus=2,licence=3`; `none` takes the limit away. Raises ValueError."""
    from hatoba.v1 import common_pb2

    found = common_pb2.Resources()
    if text == "none":
        return found
    for part in text.split(","):
        name, equals, amount = part.strip().partition("=")
        if not equals or not name or not amount:
            raise ValueError(f"{part!r} is not NAME=AMOUNT, such as cpus=8 or memory=64GiB")
        if name == "cpus":
            found.cpus = parse_cpus(amount)
        elif name == "memory":
            found.memory_bytes = parse_memory(amount)
        elif not amount.isdecimal():
            raise ValueError(f"{amount!r} is not a number of {name}")
        elif name == "gpus":
            found.gpus = int(amount)
        else:
            found.named[name] = int(amount)
    return found


AMOUNTS = Parsed("cpus=N,memory=AMOUNT,gpus=N,NAME=N", _amounts)


@click.group(cls=Group)
def queues() -> None:
    """Where jobs wait, and how much may run from each."""


SETTINGS = [
    click.option(
        "--weight", type=click.FloatRange(0, 1000), metavar="N", help="Share against others."
    ),
    click.option(
        "--max-running",
        type=click.IntRange(0),
        metavar="N",
        help="Running tasks at most; 0: no limit.",
    ),
    click.option(
        "--max-pending",
        type=click.IntRange(0),
        metavar="N",
        help="Unfinished jobs at most; 0: no limit.",
    ),
    click.option("--parent", metavar="QUEUE", help='The queue above it; "": none.'),
    click.option(
        "--quota", type=AMOUNTS, help="Never more in use by it and those below it; none: no limit."
    ),
    click.option(
        "--guaranteed", type=AMOUNTS, help="Its own, taken back from borrowers; none: nothing."
    ),
    click.option(
        "--no-borrowing/--borrowing",
        "no_borrowing",
        default=None,
        help="Never more than what is guaranteed, even when it is free.",
    ),
    click.option("--label", "labels", multiple=True, type=LABEL, metavar="K=V", help="Free label."),
]


def _settings(function: Any) -> Any:
    for option in reversed(SETTINGS):
        function = option(function)
    return function


def _said(said: dict[str, Any]) -> QueueOptions:
    from hatoba.queues import QueueOptions

    found = {**said, "labels": unique(said["labels"], "--label") or None}
    options = QueueOptions()
    for name, value in found.items():
        if value is not None:
            options[name] = value  # type: ignore[literal-required]
    return options


def show(found: Sequence[queue_pb2.Queue], *, wide: bool = False) -> None:
    """Queues as a tree: each below the one above it, what is not set as a dash."""
    from hatoba.aio import short_name
    from hatoba.cli.output import moment

    rows = []
    for depth, queue in _tree({short_name(queue.name): queue for queue in found}):
        limits = [str(limit or "-") for limit in (queue.max_running, queue.max_pending)]
        amounts = [amount(queue.quota), _guaranteed(queue)]
        name = "  " * depth + short_name(queue.name)
        state = _state(queue.cordoned, draining=queue.draining)
        row = [name, state, f"{queue.weight or 1:g}", *limits, *amounts]
        more = [queue.created_by, moment(queue.create_time) or "-", queue.cordon_reason or "-"]
        rows.append(row + (more if wide else []))
    heads = ["QUEUE", "STATE", "WEIGHT", "RUN<=", "JOBS<=", "QUOTA", "GUARANTEED"]
    table(heads + (["BY", "MADE", "WHY CORDONED"] if wide else []), rows, empty="no queues")
    for queue in found:
        for warning in queue.warnings:
            click.echo(f"hatoba: {short_name(queue.name)}: {warning}", err=True)


def _state(cordoned: bool, *, draining: bool = False) -> str:
    return "draining" if draining else "cordoned" if cordoned else "open"


def _tree(found: Mapping[str, Q]) -> list[tuple[int, Q]]:
    """What is told of queues, by their names, with their depths: children after their parents."""
    below: dict[str, list[str]] = {}
    for name in sorted(found):
        parent = found[name].parent
        below.setdefault(parent if parent in found else "", []).append(name)
    out: list[tuple[int, Q]] = []

    def visit(above: str, depth: int) -> None:
        for name in below.get(above, ()):
            out.append((depth, found[name]))
            visit(name, depth + 1)

    visit("", 0)
    return out


def amount(told: common_pb2.Resources) -> str:
    """`8 cpus, 64 GiB, 2 GPUs, 3 licence`; a dash for nothing."""
    parts = [f"{told.cpus:g} cpu{'' if told.cpus == 1 else 's'}"] if told.cpus else []
    parts += [say_bytes(told.memory_bytes)] if told.memory_bytes else []
    parts += [f"{told.gpus} GPU{'' if told.gpus == 1 else 's'}"] if told.gpus else []
    parts += [f"{count} {name}" for name, count in sorted(told.named.items())]
    return ", ".join(parts) or "-"


def _guaranteed(queue: queue_pb2.Queue) -> str:
    return amount(queue.guaranteed) + (", no more" if queue.no_borrowing else "")


@queues.command("list")
@output_option
@server_options()
def list_queues(output: str) -> None:
    """List queues as a tree: each below the one above it."""
    from hatoba.v1 import queue_pb2

    found = with_client(lambda client: client.queues.list())
    reply = queue_pb2.ListQueuesResponse(queues=found)
    emit(reply, output, lambda: show(found, wide=output == "wide"))


@queues.command("get")
@click.argument("name")
@output_option
@server_options()
def get(name: str, output: str) -> None:
    """Show one queue."""
    queue = with_client(lambda client: client.queues.get(name))
    emit(queue, output, lambda: show([queue]))


@queues.command("create")
@click.argument("name")
@_settings
@output_option
@server_options()
def create(name: str, output: str, **said: Any) -> None:
    """Make a queue."""
    options = _said(said)
    queue = with_client(lambda client: client.queues.create(name, **options))
    emit(queue, output, lambda: show([queue]))


@queues.command("update")
@click.argument("name")
@_settings
@click.option("--etag", default="", metavar="ETAG", help="Only if it is still as read.")
@output_option
@server_options()
def update(name: str, etag: str, output: str, **said: Any) -> None:
    """Change a queue. Tasks that run over a new limit run on."""
    changes = _said(said)
    if not changes:
        raise click.UsageError(
            "nothing to change: say --weight, --max-running, --max-pending, --parent, --quota, "
            "--guaranteed, --no-borrowing or --label"
        )

    queue = with_client(lambda client: client.queues.update(name, etag=etag, **changes))
    emit(queue, output, lambda: show([queue]))


@queues.command("delete")
@click.argument("name")
@click.option("--etag", default="", metavar="ETAG", help="Only if it is still as read.")
@server_options()
def delete(name: str, etag: str) -> None:
    """Remove a queue that has no unfinished jobs."""
    with_client(lambda client: client.queues.delete(name, etag=etag))
    click.echo(f"removed queue {name}", err=True)


@queues.command("cordon")
@click.argument("name")
@click.option("--drain", is_flag=True, help="Also have what runs of it give way and wait.")
@click.option("--reason", default="", metavar="TEXT", help="Kept and shown.")
@output_option
@server_options()
def cordon(name: str, drain: bool, reason: str, output: str) -> None:
    """Start nothing more from a queue and those below it. Jobs are still accepted."""
    queue = with_client(lambda client: client.queues.cordon(name, drain=drain, reason=reason))
    emit(queue, output, lambda: show([queue]))


@queues.command("uncordon")
@click.argument("name")
@output_option
@server_options()
def uncordon(name: str, output: str) -> None:
    """Let a queue go on."""
    queue = with_client(lambda client: client.queues.uncordon(name))
    emit(queue, output, lambda: show([queue]))


@queues.command("usage")
@click.argument("name", required=False)
@output_option
@server_options()
def usage(name: str | None, output: str) -> None:
    """What queues use against their shares, and what waits; of one or of all."""
    from hatoba.v1 import queue_pb2

    if name is None:
        found = with_client(lambda client: client.queues.usages())
        reply = queue_pb2.ListQueueUsageResponse(usages=found)
        emit(reply, output, lambda: show_usages(found, wide=output == "wide"))
        return

    one = with_client(lambda client: client.queues.usage(name))
    emit(one, output, lambda: show_usage(one))


def bar(used: float, fair: float, width: int = BAR_WIDTH) -> str:
    """What is used of all capacity, and a mark where the fair share ends: `####|...`."""
    filled = min(round(used * width), width)
    cells = [FULL] * filled + [NONE] * (width - filled)
    if 0 < fair <= 1:
        cells[min(round(fair * width), width - 1)] = FAIR
    return "".join(cells)


def show_usages(found: Sequence[queue_pb2.QueueUsage], *, wide: bool = False) -> None:
    """A line for each queue, as a tree: its bar, used and fair share, what waits since when."""
    from hatoba.aio import short_name

    rows = []
    for depth, one in _tree({short_name(one.queue): one for one in found}):
        name = "  " * depth + short_name(one.queue)
        used, fair, past = map(_percent, _shares(one))
        shares = [bar(one.used_share, one.fair_share), used, fair]
        row = [name, _state(one.cordoned), *shares, str(one.waiting), _waited(one), str(one.jobs)]
        more = [past, f"{one.start_rate:.1f}", f"{one.end_rate:.1f}"]
        rows.append(row + (more if wide else []))
    heads = ["QUEUE", "STATE", f"USED {FAIR} FAIR", "USED", "FAIR", "WAITING", "OLDEST", "JOBS"]
    heads += ["PAST", "STARTED/MIN", "ENDED/MIN"] if wide else []
    table(heads, rows, empty="no queues")


def _shares(one: queue_pb2.QueueUsage) -> tuple[float, float, float]:
    return one.used_share, one.fair_share, one.decayed_share


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _waited(one: queue_pb2.QueueUsage) -> str:
    return say_seconds(one.oldest_wait.ToSeconds()) if one.HasField("oldest_wait") else "-"


def show_usage(found: queue_pb2.QueueUsage) -> None:
    """What a queue holds and uses, in words."""
    from hatoba.aio import short_name
    from hatoba.cli.output import pairs

    states = ", ".join(f"{count} {state}" for state, count in sorted(found.tasks.by_state.items()))
    used, fair, past = map(_percent, _shares(found))
    waits = found.HasField("oldest_wait")
    click.echo(short_name(found.queue) + ("  cordoned" if found.cordoned else ""))
    pairs(
        [
            ("below", found.parent),
            ("jobs", str(found.jobs)),
            ("tasks", states or "none"),
            ("holds", "nothing" if amount(found.reserved) == "-" else amount(found.reserved)),
            ("share", f"{bar(found.used_share, found.fair_share)}  {used} used, {fair} fair"),
            ("past", f"{past} used on average, the last hour counting half"),
            ("waiting", f"{found.waiting}, the oldest for {_waited(found)}" if waits else "none"),
            ("rates", f"{found.start_rate:.1f} started, {found.end_rate:.1f} ended a minute"),
            ("weight", f"{found.weight or 1:g}"),
            ("quota", amount(found.quota) if found.HasField("quota") else "no limit"),
            ("guaranteed", amount(found.guaranteed) if found.HasField("guaranteed") else "nothing"),
        ]
    )
