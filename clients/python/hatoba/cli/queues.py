"""`hatoba queues ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hatoba.cli.options import LABEL, unique
from hatoba.cli.output import emit, output_option, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import queue_pb2


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
    click.option("--label", "labels", multiple=True, type=LABEL, metavar="K=V", help="Free label."),
]


def _settings(function: Any) -> Any:
    for option in reversed(SETTINGS):
        function = option(function)
    return function


def _said(said: dict[str, Any]) -> dict[str, Any]:
    found = {**said, "labels": unique(said["labels"], "--label") or None}
    return {name: value for name, value in found.items() if value is not None}


def show(found: Sequence[queue_pb2.Queue]) -> None:
    """A table of queues."""
    from hatoba.aio import short_name

    rows = []
    for queue in found:
        limits = [str(limit or "-") for limit in (queue.max_running, queue.max_pending)]
        rows.append([short_name(queue.name), f"{queue.weight or 1:g}", *limits, queue.created_by])
    table(["QUEUE", "WEIGHT", "MAX RUNNING", "MAX PENDING", "BY"], rows, empty="no queues")


@queues.command("list")
@output_option
@server_options()
def list_queues(output: str) -> None:
    """List queues by name."""
    from hatoba.v1 import queue_pb2

    async def read(client: AsyncClient) -> list[queue_pb2.Queue]:
        request = queue_pb2.ListQueuesRequest(project=client.project, page_size=1000)
        found: list[queue_pb2.Queue] = []
        while True:
            page = await client.call(request, queue_pb2.ListQueuesResponse)
            found.extend(page.queues)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    found = with_client(read)
    emit(queue_pb2.ListQueuesResponse(queues=found), output, lambda: show(found))


def queue_name(client: AsyncClient, name: str) -> str:
    """A queue's full name in the client's project."""
    return name if "/" in name else f"projects/{client.project}/queues/{name}"


@queues.command("get")
@click.argument("name")
@output_option
@server_options()
def get(name: str, output: str) -> None:
    """Show one queue."""
    from hatoba.v1 import queue_pb2

    async def read(client: AsyncClient) -> queue_pb2.Queue:
        request = queue_pb2.GetQueueRequest(name=queue_name(client, name))
        return await client.call(request, queue_pb2.Queue)

    queue = with_client(read)
    emit(queue, output, lambda: show([queue]))


@queues.command("create")
@click.argument("name")
@_settings
@output_option
@server_options()
def create(name: str, output: str, **said: Any) -> None:
    """Make a queue."""
    from hatoba.v1 import queue_pb2

    async def make(client: AsyncClient) -> queue_pb2.Queue:
        settings = queue_pb2.Queue(**_said(said))
        request = queue_pb2.CreateQueueRequest(
            project=client.project, queue_id=name, queue=settings
        )
        return await client.call(request, queue_pb2.Queue)

    queue = with_client(make)
    emit(queue, output, lambda: show([queue]))


@queues.command("update")
@click.argument("name")
@_settings
@click.option("--etag", default="", metavar="ETAG", help="Only if it is still as read.")
@output_option
@server_options()
def update(name: str, etag: str, output: str, **said: Any) -> None:
    """Change a queue. Tasks that run over a new limit run on."""
    from google.protobuf.field_mask_pb2 import FieldMask

    from hatoba.v1 import queue_pb2

    changes = _said(said)
    if not changes:
        raise click.UsageError(
            "nothing to change: say --weight, --max-running, --max-pending or --label"
        )

    async def change(client: AsyncClient) -> queue_pb2.Queue:
        queue = queue_pb2.Queue(name=queue_name(client, name), etag=etag, **changes)
        request = queue_pb2.UpdateQueueRequest(
            queue=queue, update_mask=FieldMask(paths=list(changes))
        )
        return await client.call(request, queue_pb2.Queue)

    queue = with_client(change)
    emit(queue, output, lambda: show([queue]))


@queues.command("delete")
@click.argument("name")
@click.option("--etag", default="", metavar="ETAG", help="Only if it is still as read.")
@server_options()
def delete(name: str, etag: str) -> None:
    """Remove a queue that has no unfinished jobs."""
    from hatoba.v1 import queue_pb2

    async def remove(client: AsyncClient) -> None:
        request = queue_pb2.DeleteQueueRequest(name=queue_name(client, name), etag=etag)
        await client.call(request, queue_pb2.DeleteQueueResponse)

    with_client(remove)
    click.echo(f"removed queue {name}", err=True)


@queues.command("usage")
@click.argument("name", default="default")
@output_option
@server_options()
def usage(name: str, output: str) -> None:
    """Say what a queue holds and uses now."""
    from hatoba.v1 import queue_pb2

    async def read(client: AsyncClient) -> queue_pb2.QueueUsage:
        request = queue_pb2.GetQueueUsageRequest(name=queue_name(client, name))
        return await client.call(request, queue_pb2.QueueUsage)

    found = with_client(read)
    emit(found, output, lambda: show_usage(found))


def show_usage(found: queue_pb2.QueueUsage) -> None:
    """What a queue holds, in words."""
    from hatoba.aio import short_name
    from hatoba.cli.output import pairs
    from hatoba.cli.words import needs

    states = ", ".join(f"{count} {state}" for state, count in sorted(found.tasks.by_state.items()))
    held = needs(found.reserved) if found.reserved.ByteSize() else "nothing"
    click.echo(short_name(found.queue))
    pairs([("jobs", str(found.jobs)), ("tasks", states or "none"), ("holds", held)])
