"""`hatoba deploy`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from hatoba.cli.device_targets import DEVICE_OPTIONS, NO_GROUPS
from hatoba.cli.exits import Exit
from hatoba.cli.options import CPUS, DURATION, LABEL, MEMORY, VARIABLE, Parsed, unique
from hatoba.cli.output import emit, output_option
from hatoba.cli.session import open_client, server_options
from hatoba.units import parse_duration

if TYPE_CHECKING:
    from hatoba.cli.deployments import Teller
    from hatoba.deployments import DeployOptions, Step
    from hatoba.v1 import deployment_pb2

_PAIRS = {"env": "--env", "labels": "--label"}


def parse_canary(text: str) -> list[Step]:
    """Steps of `10:60s,50:5m`; a share without a time waits until resumed. `none`: no steps."""
    if text.strip() == "none":
        return []
    return [_step(one.strip()) for one in text.split(",")]


def _step(text: str) -> Step:
    percent, colon, hold = text.partition(":")
    if not percent.isdigit() or not 1 <= int(percent) <= 99:
        raise ValueError(f"{text!r} is no step: write PERCENT:DURATION, for example 10:60s,50:5m")
    return int(percent), parse_duration(hold) if colon else 0.0


CANARY = Parsed("STEPS", parse_canary)
# In the order in which help lists them.
DEPLOY_OPTIONS = [
    click.option(
        "--replicas", type=click.IntRange(0, 1000), metavar="N", help="Replicas. [default: 1]"
    ),
    click.option(
        "--canary",
        type=CANARY,
        metavar="STEPS",
        help="Shares of traffic that the new revision gets first, each with the time for which it "
        "must stay healthy: 10:60s,50:5m; without a time until resumed. none: at once.",
    ),
    click.option(
        "--bake",
        type=DURATION,
        metavar="DURATION",
        help="How long it must stay healthy with all traffic, or on a device. [default: 5s; 60s]",
    ),
    click.option(
        "--ready-deadline",
        type=DURATION,
        metavar="DURATION",
        help="Rolled back when not ready by then. [default: 5m]",
    ),
    click.option(
        "--max-error-share",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="Rolled back when more of its requests fail. [default: 0.05]",
    ),
    click.option(
        "--rollback/--no-rollback",
        default=None,
        help="Whether a roll-out that fails is rolled back. [default: rollback]",
    ),
    click.option(
        "--max-surge",
        type=click.IntRange(0, 1000),
        metavar="N",
        help="Replicas above the wanted number while they are exchanged. [default: 1]",
    ),
    click.option(
        "--max-unavailable",
        type=click.IntRange(0, 1000),
        metavar="N",
        help="Replicas below it. [default: 0]",
    ),
    click.option(
        "--env", multiple=True, type=VARIABLE, metavar="K=V", help="Environment variable."
    ),
    click.option(
        "--secret",
        "secrets",
        multiple=True,
        metavar="NAME[=ENVVAR]",
        help="Secret by name, resolved where replicas run.",
    ),
    click.option("--cpus", type=CPUS, metavar="N", help="Processor cores of one replica."),
    click.option("--memory", type=MEMORY, metavar="AMOUNT", help="Memory of one replica."),
    click.option("--gpus", type=click.IntRange(0, 1024), metavar="N", help="GPUs of one replica."),
    click.option(
        "--capture",
        metavar="DATASET",
        help="Dataset whose head gets sampled inputs with their predictions.",
    ),
    click.option(
        "--capture-rate",
        type=click.FloatRange(0, 1),
        metavar="SHARE",
        help="Share of requests that is captured. [default: 1]",
    ),
    click.option(
        "--timeout",
        type=DURATION,
        metavar="DURATION",
        help="Longest time for one request. [default: 60s]",
    ),
    click.option(
        "--max-queue",
        type=click.IntRange(1, 100_000),
        metavar="N",
        help="Requests that one replica takes at a time. [default: 64]",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 256),
        metavar="N",
        help="Predictions that one replica makes at a time. [default: 1]",
    ),
    click.option(
        "--max-body",
        "max_body_bytes",
        type=MEMORY,
        metavar="AMOUNT",
        help="Largest body of a request. [default: 16Mi]",
    ),
    click.option(
        "--drain",
        type=DURATION,
        metavar="DURATION",
        help="Time for a replica that goes to answer what it has. [default: 30s]",
    ),
    click.option(
        "--backend", metavar="BACKEND", help="Where to run. [default: the server's default]"
    ),
    click.option("--label", "labels", multiple=True, type=LABEL, metavar="K=V", help="Free label."),
]


def deploy_options(function: Any) -> Any:
    """Every option that says how to deploy."""
    for option in reversed([*DEPLOY_OPTIONS, *DEVICE_OPTIONS]):
        function = option(function)
    return function


def said_options(said: dict[str, Any]) -> DeployOptions:
    """What was said on the command line."""
    options: dict[str, Any] = {k: v for k, v in said.items() if v is not None and v != ()}
    for name, flag in _PAIRS.items():
        if name in options:
            options[name] = unique(options[name], flag)
    if "groups" in options:
        options["groups"] = [one for one in options["groups"] if one != NO_GROUPS]
    if "secrets" in options:
        found = (one.partition("=") for one in options["secrets"])
        options["secrets"] = {name: variable or None for name, _, variable in found}
    return options  # type: ignore[return-value]


@click.command()
@click.argument("model")
@click.option("--name", metavar="NAME", default="", help="Its address. [default: the model's name]")
@deploy_options
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Follow the roll-out to its end."
)
@output_option
@server_options()
@click.pass_context
def deploy(
    ctx: click.Context, /, model: str, name: str, wait: bool, output: str, **said: Any
) -> None:
    """Deploy MODEL, for example digits:7, or digits@production, whose moves are followed from then
    on.

    Makes the deployment, or changes the one of that name: what is not said stays as it is. With
    --wait it follows the roll-out; a roll-out that is rolled back ends with exit code 24.

    With --selector it runs on devices, for each device itself; the roll-out waits for those that
    are away until --offer-deadline. `hatoba plan --deployment` says before which they are.
    """
    from hatoba.cli.deployments import Teller, ending, outcome, show

    try:
        with Teller(err=True) as teller:
            options = said_options(said)
            found = asyncio.run(_deploy(model, name, options, teller if wait else None))
    except KeyboardInterrupt:
        click.echo("\ndetached: the roll-out goes on", err=True)
        ctx.exit(Exit.DETACHED)
    emit(found, output, lambda: show([found]))
    if wait:
        click.echo(ending(found), err=True)
        ctx.exit(outcome(found))


async def _deploy(
    model: str, name: str, options: DeployOptions, teller: Teller | None
) -> deployment_pb2.Deployment:
    """Deploy it; with a teller follow the roll-out."""
    async with open_client() as client:
        made = await client.deployments.deploy(model, name, **options)
        if teller is None:
            return made
        teller.tell(made)
        return await client.deployments.wait(made.name, tell=teller.tell)
