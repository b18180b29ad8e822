"""`hatoba run`: a command here becomes a job there, followed as if it ran here."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import click

from hatoba.cli.exits import Exit
from hatoba.cli.options import DURATION, job_options, submit_options
from hatoba.cli.session import open_client, say, server_options
from hatoba.options import Parcel, SubmitOptions, build_parcel, name_for
from hatoba.staying import LOGIN, held, staying

IDLE = 600.0
"""Seconds that an interactive job waits for its next visitor when nothing else is said."""


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@job_options
@click.option(
    "-d", "--detach", is_flag=True, help="Submit, print the job's name on stdout, and return."
)
@click.option(
    "-i",
    "--interactive",
    is_flag=True,
    help="Keep a place and go into it: COMMAND, or a shell, runs in this terminal.",
)
@click.option(
    "--idle-timeout",
    type=DURATION,
    metavar="DURATION",
    help="With --interactive: it ends when nobody was inside for so long. [default: 10m]",
)
@click.option(
    "--hold-on-failure",
    type=DURATION,
    metavar="DURATION",
    help="When it fails, keep its place for so long, so that one can look into it.",
)
@server_options()
@click.argument("command", nargs=-1, metavar="-- COMMAND [ARGUMENT]...")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    command: tuple[str, ...],
    detach: bool,
    interactive: bool,
    idle_timeout: float | None,
    hold_on_failure: float | None,
    **said: Any,
) -> None:
    """Run COMMAND as a job: the current directory goes along, its output comes back.

    The directory is packed as .gitignore says. Ctrl-C detaches and never cancels. The exit code is
    0 when the job succeeded, 20 when it failed, 21 when it was cancelled, 22 when its time was
    over, 23 when a job it waits for did not succeed.

    \b
    Examples:
      hatoba run -- python train.py
      hatoba run -p lr=0.01 --memory 4Gi --timeout 2h -- python train.py --lr '${params.lr}'
      hatoba run --array 0-9 --max-parallel 4 -- ./shard.sh
      hatoba run --interactive --gpus 1 --idle-timeout 30m
    """
    options = submit_options(said)
    if interactive:
        _check_interactive(options, detach=detach, hold=hold_on_failure)
        options.setdefault("name", "interactive")
        idle = IDLE if idle_timeout is None else idle_timeout
        ctx.exit(go_inside(build_parcel(staying(idle), options), command))
    if idle_timeout is not None:
        raise click.UsageError("--idle-timeout goes with --interactive")
    if not command:
        raise click.UsageError("say which command, after --")
    if hold_on_failure is not None:
        options.setdefault("name", name_for(command))
        command = tuple(held(command, hold_on_failure))
    ctx.exit(submit_and_follow(build_parcel(command, options), detach=detach))


def _check_interactive(options: SubmitOptions, *, detach: bool, hold: float | None) -> None:
    if detach or hold is not None or options.get("array") or options.get("replicas", 1) > 1:
        raise click.UsageError(
            "--interactive is one place to be in: leave out --detach, --hold-on-failure, --array "
            "and --replicas"
        )


def go_inside(parcel: Parcel, command: Sequence[str]) -> int:
    """Submit a job that waits for visitors and run a command, or a shell, in it from here; the
    command's exit code. The job stays for those who come back."""
    submitted: list[str] = []
    try:
        return asyncio.run(_go_inside(parcel, command, submitted))
    except KeyboardInterrupt:
        from hatoba.cli.following import detached

        return detached(submitted[0]) if submitted else Exit.DETACHED


async def _go_inside(parcel: Parcel, command: Sequence[str], submitted: list[str]) -> int:
    from hatoba.cli.attaching import run_inside
    from hatoba.cli.following import finish, until_running
    from hatoba.staying import visiting

    async with open_client() as client:
        job = await client.submit_parcel(parcel)
        submitted.append(job.record.name)
        click.secho(f"submitted {job.name}", dim=True, err=True)
        if (ended := await until_running(client, job.record.name)) is not None:
            return finish(ended)
        inner = visiting(parcel.spec, command or ("sh", "-c", LOGIN))
        code = await run_inside(client, job.record.name, 0, inner, terminal=sys.stdin.isatty())
    say(
        f"{job.name} stays until nobody was inside for a while: `hatoba jobs exec -t {job.name} "
        f"-- sh` goes back, `hatoba jobs cancel {job.name}` lets it go"
    )
    return code


def submit_and_follow(parcel: Parcel, *, detach: bool) -> Exit:
    """Submit a parcel; unless detached, follow it. Returns the exit code."""
    submitted: list[str] = []
    try:
        return asyncio.run(_submit_and_follow(parcel, detach, submitted))
    except KeyboardInterrupt:
        from hatoba.cli.following import detached

        if not submitted:
            click.echo("\nnothing was submitted", err=True)
            return Exit.DETACHED
        return detached(submitted[0])


async def _submit_and_follow(parcel: Parcel, detach: bool, submitted: list[str]) -> Exit:
    from hatoba.cli.following import Follower, finish
    from hatoba.following import LogQuery

    async with open_client() as client:
        job = await client.submit_parcel(parcel)
        submitted.append(job.record.name)
        if detach:
            click.echo(job.name)
            return Exit.OK
        click.secho(f"submitted {job.name}", dim=True, err=True)
        # An array's tasks would write into each other; their logs are read one by one.
        log = None if parcel.spec.HasField("array") else LogQuery(job.record.name)
        return finish(await Follower(client, job.record.name, log).to_end())
