"""`hatoba datasets ...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hatoba.cli.options import LABEL, Parsed, unique
from hatoba.cli.output import age, emit, emit_line, moment, output_option, pairs, table
from hatoba.cli.root import Group
from hatoba.cli.session import server_options, with_client
from hatoba.units import parse_pair, say_bytes, typed_value

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.datasets import Diff
    from hatoba.v1 import dataset_pb2

ATTRIBUTE = Parsed("KEY=VALUE", lambda text: parse_pair(text, "an attribute"))
FOLDERS = click.Choice(["folders"])
SHOWN_COUNTS = 8


@click.group(cls=Group)
def datasets() -> None:
    """Folders of examples by name and number; a version never changes."""


@datasets.command("push")
@click.argument("directory", type=click.Path(exists=True, file_okay=False), metavar="DIR")
@click.option("--name", metavar="NAME", default="", help="The dataset. [default: the directory's]")
@click.option(
    "--items",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE.jsonl",
    help='Items, one a line: {"id": "a.png", "path": "a.png", "attributes": {"label": "3"}}.',
)
@click.option(
    "--labels-from", type=FOLDERS, help="Take each file's label from the folder it lies in."
)
@click.option("--split-from", type=FOLDERS, help="Take each file's split from its first folder.")
@click.option("-m", "--message", default="", metavar="TEXT", help="A few words on the version.")
@click.option("--label", "labels", multiple=True, type=LABEL, metavar="K=V", help="Free label.")
@output_option
@server_options()
def push(directory: str, name: str, message: str, output: str, **said: Any) -> None:
    """Make the next version of everything in DIR.

    Only what the server lacks is sent. What did not change makes no new version.

    \b
    Examples:
      hatoba datasets push faces
      hatoba datasets push digits --split-from folders --labels-from folders
      hatoba datasets push images --items items.jsonl -m "labels corrected"
    """
    from hatoba.cli.progress import transfer_progress
    from hatoba.datasets import PushOptions, short_version

    options = PushOptions(
        labels_from_folders=bool(said["labels_from"]),
        split_from_folders=bool(said["split_from"]),
        message=message,
        labels=unique(said["labels"], "--label"),
    )
    if said["items"]:
        options["items"] = Path(said["items"])

    async def send(client: AsyncClient) -> dataset_pb2.DatasetVersion:
        with transfer_progress("sending") as progress:
            options["progress"] = progress
            return await client.datasets.push(directory, name, **options)

    version = with_client(send)
    emit(version, output, lambda: click.echo(short_version(version)))


@datasets.command("append")
@click.argument("name")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE...",
)
@click.option(
    "--attr",
    "attributes",
    multiple=True,
    type=ATTRIBUTE,
    metavar="K=V",
    help="Attribute of these items: number, true, false or text.",
)
@server_options()
def append(name: str, files: Sequence[str], attributes: Sequence[tuple[str, str]]) -> None:
    """Add each FILE as an item to the head of dataset NAME.

    An item is called by its file's name; one of that name in the head is replaced. The head becomes
    a version with `hatoba datasets commit NAME`.
    """
    from hatoba.datasets import items_of_files

    told = {key: typed_value(text) for key, text in unique(attributes, "--attr").items()}

    async def send(client: AsyncClient) -> int:
        return await client.datasets.append(name, items_of_files(map(Path, files), told))

    count = with_client(send)
    click.echo(f"{len(files)} added, the head of {name} has {count}", err=True)


@datasets.command("commit")
@click.argument("name")
@click.option("-m", "--message", default="", metavar="TEXT", help="A few words on the version.")
@output_option
@server_options()
def commit(name: str, message: str, output: str) -> None:
    """Freeze the newest version's items and the head's as the next version."""
    from hatoba.datasets import short_version

    async def send(client: AsyncClient) -> dataset_pb2.DatasetVersion:
        return await client.datasets.commit(name, message)

    version = with_client(send)
    emit(version, output, lambda: click.echo(short_version(version)))


@datasets.command("import")
@click.argument("uri", metavar="s3://BUCKET/PREFIX")
@click.argument("name")
@click.option(
    "--labels-from",
    type=FOLDERS,
    help="Take labels from folders: LABEL/FILE, or SPLIT/LABEL/FILE.",
)
@click.option("-m", "--message", default="", metavar="TEXT", help="A few words on the version.")
@output_option
@server_options()
def import_bucket(uri: str, name: str, labels_from: str | None, message: str, output: str) -> None:
    """Record what lies below a bucket's prefix as the next version of NAME, without copying it.

    The server lists the bucket with credentials of its own environment. Each object is recorded
    with its entity tag: a job that finds another one fails with the cause INPUT_CHANGED.
    """
    from hatoba.datasets import short_version

    async def send(client: AsyncClient) -> dataset_pb2.DatasetVersion:
        return await client.datasets.import_bucket(
            uri, name, message=message, labels_from_folders=bool(labels_from)
        )

    version = with_client(send)
    emit(version, output, lambda: click.echo(short_version(version)))


@datasets.command("list")
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
def list_datasets(name: str, limit: int, output: str) -> None:
    """List datasets, or the versions of dataset NAME, newest first."""
    from hatoba.v1 import dataset_pb2

    if not name:
        found = with_client(lambda client: client.datasets.list())
        reply = dataset_pb2.ListDatasetsResponse(datasets=found)
        emit(reply, output, lambda: show_datasets(found))
        return
    versions = with_client(lambda client: client.datasets.versions(name, limit=limit))
    listed = dataset_pb2.ListDatasetVersionsResponse(versions=versions)
    emit(listed, output, lambda: show_versions(versions, wide=output == "wide"))


def show_datasets(found: Sequence[dataset_pb2.Dataset]) -> None:
    """A table of datasets."""
    from hatoba.aio import short_name

    rows = [
        [
            short_name(one.name),
            str(one.latest or "-"),
            str(one.versions),
            str(one.head_items or "-"),
            say_bytes(one.head_bytes) if one.head_bytes else "-",
            age(one.update_time),
            one.created_by,
        ]
        for one in found
    ]
    heads = ["DATASET", "LATEST", "VERSIONS", "HEAD ITEMS", "HEAD SIZE", "CHANGED", "BY"]
    table(heads, rows, empty="no datasets yet: hatoba datasets push DIR")


def show_versions(found: Sequence[dataset_pb2.DatasetVersion], *, wide: bool = False) -> None:
    """A table of versions."""
    from hatoba.datasets import short_version

    heads = ["VERSION", "ITEMS", "FILES", "SIZE", "AGE", "SOURCE", "MESSAGE"]
    rows = [
        [
            short_version(one),
            f"{one.item_count:,}",
            f"{one.manifest.files:,}",
            say_bytes(one.manifest.total_bytes),
            age(one.create_time),
            one.source,
            one.message,
            *([one.created_by, one.manifest.digest] if wide else []),
        ]
        for one in found
    ]
    table([*heads, *(["BY", "DIGEST"] if wide else [])], rows, empty="no versions")


@datasets.command("get")
@click.argument("version", metavar="NAME[:N]")
@output_option
@server_options()
def get(version: str, output: str) -> None:
    """Show one version; without a number the newest."""
    found = with_client(lambda client: client.datasets.get(version))
    emit(found, output, lambda: show_version(found))


def show_version(found: dataset_pb2.DatasetVersion) -> None:
    """One version, in words."""
    from hatoba.datasets import short_version

    size = say_bytes(found.manifest.total_bytes)
    kept = " in the bucket, by reference" if found.by_reference else ""
    click.echo(short_version(found))
    pairs(
        [
            ("message", found.message),
            ("items", f"{found.item_count:,}"),
            ("splits", _counts(found.splits)),
            ("labels", _counts(found.item_labels)),
            ("files", f"{found.manifest.files:,} files, {size}{kept}"),
            ("source", found.source),
            ("job", found.job.removeprefix("projects/")),
            ("model", found.model_version),
            ("made from", "\n".join(found.made_from)),
            ("made", f"{moment(found.create_time)} by {found.created_by or 'somebody'}"),
            ("digest", found.manifest.digest),
        ]
    )


def _counts(found: Any) -> str:
    ranked = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{name} {count:,}" for name, count in ranked[:SHOWN_COUNTS])
    return f"{shown} and {len(ranked) - SHOWN_COUNTS} more" if len(ranked) > SHOWN_COUNTS else shown


@datasets.command("items")
@click.argument("version", metavar="NAME[:N]")
@click.option(
    "--filter",
    "text",
    default="",
    metavar="TERMS",
    help="For example 'split = test AND label != 3'.",
)
@click.option("--head", is_flag=True, help="Those of the head instead.")
@click.option("-n", "--limit", type=click.IntRange(1), metavar="N", help="So many at most.")
@output_option
@server_options()
def items(version: str, text: str, head: bool, limit: int | None, output: str) -> None:
    """List items of a version, or of the head, in their order."""
    from contextlib import aclosing

    from hatoba.datasets import item_dict

    async def read(client: AsyncClient) -> None:
        count = 0
        async with aclosing(client.datasets.items(version, text, head=head)) as found:
            async for item in found:
                told = item_dict(item).get("attributes", {})
                known = " ".join(f"{key}={_text(value)}" for key, value in sorted(told.items()))
                emit_line(item, output, f"{item.id}  {known}".rstrip())
                count += 1
                if count == limit:
                    return

    with_client(read)


def _text(value: object) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@datasets.command("diff")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option(
    "-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="Shown at most."
)
@output_option
@server_options()
def diff(before: str, after: str, limit: int, output: str) -> None:
    """Compare two versions by items: what came, what went, what has other content or attributes."""
    from hatoba.v1 import dataset_pb2

    found = with_client(lambda client: client.datasets.diff(before, after, limit=limit))
    reply = dataset_pb2.DiffDatasetVersionsResponse(
        added=found.added, removed=found.removed, changed=found.changed, same=found.same
    )
    for one in found.differences:
        change = f"ITEM_CHANGE_{one.change.upper()}"
        reply.differences.add(id=one.id, change=dataset_pb2.ItemChange.Value(change))
    emit(reply, output, lambda: show_diff(found))


def show_diff(found: Diff) -> None:
    """Differences, a line each, then how many there are."""
    marks = {"added": "+", "removed": "-", "content": "~", "attributes": "@"}
    for one in found.differences:
        click.echo(f"{marks[one.change]} {one.id}")
    more = found.added + found.removed + found.changed - len(found.differences)
    rest = f" ({more:,} more not shown)" if more else ""
    click.echo(
        f"{found.added:,} added, {found.removed:,} removed, {found.changed:,} changed, "
        f"{found.same:,} the same{rest}",
        err=True,
    )


@datasets.command("pull")
@click.argument("version", metavar="NAME[:N]")
@click.argument("directory", type=click.Path(), metavar="DIR")
@click.option(
    "--filter", "text", default="", metavar="TERMS", help="Only the files of these items."
)
@server_options()
def pull(version: str, directory: str, text: str) -> None:
    """Fetch a version into DIR, which must be absent or empty.

    What is known of its items is written beside it, to DIR.items.jsonl.
    """
    from hatoba.cli.progress import transfer_progress
    from hatoba.datasets import short_version

    async def fetch(client: AsyncClient) -> dataset_pb2.DatasetVersion:
        with transfer_progress("fetching") as progress:
            return await client.datasets.pull(version, directory, text, progress=progress)

    found = with_client(fetch)
    click.echo(f"{short_version(found)} is in {directory}", err=True)


@datasets.command("delete")
@click.argument("version", metavar="NAME:N")
@server_options()
def delete(version: str) -> None:
    """Remove a version that no unfinished job and no model uses. Its number is not given again."""
    with_client(lambda client: client.datasets.delete(version))
    click.echo(f"removed {version}", err=True)
