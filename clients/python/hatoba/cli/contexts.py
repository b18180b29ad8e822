"""`hatoba context ...` and `hatoba login`."""

from __future__ import annotations

import asyncio
import sys

import click

from hatoba.cli.output import pairs, table
from hatoba.cli.root import Group
from hatoba.cli.session import say, server_options, session
from hatoba.errors import HatobaError, InvalidSpec
from hatoba.settings import (
    Context,
    ContextBook,
    Server,
    config_dir,
    data_dir,
    find_server,
    parse_address,
    read_token,
)


@click.group(cls=Group)
def context() -> None:
    """Which server is talked to.

    In this order: --address, HATOBA_ADDRESS, the context in use, the embedded server in
    HATOBA_DATA.
    """


@context.command("list")
def list_contexts() -> None:
    """List the remembered servers; * marks the one in use."""
    book = ContextBook(config_dir())
    rows = [
        ["*" if one.name == book.current else "", one.name, one.address, one.project or "default"]
        for one in book.all()
    ]
    table(
        ["", "CONTEXT", "ADDRESS", "PROJECT"],
        rows,
        empty="no contexts; the embedded server is used",
    )


@context.command("use")
@click.argument("name")
def use(name: str) -> None:
    """Talk to this server from now on; `-` goes back to the embedded one."""
    ContextBook(config_dir()).use("" if name == "-" else name)
    say(
        "the embedded server is used from now on"
        if name == "-"
        else f"context {name} is used from now on"
    )


@context.command("add")
@click.argument("name")
@click.argument("address")
@click.option(
    "--token-file", default="", metavar="FILE", help="File with the token; read at every call."
)
@click.option(
    "--ca-file", default="", metavar="FILE", help="Authority of the server's certificate."
)
@click.option("--project", default="", metavar="PROJECT", help="Project of calls that name none.")
def add(name: str, address: str, token_file: str, ca_file: str, project: str) -> None:
    """Remember a server under a name, without asking it anything."""
    parse_address(address)
    ContextBook(config_dir()).put(
        Context(name, address, _absolute(token_file), _absolute(ca_file), project)
    )


@context.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Forget a server and its token."""
    ContextBook(config_dir()).remove(name)


@context.command("show")
@server_options()
def show() -> None:
    """Show which server would be talked to, and why."""
    server = find_server(session().choice)
    if server is None:
        click.echo(
            f"the embedded server in {data_dir()}, which does not run; the next command starts it"
        )
        return
    token = "there is one" if server.token else "none"
    security = "TLS" if server.tls else "plain, on loopback"
    rows = [("address", server.address), ("found by", server.source), ("token", token)]
    pairs([*rows, ("connection", security), ("project", server.project or "default")], indent=0)


@click.command()
@click.argument("address")
@click.option(
    "--token-file", required=True, metavar="FILE", help="File with the token; `-` reads stdin."
)
@click.option("--name", metavar="NAME", help="Name of the context. [default: the address's host]")
@click.option(
    "--ca-file", default="", metavar="FILE", help="Authority of the server's certificate."
)
@click.option("--project", default="", metavar="PROJECT", help="Project of calls that name none.")
def login(address: str, token_file: str, name: str | None, ca_file: str, project: str) -> None:
    """Try a token at a server; if it is good, remember both and use them from now on."""
    host_port, tls = parse_address(address)
    token = _stdin_token() if token_file == "-" else read_token(token_file)
    server = Server(host_port, token, tls or bool(ca_file), ca_file, source="login")
    version = asyncio.run(_ask(server))
    chosen = name or host_port.rpartition(":")[0].strip("[]").replace(":", "-")
    entry = Context(chosen, address, "", _absolute(ca_file), project)
    ContextBook(config_dir()).put(entry, token, use=True)
    say(f"logged in to {host_port} (hatoba {version}); it is used from now on as context {chosen}")


async def _ask(server: Server) -> str:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import admin_pb2

    try:
        async with AsyncClient(locate=lambda: server) as client:
            reply = await client.call(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)
    except HatobaError as error:
        error.remedy = error.remedy or "nothing was remembered"
        raise
    return reply.version


def _stdin_token() -> str:
    token = sys.stdin.read().strip()
    if not token:
        raise InvalidSpec("stdin holds no token")
    return token


def _absolute(path: str) -> str:
    from pathlib import Path

    return str(Path(path).expanduser().absolute()) if path else ""
