"""`hatoba deployments ...`, and what people read of deployments."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Self

import click

from hatoba.cli.exits import Exit
from hatoba.cli.output import (
    age,
    console,
    emit,
    emit_line,
    moment,
    output_option,
    pairs,
    table,
)
from hatoba.cli.root import Group
from hatoba.cli.session import open_client, server_options, with_client

if TYPE_CHECKING:
    from rich.live import Live

    from hatoba.aio import AsyncClient
    from hatoba.v1 import deployment_pb2, device_pb2

LAST_LINES = 10


@click.group(cls=Group)
def deployments() -> None:
    """What serves models: look at, scale, steer, take away."""


# -- words -----------------------------------------------------------------------------------------


def state_name(one: deployment_pb2.Deployment) -> str:
    """Its state without its prefix."""
    from hatoba.v1 import deployment_pb2

    return deployment_pb2.DeploymentState.Name(one.state).removeprefix("DEPLOYMENT_STATE_")


def rollout_name(one: deployment_pb2.Rollout) -> str:
    """The state of a roll-out without its prefix."""
    from hatoba.v1 import deployment_pb2

    return deployment_pb2.RolloutState.Name(one.state).removeprefix("ROLLOUT_STATE_")


def version(resource: str) -> str:
    """`digits:7` of a model version's resource name."""
    parts = resource.split("/")
    return f"{parts[3]}:{parts[5]}" if len(parts) == 6 else resource


def revision_line(one: deployment_pb2.RevisionStatus, *, devices: bool = False) -> str:
    """A revision in a line: `2 (digits:8)  1 of 2 ready, 10%`; devices have no share of traffic."""
    if devices:
        wanted = f"{one.wanted:,} devices that are to have it"
        return f"{one.revision} ({version(one.model_version)})  runs on {one.ready:,} of {wanted}"
    return (
        f"{one.revision} ({version(one.model_version)})  "
        f"{one.ready} of {one.wanted} ready, {one.weight}% of the traffic"
    )


def on_devices(one: deployment_pb2.Deployment) -> bool:
    """Whether it runs on devices instead of as replicas."""
    return one.spec.HasField("devices")


def newest_model(one: deployment_pb2.Deployment) -> str:
    """What its newest revision is of: `digits:8`."""
    newest = (status for status in one.revisions if status.revision == one.rollout.to_revision)
    model = next((status.model_version for status in newest), "")
    return version(model) if model else one.spec.model


def progress_line(one: deployment_pb2.Deployment) -> str:
    """Where a deployment stands, in a line that only differs when something did."""
    from hatoba.aio import short_name

    if on_devices(one):
        from hatoba.cli.fleet import course_line

        return course_line(one, course_state(one), newest_model(one))
    parts = [f"{status.revision}: {_share(status)}" for status in one.revisions]
    rollout = one.rollout
    step = ""
    if rollout.step and not rollout.end_time.seconds:
        step = f" step {rollout.step}"
    return f"{short_name(one.name)}  {course_state(one)}{step}  {'; '.join(parts)}".rstrip()


def course_state(one: deployment_pb2.Deployment) -> str:
    """The state of its roll-out while there is one, else its own."""
    return state_name(one) if one.rollout.end_time.seconds else rollout_name(one.rollout)


def _share(status: deployment_pb2.RevisionStatus) -> str:
    return f"{version(status.model_version)} {status.ready}/{status.wanted} ready {status.weight}%"


