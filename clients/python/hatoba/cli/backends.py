"""`hatoba backends ...`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from hatoba.cli.exits import Exit
from hatoba.cli.options import DURATION
from hatoba.cli.output import emit, output_option, pairs, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client
from hatoba.errors import NotFound

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
    reply = with_client(lambda client: client.operations.backends())
    emit(reply, output, lambda: show_backends(reply, wide=output == "wide"))


def state_of(backend: admin_pb2.BackendInfo) -> str:
    """How a backend is: what keeps work away from it first."""
    if backend.cordoned:
        state = "draining" if backend.draining else "cordoned"
        return state + (f": {backend.cordon_reason}" if backend.cordon_reason else "")
    if backend.breaker not in ("", "closed"):
        return f"breaker {backend.breaker}"
    return backend.health + (f": {backend.message}" if backend.message else "")


def show_backends(reply: admin_pb2.ListBackendsResponse, *, wide: bool = False) -> None:
    """A table of backends, then what failed."""
    heads = ["BACKEND", "TYPE", "STATE", "CALLS", "ROOM"]
    heads += ["COST/H", "CAPABILITIES", "FROM"] if wide else []
    rows = []
    for backend in reply.backends:
        name = backend.name + (" (default)" if backend.is_default else "")
        calls = f"{backend.calls} of {backend.calls_limit}"
        row = [name, backend.type, state_of(backend), calls, _texts(backend.capacity)]
        more = [_cost(backend), _texts(backend.capabilities), backend.distribution]
        rows.append(row + (more if wide else []))
    table(heads, rows, empty="no backends")
    for failure in reply.failures:
        click.echo(f"{failure.name} could not be loaded: {failure.reason}")
        if failure.remedy:
            click.echo(f"  -> {failure.remedy}")


@backends.command("get")
@click.argument("name")
@output_option
@server_options()
def get(name: str, output: str) -> None:
    """Show one backend: its health, its breaker, and how its last calls went."""
    reply = with_client(lambda client: client.operations.backends())
    found = [backend for backend in reply.backends if backend.name == name]
    if not found:
        known = ", ".join(backend.name for backend in reply.backends) or "none"
        raise NotFound(f"no backend {name!r}", remedy=f"there are {known}")
    emit(found[0], output, lambda: show_backend(found[0]))


def show_backend(backend: admin_pb2.BackendInfo) -> None:
    """One backend in words."""
    click.echo(f"{backend.name}  {state_of(backend)}")
    rows = [
        ("type", f"{backend.type} from {backend.distribution}"),
        ("health", backend.health + (f": {backend.message}" if backend.message else "")),
        ("breaker", backend.breaker),
        ("calls under way", f"{backend.calls} of at most {backend.calls_limit}"),
        ("cost per hour", _cost(backend)),
        ("room", _texts(backend.capacity)),
        ("capabilities", _texts(backend.capabilities)),
    ]
    pairs([*rows, *((f"call {name}", told) for name, told in sorted(backend.operations.items()))])


@backends.command("check")
@click.argument("name")
@click.option("--image", default="", metavar="REF", help="Image of the probe; it needs `sh`.")
@click.option(
    "--patience",
    type=DURATION,
    default=0.0,
    metavar="DURATION",
    help="How long each step may take. [default: 2m]",
)
@server_options()
@click.pass_context
def check(ctx: click.Context, name: str, image: str, patience: float) -> None:
    """Send a short job through all of a backend: created, claimed by its runner, a line of its log
    back, stopped, released.

    The first step that fails names the missing right, quota or route, and what to do; then the
    exit code is 1. The job is ended in any case.
    """

    async def steps(client: AsyncClient) -> bool:
        good = False
        found = client.operations.check_backend(name, image=image, patience=patience)
        async with aclosing(found):
            async for step in found:
                good = step.good
                _show_step(step)
        return good

    if not with_client(steps):
        ctx.exit(Exit.FAILURE)


def _show_step(step: admin_pb2.CheckBackendResponse) -> None:
    took = step.took.ToTimedelta().total_seconds()
    word, colour = ("ok", "green") if step.good else ("FAILED", "red")
    click.echo(f"{step.step:8} ", nl=False)
    click.secho(f"{word:6} ", fg=colour, nl=False)
    click.echo(f"{step.message} ({took:.1f} s)")
    if step.remedy:
        click.echo(f"  -> {step.remedy}")


@backends.command("cordon")
@click.argument("name")
@click.option("--drain", is_flag=True, help="Also have what runs there go elsewhere.")
@click.option("--reason", default="", metavar="TEXT", help="Kept and shown.")
@output_option
@server_options()
def cordon(name: str, drain: bool, reason: str, output: str) -> None:
    """Launch nothing more there; what runs there runs on, unless it is drained."""
    backend = with_client(
        lambda client: client.operations.cordon_backend(name, drain=drain, reason=reason)
    )
    emit(backend, output, lambda: show_backend(backend))


@backends.command("uncordon")
@click.argument("name")
@output_option
@server_options()
def uncordon(name: str, output: str) -> None:
    """Let work come again."""
    backend = with_client(lambda client: client.operations.uncordon_backend(name))
    emit(backend, output, lambda: show_backend(backend))


def _cost(backend: admin_pb2.BackendInfo) -> str:
    return f"{backend.cost_per_hour:g}" if backend.cost_per_hour else "-"


def _texts(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in sorted(values.items())) or "-"
