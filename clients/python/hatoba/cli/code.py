"""`hatoba code ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hatoba.cli.output import age, emit, moment, output_option, pairs, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client
from hatoba.units import say_bytes

if TYPE_CHECKING:
    from hatoba.v1 import dataset_pb2


@click.group(cls=Group)
def code() -> None:
    """Code as jobs ran it, by name and number, with where it came from."""


@code.command("list")
@click.argument("name", default="")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Versions at most.",
)
@output_option
@server_options()
def list_code(name: str, limit: int, output: str) -> None:
    """List versions of all code, or of code NAME, newest first."""
    from hatoba.v1 import dataset_pb2

    found = with_client(lambda client: client.code.versions(name, limit=limit))
    emit(dataset_pb2.ListCodeVersionsResponse(versions=found), output, lambda: show(found))


def show(found: Sequence[dataset_pb2.CodeVersion]) -> None:
    """A table of versions."""
    from hatoba.datasets import short_version

    rows = [
        [
            short_version(one),
            one.git_commit[:12] + ("+" if one.dirty else ""),
            one.git_remote,
            f"{one.manifest.files:,}",
            say_bytes(one.manifest.total_bytes),
            age(one.create_time),
            one.created_by,
        ]
        for one in found
    ]
    heads = ["VERSION", "COMMIT", "REMOTE", "FILES", "SIZE", "AGE", "BY"]
    table(heads, rows, empty="no code yet: hatoba run -- python train.py")


@code.command("get")
@click.argument("version", metavar="NAME[:N]")
@output_option
@server_options()
def get(version: str, output: str) -> None:
    """Show one version of code; without a number the newest."""
    found = with_client(lambda client: client.code.get(version))
    emit(found, output, lambda: show_one(found))


def show_one(found: dataset_pb2.CodeVersion) -> None:
    """One version, in words."""
    from hatoba.datasets import short_version

    short = short_version(found)
    size = say_bytes(found.manifest.total_bytes)
    click.echo(short)
    pairs(
        [
            ("remote", found.git_remote),
            ("commit", found.git_commit),
            ("changed", f"since then: hatoba code diff {short}" if found.patch.digest else ""),
            ("files", f"{found.manifest.files:,} files, {size}"),
            ("recorded", f"{moment(found.create_time)} by {found.created_by or 'somebody'}"),
            ("digest", found.manifest.digest),
        ]
    )


@code.command("pull")
@click.argument("version", metavar="NAME[:N]")
@click.argument("directory", type=click.Path(), metavar="DIR")
@server_options()
def pull(version: str, directory: str) -> None:
    """Fetch code as it was into DIR, which must be absent or empty."""
    from hatoba.datasets import short_version

    found = with_client(lambda client: client.code.pull(version, directory))
    click.echo(f"{short_version(found)} is in {directory}", err=True)


@code.command("diff")
@click.argument("version", metavar="NAME[:N]")
@server_options()
def diff(version: str) -> None:
    """Show how code differed from its commit, as a patch."""
    click.echo(with_client(lambda client: client.code.patch(version)), nl=False)