class Teller:
    """Tells a deployment's course, a line for each change; of one on devices, on a terminal, a
    table that is drawn again in its place. `err`: on stderr, and each line with the time. To be
    made where nothing runs on an event loop: it imports what draws.
    """

    def __init__(self, *, err: bool = False) -> None:
        from rich.live import Live

        screen = console(err=err)
        self._err = err
        self._last = ""
        self._board: Live | None = None
        if screen.is_terminal:
            self._board = Live(console=screen, auto_refresh=False, redirect_stdout=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.stop()

    def tell(self, one: deployment_pb2.Deployment) -> None:
        """How it is now, if that is something else than before."""
        line = progress_line(one)
        if on_devices(one) and self._board is not None:
            self._draw(self._board, one, line.partition(";")[0])
        elif line != self._last:
            self._write(line)
        self._last = line

    def _write(self, line: str) -> None:
        if self._err:
            click.secho(f"{_clock()}  {line}", dim=True, err=True)
        else:
            click.echo(line)

    def _draw(self, screen: Live, one: deployment_pb2.Deployment, headline: str) -> None:
        from rich.text import Text

        from hatoba.cli.fleet import board

        screen.start()
        screen.update(Text(board(one, headline), no_wrap=True, overflow="ellipsis"), refresh=True)


def _clock() -> str:
    import time

    return time.strftime("%H:%M:%S")


def ending(one: deployment_pb2.Deployment) -> str:
    """How a followed roll-out ended; with cause and last log lines when it did badly."""
    from hatoba.aio import short_name

    name, rollout = short_name(one.name), one.rollout
    if state_name(one) == "PAUSED":
        return (
            f"{name} waits for {rollout.waiting_for}\n"
            f"  next  hatoba deployments resume {name}\n"
            f"        hatoba deployments promote {name}\n"
            f"        hatoba deployments rollback {name}"
        )
    return _good_ending(one) if outcome(one) is Exit.OK else _bad_ending(one)


def _good_ending(one: deployment_pb2.Deployment) -> str:
    from hatoba.aio import short_name

    where = f" at {', '.join(one.urls)}" if one.urls else ""
    line = f"{short_name(one.name)} is {state_name(one)}{where}"
    if not on_devices(one):
        return line
    from hatoba.cli.fleet import done_lines

    return "\n  ".join([line, *done_lines(one, newest_model(one))])


def _bad_ending(one: deployment_pb2.Deployment) -> str:
    from hatoba.aio import short_name

    name, rollout = short_name(one.name), one.rollout
    told = [f"{name}: the roll-out of revision {rollout.to_revision} is {rollout_name(rollout)}"]
    if rollout.cause.message:
        told.append(f"  cause  {rollout.cause.message}")
    if lines := list(rollout.cause.last_log_lines)[-LAST_LINES:]:
        told += ["  last lines", *(f"    {text}" for text in lines)]
    told.append(f"  next   hatoba deployments events {name}")
    if on_devices(one):
        from hatoba.cli.fleet import BAD_STAGES

        told.append(f"         hatoba deployments devices {name} {BAD_STAGES}")
    return "\n".join(told)


def outcome(one: deployment_pb2.Deployment) -> Exit:
    """The exit code of how a roll-out ended."""
    if rollout_name(one.rollout) in ("ROLLED_BACK", "FAILED", "ROLLING_BACK"):
        return Exit.ROLLED_BACK
    return Exit.FAILURE if rollout_name(one.rollout) == "SUPERSEDED" else Exit.OK


def show(found: Sequence[deployment_pb2.Deployment]) -> None:
    """A table of deployments."""
    from hatoba.aio import short_name

    rows = [
        [
            short_name(one.name),
            state_name(one),
            one.spec.model,
            str(one.current_revision or "-"),
            _how_many(one),
            ", ".join(one.urls) or "-",
            age(one.create_time),
        ]
        for one in found
    ]
    heads = ["DEPLOYMENT", "STATE", "MODEL", "REVISION", "READY", "URL", "AGE"]
    table(heads, rows, empty="no deployments: `hatoba deploy MODEL` makes one")


def _how_many(one: deployment_pb2.Deployment) -> str:
    if on_devices(one):
        from hatoba.cli.fleet import runs_on

        return runs_on(one)
    return f"{sum(status.ready for status in one.revisions)} of {one.spec.replicas}"


def show_one(one: deployment_pb2.Deployment, *, wide: bool = False) -> None:
    """Everything about one deployment."""
    from hatoba.aio import short_name

    rollout = one.rollout
    click.echo(f"{short_name(one.name)}  {state_name(one)}")
    followed = " (followed)" if one.following else ""
    course = f"{rollout.from_revision or 'nothing'} -> {rollout.to_revision}"
    revisions = [revision_line(status, devices=on_devices(one)) for status in one.revisions]
    rows = [
        ("cause", one.cause.message),
        ("last lines", "\n".join(list(one.cause.last_log_lines)[-LAST_LINES:])),
        ("model", f"{one.spec.model}{followed}"),
        ("url", "\n".join(one.urls)),
        ("revisions", "\n".join(revisions)),
        *_target_rows(one),
        ("roll-out", f"{rollout.number}: {course}, {rollout_name(rollout)}"),
        ("waits for", rollout.waiting_for),
        ("went wrong", rollout.cause.message),
        ("replicas", "\n".join(_replica_line(replica) for replica in one.replicas)),
        ("made", f"{moment(one.create_time)} by {one.created_by}"),
    ]
    if wide:
        rows += [("uid", one.uid), ("generation", str(one.generation)), ("etag", one.etag)]
    pairs(rows)


def _target_rows(one: deployment_pb2.Deployment) -> list[tuple[str, str]]:
    """Of one on devices: which, and where they stand."""
    if not on_devices(one):
        return []
    from hatoba.cli.fleet import tally_lines, target_rows

    return [*target_rows(one), ("tally", "\n".join(tally_lines(one.devices)))]


def _replica_line(one: deployment_pb2.Replica) -> str:
    from hatoba.v1 import deployment_pb2

    state = deployment_pb2.ReplicaState.Name(one.state).removeprefix("REPLICA_STATE_")
    restarts = f"{one.restarts} restarts" if one.restarts else ""
    parts = [one.name, state, one.address, one.host, restarts, one.cause.message]
    return "  ".join(part for part in parts if part)


# -- looking ---------------------------------------------------------------------------------------


@deployments.command("list")
@output_option
@server_options()
def list_deployments(output: str) -> None:
    """List deployments by name."""
    from hatoba.v1 import deployment_pb2

    found = with_client(lambda client: client.deployments.list())
    reply = deployment_pb2.ListDeploymentsResponse(deployments=found)
    emit(reply, output, lambda: show(found))


@deployments.command("get")
@click.argument("name")
@output_option
@server_options()
def get(name: str, output: str) -> None:
    """Show one deployment: its revisions, replicas or devices, and roll-out."""
    found = with_client(lambda client: client.deployments.get(name))
    emit(found, output, lambda: show_one(found, wide=output == "wide"))


_limit = click.option(
    "-n", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most N."
)


@deployments.command("revisions")
@click.argument("name")
@_limit
@output_option
@server_options()
def revisions(name: str, limit: int, output: str) -> None:
    """List the revisions of a deployment, newest first."""
    from hatoba.v1 import deployment_pb2

    found = with_client(lambda client: client.deployments.revisions(name, limit))
    rows = [
        [
            str(one.revision),
            version(one.model_version),
            "yes" if one.proven else "no",
            age(one.create_time),
            one.created_by,
            one.cause.message or "-",
        ]
        for one in found
    ]
    heads = ["REVISION", "MODEL", "PROVEN", "AGE", "BY", "GIVEN UP"]
    reply = deployment_pb2.ListRevisionsResponse(revisions=found)
    emit(reply, output, lambda: table(heads, rows))


@deployments.command("events")
@click.argument("name")
@_limit
@output_option
@server_options()
def events(name: str, limit: int, output: str) -> None:
    """Show what happened to a deployment, oldest first."""
    found = with_client(lambda client: client.deployments.events(name, limit))
    for one in reversed(found):
        emit_line(one, output, event_line(one))


def event_line(one: deployment_pb2.DeploymentEvent) -> str:
    """One event in a line: time, kind, what happened, by whom."""
    by = "" if one.actor in ("", "system") else f" (by {one.actor})"
    return f"{moment(one.time)}  {one.kind:<12}{one.message}{by}"


@deployments.command("devices")
@click.argument("name")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    metavar="STAGE",
    help="Only these: waiting, offered, applying, baking, succeeded, failed, rejected, timed-out, "
    "not-reached, superseded, left.",
)
@click.option(
    "--rollout",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Where they stood in an earlier roll-out; `get` shows its number. [default: the newest]",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False),
    metavar="FILE.png",
    help="Draw when how many of them got where they are.",
)
@output_option
@server_options()
def devices(
    name: str, stages: tuple[str, ...], rollout: int, plot: str | None, output: str
) -> None:
    """List the devices of a deployment by name, and where each stands on the way to the newest
    revision.
    """
    from hatoba.v1 import device_pb2

    found = with_client(lambda client: client.devices.rollout(name, stages, rollout))
    if plot:
        _draw(found, plot, name)
        return
    reply = device_pb2.ListRolloutDevicesResponse(devices=found)
    emit(reply, output, lambda: show_devices(found))


