"""`hatoba hosts ...`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from hatoba.cli.options import DURATION
from hatoba.cli.output import age, emit, moment, output_option, pairs, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client
from hatoba.units import say_bytes

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import worker_pb2


@click.group(cls=Group)
def hosts() -> None:
    """Machines that run our worker."""


def state_of(host: worker_pb2.Host) -> str:
    """One word for a host: what matters most about it."""
    if host.declared_gone:
        return "GONE"
    if not host.connected:
        return "AWAY"
    if host.draining:
        return "DRAINING"
    if host.cordoned:
        return "CORDONED"
    return "QUARANTINED" if host.HasField("quarantined_until") else "READY"


def room(host: worker_pb2.Host) -> list[str]:
    """What is free of what there is: cpus, memory, GPUs, places."""
    held = host.reserved
    memory = f"{say_bytes(host.memory_bytes - held.memory_bytes)} of {say_bytes(host.memory_bytes)}"
    cpus = f"{host.cpus - held.cpus:g} of {host.cpus:g}"
    gpus = f"{len(host.gpus) - held.gpus} of {len(host.gpus)}" if host.gpus else "-"
    return [cpus, memory, gpus, f"{host.slots - host.slots_used} of {host.slots}"]


def show(found: Sequence[worker_pb2.Host]) -> None:
    """A table of hosts."""
    from hatoba.aio import short_name

    rows = [
        [
            short_name(host.name),
            state_of(host),
            *room(host),
            str(host.attempts),
            "now" if host.connected else age(host.last_seen),
        ]
        for host in found
    ]
    heads = [
        "HOST",
        "STATE",
        "CPUS FREE",
        "MEMORY FREE",
        "GPUS FREE",
        "PLACES FREE",
        "RUNS",
        "SEEN",
    ]
    table(heads, rows, empty="no hosts; add a machine: `hatoba hosts add`")


@hosts.command("add")
@click.argument("name", required=False, default="")
@click.option(
    "--ttl",
    type=DURATION,
    metavar="DURATION",
    help="How long the line is good, at most 7d.  [default: 1h]",
)
@click.option(
    "--server",
    default="",
    metavar="HOST:PORT",
    help="What the machine is to dial, if not what the server is advertised as.",
)
@output_option
@server_options()
def add(name: str, ttl: float | None, server: str, output: str) -> None:
    """Print the line that makes another machine a host, to be pasted there.

    It is good for one machine and a short while. With NAME it makes that host, also in the place of
    a machine that is it now; without, the machine chooses a name.
    """
    from hatoba.v1 import worker_pb2

    async def make(client: AsyncClient) -> worker_pb2.JoinToken:
        request = worker_pb2.CreateJoinTokenRequest(host=name.removeprefix("hosts/"))
        if ttl is not None:
            request.ttl.FromTimedelta(timedelta(seconds=ttl))
        return await client.call(request, worker_pb2.JoinToken)

    made = with_client(make)
    emit(made, output, lambda: show_line(made, server))


def show_line(made: worker_pb2.JoinToken, server: str) -> None:
    """The line alone on stdout."""
    who = f"host {made.host}" if made.host else "a host"
    click.echo(
        f"Run this on the machine that is to be {who}, with `hatoba[worker]` installed; it is good "
        f"for one machine, until {moment(made.expire_time)}.",
        err=True,
    )
    click.echo(f"hatoba worker start --server {server or made.address} --join {made.secret}")


@hosts.command("list")
@output_option
@server_options()
def list_hosts(output: str) -> None:
    """List hosts by name, connected or not."""
    from hatoba.v1 import worker_pb2

    found = with_client(lambda client: client.operations.hosts())
    emit(worker_pb2.ListHostsResponse(hosts=found), output, lambda: show(found))


@hosts.command("get")
@click.argument("name")
@output_option
@server_options()
def get(name: str, output: str) -> None:
    """Show one host."""
    from hatoba.v1 import worker_pb2

    async def read(client: AsyncClient) -> worker_pb2.Host:
        return await client.call(worker_pb2.GetHostRequest(name=name), worker_pb2.Host)

    host = with_client(read)
    emit(host, output, lambda: show_host(host))


def show_host(host: worker_pb2.Host) -> None:
    """One host in words."""
    from hatoba.aio import short_name

    cpus, memory, gpus, places = room(host)
    labels = " ".join(f"{name}={value}" for name, value in sorted(host.labels.items()))
    click.echo(f"{short_name(host.name)}  {state_of(host)}")
    rows = [("cpus free", cpus), ("memory free", memory), ("gpus free", gpus if host.gpus else "")]
    rows += [("places free", places), ("attempts", str(host.attempts)), ("labels", labels)]
    rows += [("kept away", host.cordon_reason), ("until", moment(host.quarantined_until))]
    seen = "now" if host.connected else f"{age(host.last_seen)} ago"
    rows.append(("known by", "its own key" if host.joined else "a token"))
    pairs([*rows, ("worker", host.version), ("seen", seen)])


REASON = click.option("--reason", default="", metavar="TEXT", help="Kept and shown.")


@hosts.command("cordon")
@click.argument("name")
@click.option("--drain", is_flag=True, help="Also have what runs there go elsewhere.")
@REASON
@output_option
@server_options()
def cordon(name: str, drain: bool, reason: str, output: str) -> None:
    """Keep new work away; what runs there runs on, unless it is drained."""
    _keep_away(name, output, drain=drain, reason=reason)


@hosts.command("drain")
@click.argument("name")
@REASON
@output_option
@server_options()
def drain(name: str, reason: str, output: str) -> None:
    """Keep new work away, and have what runs there go elsewhere: `cordon --drain`."""
    _keep_away(name, output, drain=True, reason=reason)


def _keep_away(name: str, output: str, *, drain: bool, reason: str) -> None:
    host = with_client(
        lambda client: client.operations.cordon_host(name, drain=drain, reason=reason)
    )
    emit(host, output, lambda: show([host]))


@hosts.command("uncordon")
@click.argument("name")
@output_option
@server_options()
def uncordon(name: str, output: str) -> None:
    """Let work come again."""
    host = with_client(lambda client: client.operations.uncordon_host(name))
    emit(host, output, lambda: show([host]))


@hosts.command("remove")
@click.argument("name")
@server_options()
def remove(name: str) -> None:
    """Forget a host that has no work, and refuse its certificate; `drain` it first."""
    from hatoba.v1 import worker_pb2

    async def forget(client: AsyncClient) -> worker_pb2.Host:
        return await client.call(worker_pb2.RemoveHostRequest(name=name), worker_pb2.Host)

    with_client(forget)
    click.echo(f"removed {name.removeprefix('hosts/')}", err=True)


@hosts.command("declare-gone")
@click.argument("name")
@click.option("--reason", required=True, metavar="TEXT", help="Kept in the events.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_options()
def declare_gone(name: str, reason: str, yes: bool) -> None:
    """Declare that a machine is gone for good: its attempts are lost and may run elsewhere.

    Only do this when nothing of it can still run: two runs of one job would be your doing.
    """
    from hatoba.v1 import worker_pb2

    if not yes:
        click.confirm(
            f"nothing runs on {name} any more, and never will again?", abort=True, err=True
        )

    async def declare(client: AsyncClient) -> worker_pb2.Host:
        request = worker_pb2.DeclareHostGoneRequest(name=name, reason=reason)
        return await client.call(request, worker_pb2.Host)

    show([with_client(declare)])
