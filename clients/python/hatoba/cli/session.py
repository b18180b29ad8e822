"""Which server a command talks to, and how it runs its calls."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hatoba.settings import Choice

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

SERVER_OPTIONS = {
    "address": "Server as HOST:PORT [env: HATOBA_ADDRESS]",
    "token_file": "File that holds the token [env: HATOBA_TOKEN_FILE]",
    "ca_file": "Authority of the server's certificate [env: HATOBA_CA_FILE]",
    "context": "A remembered server, see `hatoba context list`",
    "project": "Project [env: HATOBA_PROJECT]",
}


@dataclass
class Session:
    """What was said about the server, before or after the command's name."""

    choice: Choice = Choice()
    project: str = ""


def server_options(*, hidden: bool = True) -> Callable[[F], F]:
    """Let a command take the options that say which server; `hatoba --help` tells them once."""

    def decorate(function: F) -> F:
        for name, text in reversed(SERVER_OPTIONS.items()):
            flag = "--" + name.replace("_", "-")
            option = click.option(
                flag, expose_value=False, callback=_keep, hidden=hidden, help=text, metavar="TEXT"
            )
            function = option(function)
        return function

    return decorate


def _keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if not value:
        return
    session = ctx.find_root().ensure_object(Session)
    if param.name == "project":
        session.project = value
    else:
        session.choice = replace(session.choice, **{str(param.name): value})


def session() -> Session:
    """The session of the running command."""
    return click.get_current_context().find_root().ensure_object(Session)


def say(message: str) -> None:
    """A line to people: on stderr, so that stdout holds data only."""
    click.secho(f"hatoba: {message}", dim=True, err=True)


def open_client() -> AsyncClient:
    """A client for the server that is meant; to be opened with `async with`."""
    from hatoba.aio import AsyncClient

    current = session()
    project = current.project or os.environ.get("HATOBA_PROJECT", "")
    choice = current.choice
    return AsyncClient(
        choice.address,
        token_file=choice.token_file,
        context=choice.context,
        ca_file=choice.ca_file,
        project=project,
        notify=say,
    )


def with_client(work: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """Run one piece of work with an open client."""
    import asyncio

    client = open_client()

    async def connected() -> T:
        async with client:
            return await work(client)

    return asyncio.run(connected())