def _draw(found: Sequence[device_pb2.RolloutDevice], plot: str, name: str) -> None:
    from hatoba.cli.charts import draw_counts
    from hatoba.cli.fleet import courses

    draw_counts(courses(found), plot, title=name)
    click.echo(f"drew {len(found)} devices into {plot}", err=True)


def show_devices(found: Sequence[device_pb2.RolloutDevice]) -> None:
    """A table of devices on the way to a revision."""
    from hatoba.cli.fleet import HEADS, device_row

    table(HEADS, [device_row(one) for one in found], empty="no such devices")


@deployments.command("logs")
@click.argument("name")
@click.option("--replica", default="", metavar="NAME", help="Which one. [default: the newest]")
@click.option(
    "--stream",
    type=click.Choice(["stdout", "stderr", "build"]),
    default="stderr",
    show_default=True,
    help="Which stream.",
)
@click.option(
    "--tail", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Last N lines."
)
@click.option("-f", "--follow", is_flag=True, help="Go on while it runs.")
@server_options()
@click.pass_context
def logs(
    ctx: click.Context, /, name: str, replica: str, stream: str, tail: int, follow: bool
) -> None:
    """Show what a replica wrote."""

    async def read(client: AsyncClient) -> None:
        source = client.deployments.logs(
            name, replica=replica, stream=stream, tail=tail, follow=follow
        )
        async with aclosing(source) as pieces:
            async for piece in pieces:
                sys.stdout.buffer.write(piece.data)
                sys.stdout.buffer.flush()

    try:
        with_client(read)
    except KeyboardInterrupt:
        ctx.exit(Exit.DETACHED)


