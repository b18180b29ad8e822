"""`hatoba plan`: what would happen to a job submitted now, or to devices by another selector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hatoba.cli.device_targets import selector_option
from hatoba.cli.options import job_options, submit_options
from hatoba.cli.output import emit, output_option, pairs
from hatoba.cli.session import server_options, with_client
from hatoba.errors import InvalidSpec

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.options import Parcel
    from hatoba.v1 import device_pb2, job_pb2


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("-f", "--file", metavar="FILE", help="Job file with one job. `-` reads stdin.")
@click.option(
    "--deployment",
    metavar="NAME",
    help="Instead of a job: which devices would come to this deployment, and which go from it.",
)
@selector_option("With --deployment, the labels that it would ask for. [default: as it does now]")
@job_options
@output_option
@server_options()
@click.argument("command", nargs=-1, metavar="[-- COMMAND [ARGUMENT]...]")
def plan(
    command: tuple[str, ...],
    file: str | None,
    deployment: str | None,
    selector: tuple[job_pb2.LabelRequirement, ...],
    output: str,
    **said: Any,
) -> None:
    """Say what would happen to a job if it were submitted now, and why. Stores nothing.

    Where it would start, or what it would wait for, its place in its queue, and when it may start.
    It is refused as a submit would refuse it.

    \b
    Examples:
      hatoba plan -f job.yaml
      hatoba plan --gpus 2 --memory 64Gi -- python train.py
      hatoba plan --deployment shelf --selector site=tokyo
    """
    if deployment:
        _refuse_others(command, file, said)
        plan_devices(deployment, selector, output)
        return
    if selector:
        raise click.UsageError("--selector is of a deployment: name it with --deployment")
    parcel = _parcel(command, file, said)
    show(with_client(lambda client: client.plan_parcel(parcel)), output)


def _parcel(command: tuple[str, ...], file: str | None, said: dict[str, Any]) -> Parcel:
    from hatoba.cli.submitting import read_files
    from hatoba.options import build_parcel, set_param

    if bool(command) == bool(file):
        raise click.UsageError("say either a command, after `--`, or a job file with -f")
    options = submit_options(said)
    if not file:
        return build_parcel(command, options)
    documents = read_files([file], {}, None, no_code=True)
    if len(documents) != 1:
        raise click.UsageError(f"a plan is of one job, and {file} has {len(documents)}")
    parcel = documents[0].parcel
    for name, value in options.get("params", {}).items():
        set_param(parcel.spec, name, value)
    others = sorted(options.keys() - {"params", "code"})
    if others:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise click.UsageError(f"with -f only -p is read: write {named} into {file}")
    return parcel


def show(found: job_pb2.Explanation, output: str) -> None:
    """An explanation, as asked for."""
    emit(found, output, lambda: _show(found))


def _show(found: job_pb2.Explanation) -> None:
    from hatoba.cli.explanations import explanation_rows, headline

    click.echo(headline(found))
    pairs(explanation_rows(found))


def _refuse_others(command: tuple[str, ...], file: str | None, said: dict[str, Any]) -> None:
    others = sorted(submit_options(said).keys() - {"code"})
    if command or file or others:
        raise click.UsageError("with --deployment only --selector is read: a plan is of one thing")


def plan_devices(name: str, selector: Sequence[job_pb2.LabelRequirement], output: str) -> None:
    """Show which devices a selector would bring to a deployment and take from it."""

    async def ask(client: AsyncClient) -> device_pb2.DevicePlan:
        wanted = selector or (await client.deployments.get(name)).spec.devices.selector
        if not wanted:
            raise InvalidSpec(
                f"deployment {name} does not run on devices", remedy="say which with --selector"
            )
        return await client.devices.plan(name, wanted)

    found = with_client(ask)
    emit(found, output, lambda: _show_devices(name, found))


def _show_devices(name: str, found: device_pb2.DevicePlan) -> None:
    from hatoba.cli.fleet import plan_lines

    click.echo("\n".join(plan_lines(name, found)))
    if found.goes:
        click.echo("to take it from these, `hatoba deploy` needs --allow-removal", err=True)
