"""`hatoba run`: a command here becomes a job there, followed as if it ran here."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from hatoba.cli.exits import Exit
from hatoba.cli.options import job_options, submit_options
from hatoba.cli.session import open_client, server_options
from hatoba.options import Parcel, build_parcel


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@job_options
@click.option(
    "-d", "--detach", is_flag=True, help="Submit, print the job's name on stdout, and return."
)
@server_options()
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND [ARGUMENT]...")
@click.pass_context
def run(ctx: click.Context, /, command: tuple[str, ...], detach: bool, **said: Any) -> None:
    """Run COMMAND as a job: the current directory goes along, its output comes back.

    The directory is packed as .gitignore says. Ctrl-C detaches and never cancels. The exit code is
    0 when the job succeeded, 20 when it failed, 21 when it was cancelled, 22 when its time was
    over, 23 when a job it waits for did not succeed.

    \b
    Examples:
      hatoba run -- python train.py
      hatoba run -p lr=0.01 --memory 4Gi --timeout 2h -- python train.py --lr '${params.lr}'
      hatoba run --array 0-9 --max-parallel 4 -- ./shard.sh
    """
    parcel = build_parcel(command, submit_options(said))
    ctx.exit(submit_and_follow(parcel, detach=detach))


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
