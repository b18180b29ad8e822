"""`hatoba webhooks ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hatoba.cli.output import emit, moment, output_option, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import webhook_pb2


@click.group(cls=Group)
def webhooks() -> None:
    """Events that are told to other systems over HTTP."""


CHOICE = (
    click.option(
        "--filter",
        "chosen",
        default="",
        metavar="FILTER",
        help="Only events of such jobs, for example 'queue = gpu AND labels.team = vision'.",
    ),
    click.option(
        "--jobs-only",
        is_flag=True,
        help="Only events that move a job itself, not one of its tasks.",
    ),
    click.option(
        "--reason",
        "reasons",
        multiple=True,
        metavar="REASON",
        help="Only events with this reason, for example end or retry; may be repeated.",
    ),
)


def _choice(function: Any) -> Any:
    for option in reversed(CHOICE):
        function = option(function)
    return function


@webhooks.command("create")
@click.argument("name")
@click.argument("url")
@_choice
@output_option
@server_options()
def create(
    name: str, url: str, chosen: str, jobs_only: bool, reasons: tuple[str, ...], output: str
) -> None:
    """Post events from now on to URL. The key of their signatures is printed once.

    Each event comes at least once and in order, and again until the receiver answers 2xx, for a
    week. A receiver checks `hatoba-signature` with `hatoba.webhooks.verify`.
    """
    from hatoba.v1 import webhook_pb2

    async def make(client: AsyncClient) -> webhook_pb2.CreateWebhookResponse:
        request = webhook_pb2.CreateWebhookRequest(project=client.project, webhook_id=name)
        request.webhook.url, request.webhook.filter = url, chosen
        request.webhook.jobs_only = jobs_only
        request.webhook.reasons.extend(reasons)
        return await client.call(request, webhook_pb2.CreateWebhookResponse)

    reply = with_client(make)
    emit(reply, output, lambda: _show_key(reply))


def _show_key(reply: webhook_pb2.CreateWebhookResponse) -> None:
    """The key alone on stdout, so that it can go into a file."""
    click.echo(
        f"{reply.webhook.name} posts to {reply.webhook.url}; the key is shown once", err=True
    )
    click.echo(reply.signing_key)


@webhooks.command("list")
@output_option
@server_options()
def list_webhooks(output: str) -> None:
    """List the webhooks of the project, with how their deliveries go."""
    from hatoba.v1 import webhook_pb2

    async def read(client: AsyncClient) -> list[webhook_pb2.Webhook]:
        request = webhook_pb2.ListWebhooksRequest(project=client.project, page_size=1000)
        found: list[webhook_pb2.Webhook] = []
        while True:
            page = await client.call(request, webhook_pb2.ListWebhooksResponse)
            found.extend(page.webhooks)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    found = with_client(read)
    emit(webhook_pb2.ListWebhooksResponse(webhooks=found), output, lambda: show(found))


def show(found: Sequence[webhook_pb2.Webhook]) -> None:
    """A table of webhooks."""
    from hatoba.aio import short_name

    rows = [
        [short_name(one.name), one.url, state_of(one), str(one.delivered_seq), str(one.given_up)]
        for one in found
    ]
    table(["WEBHOOK", "URL", "STATE", "DELIVERED", "GIVEN UP"], rows, empty="no webhooks")


def state_of(one: webhook_pb2.Webhook) -> str:
    """How its deliveries go, in words."""
    if one.paused:
        return "paused"
    if one.failures:
        return f"failed {one.failures} times, next try {moment(one.next_try_time)}"
    return "good"


@webhooks.command("get")
@click.argument("name")
@output_option
@server_options()
def get(name: str, output: str) -> None:
    """Show one webhook."""
    from hatoba.v1 import webhook_pb2

    async def read(client: AsyncClient) -> webhook_pb2.Webhook:
        request = webhook_pb2.GetWebhookRequest(name=_resource(client, name))
        return await client.call(request, webhook_pb2.Webhook)

    one = with_client(read)
    emit(one, output, lambda: _details(one))


def _details(one: webhook_pb2.Webhook) -> None:
    wanted = [
        one.filter,
        "jobs only" if one.jobs_only else "",
        "reasons " + ", ".join(one.reasons) if one.reasons else "",
    ]
    rows = [
        ["webhook", one.name],
        ["url", one.url],
        ["events", "; ".join(filter(None, wanted)) or "all of the project"],
        ["state", state_of(one)],
        ["delivered up to", str(one.delivered_seq)],
        ["given up", str(one.given_up)],
        ["last error", one.last_error or "none"],
        ["made", f"{moment(one.create_time)} by {one.created_by}"],
    ]
    for label, value in rows:
        click.echo(f"{label:<16} {value}")


@webhooks.command("delete")
@click.argument("name")
@server_options()
def delete(name: str) -> None:
    """End a webhook; what was not delivered is not. Twice is once."""
    from hatoba.v1 import webhook_pb2

    async def end(client: AsyncClient) -> webhook_pb2.DeleteWebhookResponse:
        request = webhook_pb2.DeleteWebhookRequest(name=_resource(client, name))
        return await client.call(request, webhook_pb2.DeleteWebhookResponse)

    with_client(end)
    click.echo(f"{name} posts nothing any more", err=True)


@webhooks.command("pause")
@click.argument("name")
@click.option("--resume", is_flag=True, help="Let it go on where it was.")
@server_options()
def pause(name: str, resume: bool) -> None:
    """Post nothing for a while; events wait in the log. --resume goes on, and tries at once."""
    from hatoba.v1 import webhook_pb2

    async def change(client: AsyncClient) -> webhook_pb2.Webhook:
        request = webhook_pb2.UpdateWebhookRequest()
        request.webhook.name = _resource(client, name)
        request.webhook.paused = not resume
        request.update_mask.paths.append("paused")
        return await client.call(request, webhook_pb2.Webhook)

    one = with_client(change)
    what = "is paused" if one.paused else "goes on"
    click.echo(f"{one.name} {what} at event {one.delivered_seq}", err=True)


@webhooks.command("test")
@click.argument("name")
@server_options()
def test(name: str) -> None:
    """Post a test message now and say what the receiver answered."""
    from hatoba.v1 import webhook_pb2

    async def post(client: AsyncClient) -> webhook_pb2.TestWebhookResponse:
        request = webhook_pb2.TestWebhookRequest(name=_resource(client, name))
        return await client.call(request, webhook_pb2.TestWebhookResponse)

    reply = with_client(post)
    if not reply.status:
        raise click.ClickException(f"no answer: {reply.error}")
    if not 200 <= reply.status < 300:
        raise click.ClickException(f"the receiver answered {reply.status}, and only 2xx counts")
    click.echo(f"the receiver answered {reply.status}", err=True)


def _resource(client: AsyncClient, name: str) -> str:
    """A bare name belongs to the project of this command."""
    return name if "/" in name else f"projects/{client.project}/webhooks/{name}"
