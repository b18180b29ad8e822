"""`hatoba backends ...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from hatoba.cli.output import emit, output_option, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import admin_pb2


@click.group(cls=Group)
def backends() -> None:
    """What runs the jobs, and what failed to load."""


@backends.command("list")
@output_option
@server_options()
def list_backends(output: str) -> None:
    """List backends, and plug-ins that could not be loaded with the reason and the remedy."""
    reply = with_client(read_backends)
    emit(reply, output, lambda: show_backends(reply, wide=output == "wide"))


async def read_backends(client: AsyncClient) -> admin_pb2.ListBackendsResponse:
    """The server's backends and load failures."""
    from hatoba.v1 import admin_pb2

    return await client.call(admin_pb2.ListBackendsRequest(), admin_pb2.ListBackendsResponse)


def show_backends(reply: admin_pb2.ListBackendsResponse, *, wide: bool = False) -> None:
    """A table of backends, then what failed."""
    heads = ["BACKEND", "TYPE", "HEALTH", "ROOM"] + (["CAPABILITIES", "FROM"] if wide else [])
    rows = []
    for backend in reply.backends:
        name = backend.name + (" (default)" if backend.is_default else "")
        health = backend.health + (f": {backend.message}" if backend.message else "")
        row = [name, backend.type, health, _texts(backend.capacity)]
        rows.append(row + ([_texts(backend.capabilities), backend.distribution] if wide else []))
    table(heads, rows, empty="no backends")
    for failure in reply.failures:
        click.echo(f"{failure.name} could not be loaded: {failure.reason}")
        if failure.remedy:
            click.echo(f"  -> {failure.remedy}")


def _texts(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in sorted(values.items())) or "-"
