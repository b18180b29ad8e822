"""`hatoba tokens ...`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from hatoba.cli.options import DURATION
from hatoba.cli.output import emit, moment, output_option, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import admin_pb2

ROLES = ("admin", "user", "viewer", "worker", "router", "predict")


@click.group(cls=Group)
def tokens() -> None:
    """Who may come in."""


@tokens.command("create")
@click.argument("principal")
@click.option(
    "--role", type=click.Choice(ROLES), default="user", show_default=True, help="What it may do."
)
@click.option(
    "--ttl", type=DURATION, metavar="DURATION", help="How long it is good. [default: until revoked]"
)
@click.option(
    "--deployment",
    default="",
    metavar="NAME",
    help="With --role predict: the one deployment that it may ask.",
)
@output_option
@server_options()
def create(principal: str, role: str, ttl: float | None, deployment: str, output: str) -> None:
    """Make a token for PRINCIPAL. Its text is printed once and kept nowhere.

    `--role predict --deployment reader` makes one that can ask `reader` for predictions and nothing
    else, for whoever uses a model.
    """
    if (role == "predict") != bool(deployment):
        raise click.UsageError("--role predict and --deployment NAME go together")
    from hatoba.v1 import admin_pb2

    async def make(client: AsyncClient) -> admin_pb2.CreateTokenResponse:
        wanted = admin_pb2.Role.Value(f"ROLE_{role.upper()}")
        request = admin_pb2.CreateTokenRequest(principal=principal, role=wanted)
        request.deployment = _resource(client.project, deployment)
        if ttl is not None:
            request.ttl.FromTimedelta(timedelta(seconds=ttl))
        return await client.call(request, admin_pb2.CreateTokenResponse)

    reply = with_client(make)
    emit(reply, output, lambda: show_secret(reply))


def _resource(project: str, deployment: str) -> str:
    """A bare name belongs to the project of this command."""
    if not deployment or "/" in deployment:
        return deployment
    return f"projects/{project}/deployments/{deployment}"


def show_secret(reply: admin_pb2.CreateTokenResponse) -> None:
    """The text alone on stdout, so that it can go into a file."""
    until = moment(reply.token.expire_time)
    good = f", good until {until}" if until else ""
    click.echo(
        f"{reply.token.name} for {reply.token.principal}{good}; the text is shown once", err=True
    )
    click.echo(reply.secret)


@tokens.command("list")
@output_option
@server_options()
def list_tokens(output: str) -> None:
    """List tokens, revoked ones too, without their texts."""
    from hatoba.v1 import admin_pb2

    async def read(client: AsyncClient) -> list[admin_pb2.Token]:
        request = admin_pb2.ListTokensRequest(page_size=1000)
        found: list[admin_pb2.Token] = []
        while True:
            page = await client.call(request, admin_pb2.ListTokensResponse)
            found.extend(page.tokens)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    found = with_client(read)
    emit(admin_pb2.ListTokensResponse(tokens=found), output, lambda: show(found))


def show(found: Sequence[admin_pb2.Token]) -> None:
    """A table of tokens."""
    from hatoba.aio import short_name
    from hatoba.v1 import admin_pb2

    rows = []
    for token in found:
        role = admin_pb2.Role.Name(token.role).removeprefix("ROLE_")
        if token.deployment:
            role += f" {short_name(token.deployment)}"
        if token.uses:
            role += f" {token.used} of {token.uses} used"
        state = "revoked" if token.revoked else moment(token.expire_time) or "good"
        created = moment(token.create_time)
        rows.append(
            [short_name(token.name), token.principal, role, state, created, token.created_by]
        )
    table(["TOKEN", "PRINCIPAL", "ROLE", "UNTIL", "CREATED", "BY"], rows, empty="no tokens")


@tokens.command("revoke")
@click.argument("name")
@server_options()
def revoke(name: str) -> None:
    """End a token at once."""
    from hatoba.v1 import admin_pb2

    async def end(client: AsyncClient) -> admin_pb2.Token:
        return await client.call(admin_pb2.RevokeTokenRequest(name=name), admin_pb2.Token)

    token = with_client(end)
    click.echo(f"revoked {token.name} of {token.principal}", err=True)