@deployments.command("watch")
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on after it is settled.")
@output_option
@server_options()
@click.pass_context
def watch(ctx: click.Context, /, name: str, follow: bool, output: str) -> None:
    """Show a deployment as it changes, until it is settled.

    A line for each change; of one on devices a table that is drawn again in its place, where
    stdout is a terminal.
    """

    async def read(teller: Teller) -> None:
        async with (
            open_client() as client,
            aclosing(client.deployments.watch(name, follow=follow)) as source,
        ):
            async for one in source:
                if output in ("json", "yaml"):
                    emit_line(one, output, "")
                else:
                    teller.tell(one)

    try:
        with Teller() as teller:
            asyncio.run(read(teller))
    except KeyboardInterrupt:
        ctx.exit(Exit.DETACHED)


# -- steering --------------------------------------------------------------------------------------


def _steered(
    output: str, act: Callable[[AsyncClient], Awaitable[deployment_pb2.Deployment]]
) -> None:
    """Carry out one change and show the deployment."""
    found = with_client(act)
    emit(found, output, lambda: show([found]))


@deployments.command("scale")
@click.argument("name")
@click.argument("replicas", type=click.IntRange(0, 1000))
@output_option
@server_options()
def scale(name: str, replicas: int, output: str) -> None:
    """Have so many replicas from now on."""
    _steered(output, lambda client: client.deployments.scale(name, replicas))


@deployments.command("pause")
@click.argument("name")
@output_option
@server_options()
def pause(name: str, output: str) -> None:
    """Stop a roll-out where it is: no further step, no roll-back by itself."""
    _steered(output, lambda client: client.deployments.pause(name))


