"""`hatoba devices ...`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

import click

from hatoba.cli.device_targets import selector_option
from hatoba.cli.exits import Exit
from hatoba.cli.options import DURATION, LABEL, unique
from hatoba.cli.output import emit, emit_line, moment, output_option, pairs, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client
from hatoba.units import parse_pair

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from hatoba.aio import AsyncClient
    from hatoba.cli.device_words import Finding, Seen
    from hatoba.v1 import device_pb2, job_pb2

NO_DEVICES = "no devices; make one: `hatoba devices add`"
LINES = 1000
"""Lines of its log in which a diagnosis looks for gaps."""


@click.group(cls=Group)
def devices() -> None:
    """Machines at the edge, which dial out and are often away."""


@devices.command("add")
@click.option(
    "--name", default="", metavar="NAME", help="Name of the one device. [default: it chooses]"
)
@click.option(
    "--uses",
    type=click.IntRange(1, 100_000),
    default=1,
    show_default=True,
    metavar="N",
    help="For how many devices.",
)
@click.option(
    "--ttl",
    type=DURATION,
    metavar="DURATION",
    help="How long the line is good, at most 365d.  [default: 1d]",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    type=LABEL,
    metavar="K=V",
    help="Label that its devices get; they cannot choose these themselves.",
)
@click.option(
    "--server",
    default="",
    metavar="HOST:PORT",
    help="What the machine is to dial, if not what the server is advertised as.",
)
@click.option(
    "--transport",
    type=click.Choice(["grpc", "aws-iot"]),
    default="grpc",
    show_default=True,
    help="What its devices dial from then on: the server, or AWS IoT.",
)
@output_option
@server_options()
def add(
    name: str,
    uses: int,
    ttl: float | None,
    labels: tuple[tuple[str, str], ...],
    server: str,
    transport: str,
    output: str,
) -> None:
    """Print the line that makes other machines devices, to be run there.

    It is good for so many machines and so long, and for nothing else; `hatoba tokens revoke` ends
    it sooner. With --name it makes that device, also in the place of one whose disk was lost.

    A device by AWS IoT dials the server for this line alone.
    """
    name = name.removeprefix("devices/")
    if name and uses != 1:
        raise click.UsageError("--name is for one device: leave --uses out, or --name")
    given = unique(labels, "--label")
    made = with_client(
        lambda client: client.devices.token(
            uses=uses, ttl=ttl, labels=given, device=name, transport=transport
        )
    )
    emit(made, output, lambda: show_line(made, name, server))


def show_line(made: device_pb2.DeviceToken, name: str, server: str) -> None:
    """The line alone on stdout."""
    from hatoba.aio import short_name

    who = f"device {name}" if name else "a device"
    many = "one machine" if made.uses <= 1 else f"{made.uses:,} machines"
    click.echo(
        f"Run this on the machine that is to be {who}, with `hatoba[edge]` installed; it is good "
        f"for {many}, until {moment(made.expire_time)}. To end it before: "
        f"hatoba tokens revoke {short_name(made.name)}",
        err=True,
    )
    line = f"hatoba agent enroll --server {server or made.address} --token {made.secret}"
    click.echo(line + (f" --name {name}" if name else ""))


# -- looking ---------------------------------------------------------------------------------------


@devices.command("list")
@selector_option("Only those with this label: site=tokyo, site!=tokyo, 'site in (a,b)', ssd, !ssd.")
@click.option(
    "--away",
    type=DURATION,
    is_flag=False,
    flag_value=0.0,
    metavar="[DURATION]",
    help="Only those that are not connected; with a duration, of whom nothing was heard for so "
    "long.",
)
@click.option("--behind", is_flag=True, help="Only those that have not done all that is wanted.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["enrolled", "revoked", "leaving"]),
    help="Only those in this state; again for others.",
)
@click.option(
    "--platform", default="", metavar="ARCH", help="Only those made for it: arm64, arm, arm/v7."
)
@click.option(
    "--agent",
    default="",
    metavar="VERSION",
    help="Only those with this agent; none: those that never said theirs.",
)
@output_option
@server_options()
def list_devices(
    selector: tuple[job_pb2.LabelRequirement, ...],
    away: float | None,
    behind: bool,
    states: tuple[str, ...],
    platform: str,
    agent: str,
    output: str,
) -> None:
    """List devices by name, connected or not. GENERATION: done of wanted.

    \b
    Examples:
      hatoba devices list --away 7d --state enrolled
      hatoba devices list --selector site=tokyo --behind -o wide
    """
    from hatoba.devices import ListOptions
    from hatoba.v1 import device_pb2

    asked = ListOptions(behind=behind, states=states, platform=platform, agent=agent)
    if away is not None:
        asked["away"] = away
    found = with_client(lambda client: client.devices.list(selector, **asked))
    connected = sum(device.connected for device in found)
    reply = device_pb2.ListDevicesResponse(devices=found, total=len(found), connected=connected)
    none = "no such devices" if selector or away is not None or any(asked.values()) else NO_DEVICES
    emit(reply, output, lambda: show(found, wide=output == "wide", empty=none))


def show(
    found: Sequence[device_pb2.Device], *, wide: bool = False, empty: str = NO_DEVICES
) -> None:
    """A table of devices, and below it their numbers for people."""
    from hatoba.aio import short_name
    from hatoba.cli import device_words as words

    rows = [
        [
            short_name(device.name),
            words.state_of(device),
            words.link(device),
            words.platform(device),
            words.generations(device),
            *([device.agent or "-", device.transport or "-", words.seen(device)] if wide else []),
            words.labels(device),
        ]
        for device in found
    ]
    more = ["AGENT", "TRANSPORT", "SEEN"] if wide else []
    heads = ["DEVICE", "STATE", "LINK", "PLATFORM", "GENERATION", *more, "LABELS"]
    table(heads, rows, empty=empty)
    if found:
        click.echo(words.totals(found), err=True)


@devices.command("get")
@click.argument("name")
@output_option
@server_options()
def get(name: str, output: str) -> None:
    """Show one device: what is wanted of it, what runs there, and why not."""
    device = with_client(lambda client: client.devices.get(name))
    emit(device, output, lambda: show_device(device, wide=output == "wide"))


def show_device(device: device_pb2.Device, *, wide: bool = False) -> None:
    """One device in words."""
    from hatoba.cli import device_words as words

    _headline(device)
    pairs(words.device_rows(device, wide=wide))


def show_explanation(device: device_pb2.Device) -> None:
    """Where it is on the way to what is wanted, and what to type next."""
    from hatoba.aio import short_name
    from hatoba.cli import device_words as words

    _headline(device)
    name = short_name(device.name)
    following = f"hatoba devices diagnose {name}\nhatoba devices logs {name}"
    pairs([*words.explanation_rows(device), ("next", following if words.behind(device) else "")])


def _headline(device: device_pb2.Device) -> None:
    from hatoba.aio import short_name
    from hatoba.cli import device_words as words

    click.echo(f"{short_name(device.name)}  {words.state_of(device)}, {words.link(device)}")


@devices.command("logs")
@click.argument("name")
@click.option(
    "--deployment", default="", metavar="NAME", help="Only of this one. [default: all, and agent]"
)
@click.option(
    "--tail", type=click.IntRange(1, 1000), default=100, show_default=True, help="Last N lines."
)
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come.")
@output_option
@server_options()
@click.pass_context
def logs(
    ctx: click.Context, /, name: str, deployment: str, tail: int, follow: bool, output: str
) -> None:
    """Show what came of a device's logs, oldest first; what was lost there is named.

    Times are by the device's clock. What it wrote while it was away comes when it is back.
    """

    async def read(client: AsyncClient) -> None:
        source = client.devices.logs(name, deployment=deployment, tail=tail, follow=follow)
        async with aclosing(source) as lines:
            async for line in lines:
                _write_line(line, output)

    try:
        with_client(read)
    except KeyboardInterrupt:
        ctx.exit(Exit.DETACHED)


def _write_line(line: device_pb2.DeviceLog, output: str) -> None:
    if output in ("json", "yaml"):
        emit_line(line, output, "")
        return
    _tell_gap(line)
    if line.text:
        click.echo(log_line(line))


def _tell_gap(one: device_pb2.DeviceLog | device_pb2.StoredDeviceRecord) -> None:
    """What is missing before a record."""
    from hatoba.cli import device_words as words

    if one.trimmed:
        click.echo("hatoba: what may have been before this is not kept any more", err=True)
    if one.lost:
        click.echo(f"hatoba: {words.dropped(one.lost)} dropped on the device here", err=True)


def log_line(line: device_pb2.DeviceLog) -> str:
    """A line with its time and whose it is."""
    from hatoba.aio import short_name

    return f"{moment(line.time)}  {short_name(line.deployment) or 'agent'}  {line.text}"


@devices.command("metrics")
@click.argument("name")
@click.option(
    "--deployment", default="", metavar="NAME", help="Of this one. [default: the whole device]"
)
@click.option("--figure", default="", metavar="KEY", help="Each value of this one, oldest first.")
@click.option("-f", "--follow", is_flag=True, help="Each value, and go on as values come.")
@output_option
@server_options()
@click.pass_context
def metrics(
    ctx: click.Context, /, name: str, deployment: str, figure: str, follow: bool, output: str
) -> None:
    """Show figures that a device told: of itself, and of the deployments that run there.

    Of each the newest, the lowest and the highest of late. What it counted while it was away comes
    when it is back; what was lost there is named.
    """
    each = bool(figure or follow or output in ("json", "yaml"))

    async def read(client: AsyncClient) -> None:
        source = client.devices.figures(name, deployment=deployment, tail=LINES, follow=follow)
        found = []
        async with aclosing(_only(source, figure)) as figures:
            async for one in figures:
                if each:
                    _write_figure(one, output)
                else:
                    found.append(one)
        if not each:
            _show_figures(found)

    try:
        with_client(read)
    except KeyboardInterrupt:
        ctx.exit(Exit.DETACHED)


async def _only(
    source: AsyncGenerator[device_pb2.StoredDeviceRecord, None], figure: str
) -> AsyncGenerator[device_pb2.StoredDeviceRecord, None]:
    """Those of one name (empty: all), and gaps; what was lost among others is told of the next."""
    lost = 0
    async with aclosing(source) as records:
        async for one in records:
            lost += one.lost
            if one.record.HasField("figure") and figure not in ("", one.record.figure.name):
                continue
            one.lost, lost = lost, 0
            yield one


def _write_figure(one: device_pb2.StoredDeviceRecord, output: str) -> None:
    if output in ("json", "yaml"):
        emit_line(one, output, "")
        return
    _tell_gap(one)
    if one.record.HasField("figure"):
        click.echo(figure_line(one))


def _show_figures(found: Sequence[device_pb2.StoredDeviceRecord]) -> None:
    from hatoba.cli import device_words as words

    heads = ("FIGURE", "OF", "NEWEST", "LOWEST", "HIGHEST", "TOLD")
    rows = words.figure_rows([one.record for one in found if one.record.HasField("figure")])
    table(heads, rows, empty="It told no figures yet.")
    if lost := sum(one.lost for one in found):
        click.echo(f"hatoba: {words.dropped(lost)} dropped on the device among these", err=True)


def figure_line(one: device_pb2.StoredDeviceRecord) -> str:
    """A figure in a line: time, whose, name, value."""
    from hatoba.aio import short_name
    from hatoba.cli.device_words import amount

    told = one.record.figure
    whose = short_name(told.deployment) or "agent"
    return f"{moment(one.record.time)}  {whose}  {told.name}  {amount(told)}"


@devices.command("events")
@click.argument("name")
@click.option(
    "-n", "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most N."
)
@output_option
@server_options()
def events(name: str, limit: int, output: str) -> None:
    """Show what happened to a device and, as it told, on it, oldest first.

    What a device tells has the time of its clock, and comes when its link allows it. What was lost
    there is named.
    """

    async def look(client: AsyncClient) -> list[Event]:
        happened = await client.devices.happenings(name, limit)
        seen = await client.devices.events(name, limit)
        told = [Event(one.record.time, one, happening_line(one)) for one in happened]
        ours = [Event(one.time, one, event_line(one)) for one in reversed(seen)]
        return sorted([*told, *ours], key=lambda one: one.time.ToNanoseconds())[-limit:]

    for one in with_client(look):
        _write_event(one, output)


def _write_event(one: Event, output: str) -> None:
    from hatoba.v1 import device_pb2

    machine = output in ("json", "yaml")
    if not machine and isinstance(one.message, device_pb2.StoredDeviceRecord):
        _tell_gap(one.message)
    if machine or one.line:
        emit_line(one.message, output, one.line)


class Event(NamedTuple):
    """Something that happened, in a message and in a line; the line of a gap is empty."""

    time: Timestamp
    message: device_pb2.DeviceEvent | device_pb2.StoredDeviceRecord
    line: str


def event_line(one: device_pb2.DeviceEvent) -> str:
    """One event in a line: time, kind, what happened, by whom."""
    by = "" if one.actor in ("", "system") else f" (by {one.actor})"
    return f"{moment(one.time)}  {one.kind:<12}{one.message}{by}"


def happening_line(one: device_pb2.StoredDeviceRecord) -> str:
    """What a device told in a line; empty for a gap."""
    if not one.record.HasField("happening"):
        return ""
    told = one.record.happening
    return f"{moment(one.record.time)}  {told.kind:<12}{told.message} (told by the device)"


@devices.command("diagnose")
@click.argument("name")
@server_options()
@click.pass_context
def diagnose(ctx: click.Context, name: str) -> None:
    """Say what is wrong with a device as far as the server knows, and what to do.

    Its link, certificate, deployments, disk and memory, what it told of itself, lost records, and
    whether somebody else came with its identity. With something bad the exit code is 1.
    """
    from hatoba.cli import device_words as words

    async def look(client: AsyncClient) -> Seen:
        device = await client.devices.get(name)
        async with aclosing(client.devices.logs(name, tail=LINES)) as source:
            lines = [line async for line in source]
        return words.Seen(device, lines, await client.devices.events(name))

    seen = with_client(look)
    _headline(seen.device)
    found = words.findings(seen)
    show_findings(found)
    if any(one.word == "BAD" for one in found):
        ctx.exit(Exit.FAILURE)


def show_findings(found: Sequence[Finding]) -> None:
    """Each finding in a line, and what to do below it."""
    width = max(len(one.what) for one in found)
    colours = {"ok": "green", "note": "yellow", "BAD": "red"}
    for one in found:
        click.echo(f"  {one.what:{width}}  ", nl=False)
        click.secho(f"{one.word:<4}", fg=colours[one.word], nl=False)
        click.echo(f"  {one.message}")
        if one.remedy:
            click.echo(f"  {'':{width}}    -> {one.remedy}")


# -- changing --------------------------------------------------------------------------------------


all_option = selector_option("Instead of a name: all that have this label; counted first.")


def _one_or_all(name: str, selector: Sequence[job_pb2.LabelRequirement]) -> None:
    """Raise a usage error unless one of both is said."""
    if bool(name) == bool(selector):
        raise click.UsageError("name a device, or say which with --selector, and not both")


@devices.command("label")
@click.argument("words", nargs=-1, metavar="[NAME] K=V|K-...")
@all_option
@click.option(
    "--allow-removal", is_flag=True, help="It may lose deployments that are not for it any more."
)
@click.option("--yes", is_flag=True, help="Do not ask, with --selector.")
@output_option
@server_options()
@click.pass_context
def label(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    selector: tuple[job_pb2.LabelRequirement, ...],
    allow_removal: bool,
    yes: bool,
    output: str,
) -> None:
    """Give a device labels (K=V), or take them away (K-); deployments select it by them.

    One that would lose a deployment by that keeps its labels, unless --allow-removal is said.

    \b
    Examples:
      hatoba devices label shop-17 ring=canary floor-
      hatoba devices label --selector site=tokyo ring=canary
    """
    from hatoba.cli import device_words
    from hatoba.cli.many_devices import Action, do_to_all

    names_one = bool(words) and "=" not in words[0] and not words[0].endswith("-")
    name, changes = (words[0], words[1:]) if names_one else ("", words)
    _one_or_all(name, selector)
    given, removed = _changes(changes)

    async def act(client: AsyncClient, name: str) -> device_pb2.Device:
        return await client.devices.label(name, given, remove=removed, allow_removal=allow_removal)

    if selector:
        many = Action(
            lambda many: f"change labels of {many}: {' '.join(changes)}?", act, device_words.labels
        )
        ctx.exit(do_to_all(selector, many, output, yes=yes))
    device = with_client(lambda client: act(client, name))
    emit(device, output, lambda: show([device]))


def _changes(texts: Sequence[str]) -> tuple[dict[str, str], set[str]]:
    """Labels that are given, and those that are taken away."""
    if not texts:
        raise click.UsageError("say what is to change: K=V|K-")
    found = [_change(text) for text in texts]
    given = unique([(key, value) for key, value in found if value is not None], "label")
    removed = {key for key, value in found if value is None}
    if both := removed & given.keys():
        raise click.UsageError(f"{', '.join(sorted(both))}: given and taken away at once")
    return given, removed


def _change(text: str) -> tuple[str, str | None]:
    if "=" not in text and text.endswith("-") and len(text) > 1:
        return text[:-1], None
    try:
        return parse_pair(text, "a label")
    except ValueError as error:
        raise click.UsageError(f"{error}, or KEY- to take one away") from None


@devices.command("revoke")
@click.argument("name", default="")
@all_option
@click.option("--reason", default="", metavar="TEXT", help="Kept in its events.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@server_options()
@click.pass_context
def revoke(
    ctx: click.Context,
    /,
    name: str,
    selector: tuple[job_pb2.LabelRequirement, ...],
    reason: str,
    yes: bool,
    output: str,
) -> None:
    """Refuse a device's certificates from now on, and end its stream.

    For a device that was lost or stolen: what it runs, it goes on with. To have it back it must be
    enrolled anew. Those of a device by AWS IoT are ended there.
    """
    from hatoba.cli.many_devices import Action, do_to_all

    _one_or_all(name, selector)
    if selector:
        many = Action(
            lambda many: f"refuse {many} from now on?",
            lambda client, name: client.devices.revoke(name, reason),
            lambda _: "revoked",
        )
        ctx.exit(do_to_all(selector, many, output, yes=yes))
    if not yes:
        click.confirm(f"refuse {name} from now on?", abort=True, err=True)
    device = with_client(lambda client: client.devices.revoke(name, reason))
    emit(device, output, lambda: show([device]))
    if device.transport == "aws-iot":
        click.echo("its certificates at AWS IoT are ended", err=True)


@devices.command("decommission")
@click.argument("name", default="")
@all_option
@click.option(
    "--force", is_flag=True, help="Forget it at once, whatever it still runs: it will not come."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_options()
@click.pass_context
def decommission(
    ctx: click.Context,
    /,
    name: str,
    selector: tuple[job_pb2.LabelRequirement, ...],
    force: bool,
    yes: bool,
) -> None:
    """Have a device end all that it runs for us, and forget it once it says that it has.

    Of a device by AWS IoT nothing is left there then: neither certificates, nor shadows, nor thing.
    """
    from hatoba.cli.many_devices import Action, do_to_all

    _one_or_all(name, selector)
    if selector:
        many = Action(
            lambda many: f"forget {many} at once?" if force else f"have {many} end all they run?",
            lambda client, name: client.devices.decommission(name, force=force),
            lambda _: "forgotten" if force else "leaving",
        )
        ctx.exit(do_to_all(selector, many, "table", yes=yes))
    if not yes:
        click.confirm(f"have {name} end all that it runs?", abort=True, err=True)
    device = with_client(lambda client: client.devices.decommission(name, force=force))
    click.echo(_leaving(device, name.removeprefix("devices/"), force), err=True)


def _leaving(device: device_pb2.Device, name: str, force: bool) -> str:
    if force:
        return f"forgot {name}"
    told = f"{name} is to end all that it runs, and is forgotten once it says that it has"
    if device.connected:
        return told
    return f"{told}; it is away: if it never comes, hatoba devices decommission {name} --force"
