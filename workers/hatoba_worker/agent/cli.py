"""`hatoba agent`: make this machine a device, and be its agent."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hatoba_worker.agent.diagnosing import Finding
    from hatoba_worker.agent.provisioning import AwsWish
    from hatoba_worker.agent.settings import Settings

DATA = "~/.local/share/hatoba-agent"
NOT_ENROLLED = 78
_LABEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._/-]{0,61}[a-zA-Z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@click.group()
def agent() -> None:
    """Be a device: run models on this machine, whatever its link does."""


def _directory(_context: click.Context, _option: click.Parameter, given: Path | None) -> Path:
    return (given or Path(DATA)).expanduser().resolve()


def _labels(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not _LABEL.fullmatch(key):
            raise click.BadParameter(f"{text!r} is no label: write KEY=VALUE")
        labels[key] = value
    return labels


def _device(_context: click.Context, _option: click.Parameter, given: str) -> str:
    if given and not _NAME.fullmatch(given):
        raise click.BadParameter(
            f"{given!r} is no device's name: small letters, digits and dashes, at most 63"
        )
    return given


def _amount(_context: click.Context, _option: click.Parameter, given: str) -> int:
    from hatoba.units import parse_memory

    try:
        return parse_memory(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def data_option(command: Callable[..., None]) -> Callable[..., None]:
    """`--data` for a command."""
    return click.option(
        "--data",
        default=None,
        callback=_directory,
        type=click.Path(path_type=Path, file_okay=False),
        help=f"Directory of this device; it holds its keys.  [default: {DATA}]",
    )(command)


@agent.command()
@click.option(
    "--server", required=True, metavar="HOST:PORT", help="The server's ordinary port, once."
)
@click.option(
    "--token", default="", metavar="TOKEN", help="What `hatoba devices add` printed on the server."
)
@click.option("--token-file", default="", metavar="FILE", help="File with the token, in its place.")
@click.option(
    "--ca-file",
    default="",
    metavar="FILE",
    help="Authority (PEM) to believe instead of the token's.",
)
@click.option(
    "--aws-ca-file",
    default="",
    metavar="FILE",
    help="Of a device by AWS IoT: authority (PEM) to believe there instead of this machine's.",
)
@click.option(
    "--name",
    default="",
    callback=_device,
    help="Name of the device, where the token leaves it open.  [default: made from its key]",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    callback=_labels,
    metavar="K=V",
    help="By which deployments select it; the token's go before. Repeatable.",
)
@click.option(
    "--up-per-day",
    default="0",
    callback=_amount,
    metavar="SIZE",
    help="What its link may carry up in a day, e.g. 20MB; 0: as much as there is.",
)
@click.option(
    "--down-per-day",
    default="0",
    callback=_amount,
    metavar="SIZE",
    help="What its link may carry down in a day, e.g. 200MB; 0: as much as there is.",
)
@click.option(
    "--engine",
    default="",
    metavar="SOCKET",
    help="Docker engine that runs models with an image, or `none`; DOCKER_HOST or the standard one "
    "when nothing is said.",
)
@data_option
def enroll(
    server: str,
    token: str,
    token_file: str,
    ca_file: str,
    aws_ca_file: str,
    name: str,
    labels: dict[str, str],
    up_per_day: int,
    down_per_day: int,
    engine: str,
    data: Path,
) -> None:
    """Make this machine a device, with a key that never leaves it; again with the same token does
    nothing. The token says what it dials from then on: the server, or AWS IoT.
    """
    from hatoba_worker.agent.enrolling import NotMade, TokenText, Wish
    from hatoba_worker.agent.enrolling import enroll as made
    from hatoba_worker.agent.main import clock_of

    if bool(token) is bool(token_file):
        raise click.UsageError("give either --token or --token-file")
    try:
        text = token or Path(token_file).expanduser().read_text(encoding="ascii")
        wish = Wish(
            server=server,
            token=TokenText.parse(text),
            name=name,
            authority=_text_of(ca_file) if ca_file else "",
            aws_authority=_text_of(aws_ca_file) if aws_ca_file else "",
            labels=labels,
            up_per_day=up_per_day,
            down_per_day=down_per_day,
            engine=engine,
        )
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        clock = clock_of(data)
        clock.load()
        found = asyncio.run(made(data, wish, clock))
    except (NotMade, OSError, UnicodeDecodeError) as error:
        raise click.ClickException(str(error)) from None
    dials = "its server is" if found.aws_iot is None else "it dials"
    click.echo(f"this machine is devices/{found.device}; {dials} {found.address}")
    click.echo(f"`hatoba agent run --data {data}` is its agent", err=True)


@agent.command("enroll-aws-iot")
@click.argument("endpoint", metavar="HOST[:PORT]")
@click.option("--template", default="", metavar="NAME", help="Fleet provisioning template to use.")
@click.option(
    "--claim", default="", metavar="FILE", help="Key and certificate (PEM) that may use it."
)
@click.option(
    "--request", "print_request", is_flag=True, help="Print a signing request, and do no more."
)
@click.option(
    "--certificate", default="", metavar="FILE", help="Certificate (PEM) for that request."
)
@click.option("--thing", default="", metavar="NAME", help="Whose the certificate is.")
@click.option(
    "--ca-file",
    default="",
    metavar="FILE",
    help="Authority (PEM) to believe instead of this machine's, e.g. AmazonRootCA1.pem.",
)
@click.option(
    "--name",
    default="",
    callback=_device,
    help="Name of the device.  [default: made from its key, or from the thing's]",
)
@click.option(
    "--shadow", default="hatoba", show_default=True, help="Named shadow, as the server has it."
)
@click.option(
    "--content",
    default="",
    metavar="URL",
    help="Bucket with the server's models: "
    "s3://BUCKET/PREFIX?region=REGION&role-alias=NAME&credentials=HOST",
)
@click.option("--up-per-day", default="0", callback=_amount, metavar="SIZE", help="As enroll.")
@click.option("--down-per-day", default="0", callback=_amount, metavar="SIZE", help="As enroll.")
@click.option("--engine", default="", metavar="SOCKET", help="As enroll.")
@data_option
def enroll_aws_iot(
    endpoint: str,
    template: str,
    claim: str,
    print_request: bool,
    certificate: str,
    ca_file: str,
    data: Path,
    **wished: Any,
) -> None:
    """Make this machine a thing of AWS IoT, with a key that never leaves it: by a claim and a
    template, or with a certificate for its request.
    """
    from hatoba_worker.agent import provisioning
    from hatoba_worker.agent.enrolling import NotMade

    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if print_request:
            click.echo(provisioning.request(data), nl=False)
            return
        authority = _text_of(ca_file) if ca_file else ""
        wish = provisioning.AwsWish(provisioning.Endpoint(endpoint, authority), **wished)
        if certificate:
            found = provisioning.adopt(data, wish, _text_of(certificate))
        elif claim and template:
            found = _provisioned(data, wish, Path(_absolute(claim)), template)
        else:
            raise click.UsageError("give --claim and --template, or --request, or --certificate")
    except (NotMade, OSError, UnicodeDecodeError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"this machine is devices/{found.device}; it dials {found.address}")
    click.echo(f"`hatoba agent run --data {data}` is its agent", err=True)


def _provisioned(data: Path, wish: AwsWish, claim: Path, template: str) -> Settings:
    from hatoba_worker.agent.main import clock_of
    from hatoba_worker.agent.provisioning import Claim, provision

    clock = clock_of(data)
    clock.load()
    return asyncio.run(provision(data, wish, Claim(claim, template), clock))


def _text_of(file: str) -> str:
    return Path(file).expanduser().read_text(encoding="ascii")


@agent.command()
@click.argument("registry", metavar="HOST[:PORT]")
@click.option(
    "--at", default="", metavar="HOST[:PORT]", help="Where it is reached: a mirror of it."
)
@click.option("--ca-file", default="", metavar="FILE", help="Authority (PEM) to believe for it.")
@click.option(
    "--login-file",
    default="",
    metavar="FILE",
    help="File with USER:PASSWORD, which only the agent's user may read.",
)
@click.option(
    "--plain", is_flag=True, help="Speak to it without TLS, as to one on this machine itself."
)
@click.option("--forget", is_flag=True, help="Reach it as everybody does from now on.")
@data_option
def registry(
    registry: str, at: str, ca_file: str, login_file: str, plain: bool, forget: bool, data: Path
) -> None:
    """Say how this device reaches a registry of images; `*` stands for all others.

    Holds from the next image on, also for an agent that runs. Credentials stay in their file.
    """
    from hatoba_worker.agent.settings import BadSettings, RegistryAccess, Settings

    try:
        settings = Settings.load(data)
        if settings is None:
            raise click.ClickException(f"{data} is no device yet: `hatoba agent enroll`")
        access = RegistryAccess(at, _absolute(ca_file), _absolute(login_file), plain)
        settings.reaching(registry, None if forget else access).save(data)
    except (BadSettings, OSError) as error:
        raise click.ClickException(str(error)) from None


def _budget(_context: click.Context, _option: click.Parameter, given: str | None) -> int | None:
    return 0 if given == "none" else _amount(_context, _option, given) if given else None


@agent.command()
@click.option(
    "--up-per-day",
    callback=_budget,
    metavar="SIZE|none",
    help="What it may carry up in a day, e.g. 20MB; half of it is for logs and the like.",
)
@click.option(
    "--down-per-day",
    callback=_budget,
    metavar="SIZE|none",
    help="What it may carry down in a day, e.g. 200MB; four fifths of it are for content.",
)
@click.option(
    "--metered",
    type=click.Choice(["on", "off"]),
    help="While it is on, content (models, code, images) and all that is kept on the device (logs, "
    "figures, events, predictions and their inputs) wait; reports, and what is wanted, still go.",
)
@data_option
def link(up_per_day: int | None, down_per_day: int | None, metered: str | None, data: Path) -> None:
    """Say what this device's link may carry, and show it; holds at once, also for an agent that
    runs. What is over waits for the next day.
    """
    from dataclasses import replace

    from hatoba.units import say_bytes
    from hatoba_worker.agent.settings import BadSettings, Settings

    wished = {"up_per_day": up_per_day, "down_per_day": down_per_day}
    changed: dict[str, Any] = {name: value for name, value in wished.items() if value is not None}
    if metered is not None:
        changed["metered"] = metered == "on"
    try:
        settings = Settings.load(data)
        if settings is None:
            raise click.ClickException(f"{data} is no device yet: `hatoba agent enroll`")
        if changed:
            settings = replace(settings, **changed)
            settings.save(data)
    except (BadSettings, OSError) as error:
        raise click.ClickException(str(error)) from None
    for name, limit in (("up", settings.up_per_day), ("down", settings.down_per_day)):
        click.echo(f"{name} per day: {say_bytes(limit) if limit else 'none'}")
    click.echo(f"metered: {'on' if settings.metered else 'off'}")


def _absolute(file: str) -> str:
    return str(Path(file).expanduser().resolve()) if file else ""


@agent.command()
@data_option
def run(data: Path) -> None:
    """Be the agent of this device until told to end; what runs then goes on.

    It listens to nobody: it dials the server, for ever, and needs it for nothing that it has.
    """
    # Before grpc is imported: its fork handlers could end a child between fork and exec.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    _have_structlog_alone()
    from hatoba_worker.agent.main import is_device, main

    if not is_device(data):
        click.echo(f"{data} is no device yet: `hatoba agent enroll` makes it one", err=True)
        sys.exit(NOT_ENROLLED)
    sys.exit(main(data))


@agent.command()
@data_option
@click.option("--all", "all_", is_flag=True, help="End its models, its jobs and its keeper too.")
@click.option(
    "--grace", default=10.0, show_default=True, help="Seconds for those to end by themselves."
)
def stop(data: Path, all_: bool, grace: float) -> None:
    """End the agent of this device; what it runs goes on unless --all.

    The next start runs again what was ended. One that systemd keeps is ended by `systemctl stop`.
    """
    from hatoba_worker.agent.ending import end

    try:
        asyncio.run(end(data, os.environ, everything=all_, grace=grace))
    except OSError as error:
        raise click.ClickException(str(error)) from None


def _have_structlog_alone() -> None:
    """Without rich, which it would load, 5 MB, to draw tracebacks: those of an agent are JSON."""
    if sys.modules.keys().isdisjoint({"rich", "structlog"}):
        sys.modules["rich"] = None  # type: ignore[assignment]
        import structlog  # noqa: F401

        del sys.modules["rich"]


@agent.command()
@data_option
@click.option("--json", "as_json", is_flag=True, help="All that the agent wrote, as it wrote it.")
def status(data: Path, as_json: bool) -> None:
    """Show how the agent was when it wrote last; needs no link."""
    import json

    from hatoba_worker.agent import lock
    from hatoba_worker.agent.status import read

    told = read(data)
    if not told:
        raise click.ClickException(f"no agent of {data} has written anything yet")
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    runs = lock.is_held(data)
    if not runs:
        click.echo("the agent does not run; this is how it was", err=True)
    link = told.get("link", {})
    problem = link.get("problem", "")
    linked = "connected" if runs else "was connected"
    click.echo(linked if link.get("connected") else f"not connected: {problem}")
    for one in told.get("report", {}).get("slots", ()):
        click.echo(_slot_line(one))


def _slot_line(slot: Mapping[str, Any]) -> str:
    """Deployment, phase, the revisions that are wanted and that run, and where it answers."""
    phase = slot.get("phase", "").removeprefix("SLOT_PHASE_")
    wanted, runs = slot.get("revision", 0) or "none", slot.get("running", 0) or "none"
    where = slot.get("address", "") or "-"
    return f"{slot['deployment']}  {phase}  {wanted} is wanted, {runs} runs  {where}"


@agent.command()
@data_option
def diagnose(data: Path) -> None:
    """Look at all that can be looked at here, without a link, and say what to do about it.

    Exit code 1 when something is bad.
    """
    from hatoba_worker.agent.diagnosing import Level, Place, findings
    from hatoba_worker.agent.main import clock_of

    if not data.is_dir():
        raise click.ClickException(f"there is no {data}: `hatoba agent enroll` makes a device")
    clock = clock_of(data)
    clock.load()
    found = findings(Place(data, clock))
    for one in found:
        _show(one)
    sys.exit(int(any(one.level is Level.BAD for one in found)))


def _show(finding: Finding) -> None:
    click.echo(f"{finding.level.value:<5}{finding.about:<10}{finding.text}")
    if finding.remedy:
        click.echo(f"{'':15}-> {finding.remedy}")