@deployments.command("resume")
@click.argument("name")
@output_option
@server_options()
def resume(name: str, output: str) -> None:
    """Let a paused roll-out go on."""
    _steered(output, lambda client: client.deployments.resume(name))


@deployments.command("promote")
@click.argument("name")
@output_option
@server_options()
def promote(name: str, output: str) -> None:
    """Skip the remaining steps of a roll-out."""
    _steered(output, lambda client: client.deployments.promote(name))


@deployments.command("retry")
@click.argument("name")
@click.option(
    "--device", "devices", multiple=True, metavar="NAME", help="Only on these. [default: all]"
)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice(["failed", "rejected", "timed-out", "not-reached"]),
    help="Only on those that stand there. [default: failed, rejected, timed-out]",
)
@output_option
@server_options()
def retry(name: str, devices: tuple[str, ...], stages: tuple[str, ...], output: str) -> None:
    """Have the newest revision tried again on devices that do not have it.

    Not once it was given up: deploy it anew then. Who is away is offered it when it comes.
    """
    told = with_client(lambda client: client.devices.retry(name, devices, stages))
    emit(told, output, lambda: click.echo(_tried_again(name, told.devices)))


def _tried_again(name: str, count: int) -> str:
    if not count:
        return f"nothing is to be tried again; see hatoba deployments devices {name}"
    return f"tried again on {count:,} {'device' if count == 1 else 'devices'}"


@deployments.command("rollback")
@click.argument("name")
@click.option(
    "--revision",
    type=click.IntRange(1),
    metavar="N",
    help="Where to. [default: the proven one before]",
)
@click.option("--reason", default="", metavar="TEXT", help="Why; kept in the events.")
@output_option
@server_options()
def rollback(name: str, revision: int | None, reason: str, output: str) -> None:
    """Go back to an earlier revision. An alias is not followed any further."""
    _steered(
        output,
        lambda client: client.deployments.rollback(name, revision=revision or 0, reason=reason),
    )


@deployments.command("traffic")
@click.argument("name")
@click.argument("weights", nargs=-1, required=True, metavar="REVISION=PERCENT...")
@output_option
@server_options()
def traffic(name: str, weights: tuple[str, ...], output: str) -> None:
    """Share the traffic by hand, for example 1=80 2=20. Promote or rollback ends it."""
    found = dict(_weight(text) for text in weights)
    _steered(output, lambda client: client.deployments.traffic(name, found))


def _weight(text: str) -> tuple[int, int]:
    revision, _, percent = text.partition("=")
    if not revision.isdigit() or not percent.isdigit():
        raise click.UsageError(f"{text!r} is no share: write REVISION=PERCENT, for example 2=20")
    return int(revision), int(percent)


@deployments.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--allow-removal", is_flag=True, help="Devices that run it may lose it.")
@click.option("--wait", is_flag=True, help="Wait until nothing of it is left.")
@server_options()
def delete(name: str, yes: bool, allow_removal: bool, wait: bool) -> None:
    """Take a deployment away: out of the routers first, then its replicas.

    One that devices run is kept unless somebody is asked, and says so, or --allow-removal is said.
    """
    if not yes:
        allow_removal = _ask_whether_to_delete(name) or allow_removal

    async def remove(client: AsyncClient) -> None:
        await client.deployments.delete(name, allow_removal=allow_removal)
        if wait:
            async with aclosing(client.deployments.watch(name, follow=True)) as source:
                async for _ in source:
                    pass

    with_client(remove)
    click.echo(f"{'removed' if wait else 'removing'} deployment {name}", err=True)


def _ask_whether_to_delete(name: str) -> bool:
    """Ask, with the number of devices that run it; whether there are any. Raises Abort."""
    from hatoba.cli.fleet import running_on

    count = running_on(with_client(lambda client: client.deployments.get(name)))
    where = "" if not count else f"it runs on {count:,} device{'' if count == 1 else 's'}; "
    click.confirm(f"{where}take deployment {name} away?", abort=True, err=True)
    return count > 0
