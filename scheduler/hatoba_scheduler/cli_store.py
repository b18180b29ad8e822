"""`hatoba server` about its store: doctor, backup, backups, restore, adopt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hatoba_scheduler.cli_common import (
    EXIT_DAMAGED,
    EXIT_IN_USE,
    data_option,
    directory_of,
    fail,
    running,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from hatoba_scheduler.control.backups import Backups
    from hatoba_scheduler.store.backups import BackupRecord
    from hatoba_scheduler.store.problems import StoreProblem

CALL_SECONDS = 3600.0
"""A copy or a look at a large store takes its time; the server's own limit is below this."""
T = TypeVar("T")
R = TypeVar("R", bound="Message")


def _now() -> int:
    return round(time.time() * 1e6)


# -- doctor --------------------------------------------------------------------------------------


@click.command()
@data_option
@click.option("--repair", is_flag=True, help="Mend what needs no guess, and say what was mended.")
def doctor(data: str, repair: bool) -> None:
    """Check everything that must be true of the store, of a running server or a stopped one.

    Exit code 0: all is well (or was mended); 1: something is not; 65: the file itself is damaged.
    """
    directory = directory_of(data)
    found = running(directory)
    problems, checked = _live(found, repair) if found else _stopped(directory, repair)
    for problem in problems:
        click.echo(problem.text())
    left = [problem for problem in problems if not problem.repaired]
    if left:
        fail(
            f"{len(left)} of {len(problems)} problems are left",
            EXIT_DAMAGED if any(one.invariant == "file" for one in left) else 1,
        )
    mended = f"; {len(problems)} problems were mended" if problems else ""
    click.echo(f"all is well: {len(checked)} kinds of things were checked{mended}", err=True)


def _live(found: dict[str, Any], repair: bool) -> tuple[list[StoreProblem], Sequence[str]]:
    from hatoba.v1 import admin_pb2
    from hatoba_scheduler.store.problems import StoreProblem

    request = admin_pb2.CheckStoreRequest(repair=repair)
    reply = _call(found, request, admin_pb2.CheckStoreResponse)
    problems = [
        StoreProblem(one.invariant, one.message, one.repair, None, one.repaired)
        for one in reply.problems
    ]
    return problems, list(reply.checked)


def _stopped(directory: Path, repair: bool) -> tuple[list[StoreProblem], Sequence[str]]:
    from hatoba_scheduler.store.errors import AlreadyRunning
    from hatoba_scheduler.store.sqlite.database import FILE, DirectoryLock
    from hatoba_scheduler.store.sqlite.doctor import CHECKED, visit

    if not (directory / FILE).exists():
        fail(f"there is no store in {directory}; --data names another directory", 1)
    try:
        lock = DirectoryLock(directory)
    except AlreadyRunning as error:
        fail(str(error), EXIT_IN_USE)
    try:
        return visit(directory / FILE, _now(), mend=repair), CHECKED
    finally:
        lock.release()


# -- backups -------------------------------------------------------------------------------------


@click.command()
@data_option
@click.option("--with-blobs", is_flag=True, help="Copy all files that it names into it as well.")
@click.argument("path", default="")
def backup(data: str, with_blobs: bool, path: str) -> None:
    """Write a copy of the store into the new directory PATH. [default: DATA/backups/ID]

    The server may run meanwhile. In the copy: jobs, events, queues, models, datasets, webhooks with
    their keys, the hashes of tokens, and hatoba.toml. Not in it: logs, traces, token files, TLS
    keys and secrets. Files of code, data and models stay where they are and are kept as long as the
    backup is; --with-blobs copies them into it too.
    """
    directory = directory_of(data)
    place = str(Path(path).expanduser().absolute()) if path else ""
    found = running(directory)
    if found is not None:
        from hatoba.v1 import admin_pb2

        request = admin_pb2.CreateBackupRequest(path=place, with_blobs=with_blobs)
        made = _call(found, request, admin_pb2.Backup)
        _tell(made.path, made.size_bytes, made.manifests)
    else:
        record = _offline(directory, lambda backups: backups.create(place, with_blobs=with_blobs))
        _tell(record.path, record.size_bytes, record.manifests)


def _tell(path: str, size: int, manifests: int) -> None:
    click.echo(f"{size:,} bytes; the files of {manifests:,} manifests are kept for it", err=True)
    click.echo(path)


@click.group()
def backups() -> None:
    """Copies of the store that files are kept for."""


@backups.command("list")
@data_option
def list_backups(data: str) -> None:
    """List them, newest first."""
    from hatoba.cli.output import table

    directory = directory_of(data)
    found = running(directory)
    known = _listed(found) if found else _offline(directory, lambda kept: kept.all())
    rows = [
        [
            one.id,
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.create_time / 1e6)),
            f"{one.size_bytes:,}",
            str(one.last_event),
            str(one.manifests),
            one.path,
        ]
        for one in known
    ]
    table(["BACKUP", "TAKEN", "BYTES", "EVENT", "MANIFESTS", "PATH"], rows, empty="no backups")


def _listed(found: dict[str, Any]) -> list[BackupRecord]:
    from hatoba.v1 import admin_pb2
    from hatoba_scheduler.convert import micros
    from hatoba_scheduler.store.backups import BackupRecord

    reply = _call(found, admin_pb2.ListBackupsRequest(), admin_pb2.ListBackupsResponse)
    return [
        BackupRecord(
            one.name.removeprefix("backups/"),
            micros(one.create_time),
            one.path,
            one.size_bytes,
            one.last_event,
            one.manifests,
        )
        for one in reply.backups
    ]


@backups.command("delete")
@data_option
@click.argument("name")
def delete_backup(data: str, name: str) -> None:
    """Remove the backup NAME and keep no files for it any more; twice is once."""
    directory = directory_of(data)
    found = running(directory)
    if found is None:
        _offline(directory, lambda kept: kept.delete(name))
    else:
        from hatoba.v1 import admin_pb2

        _call(found, admin_pb2.DeleteBackupRequest(name=name), admin_pb2.DeleteBackupResponse)
    click.echo(f"nothing is kept for {name}", err=True)


# -- restore and adopt ---------------------------------------------------------------------------


@click.command()
@data_option
@click.option("--replace", is_flag=True, help="Move a store that is there aside; it is kept.")
@click.argument("backup", type=click.Path(exists=True, path_type=Path))
def restore(data: str, replace: bool, backup: Path) -> None:
    """Make BACKUP, a directory or a database file, the store of the data directory.

    No server may run on it. The server that is started next serves reads and starts nothing until
    `hatoba server adopt`, since backends may still run what this store does not know of.
    """
    from hatoba_scheduler.errors import HatobaError
    from hatoba_scheduler.store.errors import AlreadyRunning
    from hatoba_scheduler.store.restoring import restore_backup

    directory = directory_of(data)
    try:
        done = restore_backup(backup.absolute(), directory, _now(), replace=replace)
    except AlreadyRunning as error:
        fail(str(error), EXIT_IN_USE)
    except HatobaError as error:
        fail(error.message, 1)
    except OSError as error:
        fail(f"{backup} cannot be restored into {directory}: {error}", 1)
    if done.aside is not None:
        click.echo(f"the store that was there is kept as {done.aside}", err=True)
    click.echo(
        f"restored as epoch {done.epoch} of installation {done.cluster_id}; "
        "now `hatoba server start`, then `hatoba server adopt`",
        err=True,
    )


@click.command()
@data_option
@click.option("--dry-run", is_flag=True, help="Only say what would be attached and what not.")
def adopt(data: str, dry_run: bool) -> None:
    """After a restore: attach what backends still run to the jobs it belongs to, then serve.

    What belongs to no job of the restored store is reported and left alone.
    """
    from hatoba.v1 import admin_pb2

    directory = directory_of(data)
    found = running(directory)
    if found is None:
        fail(f"no server runs on {directory}; `hatoba server start` starts one", 1)
    request = admin_pb2.AdoptStoreRequest(dry_run=dry_run)
    reply = _call(found, request, admin_pb2.AdoptStoreResponse)
    would = "would be " if dry_run else ""
    for name in reply.adopted:
        click.echo(f"{would}adopted  {name}")
    for what in reply.reported:
        click.echo(f"left alone  {what}")
    click.echo(
        f"{len(reply.adopted)} {would}adopted, {len(reply.reported)} left alone"
        + ("" if dry_run else "; the server starts and ends jobs again"),
        err=True,
    )


# -- ways to the store ---------------------------------------------------------------------------


def _call(found: dict[str, Any], request: Message, reply: type[R]) -> R:
    from hatoba.aio import AsyncClient
    from hatoba.errors import HatobaError

    async def ask() -> R:
        async with AsyncClient(
            found["grpc"], token_file=found["token_file"], ca_file=found.get("ca_file", "")
        ) as client:
            return await client.call(request, reply, timeout=CALL_SECONDS)

    try:
        return asyncio.run(ask())
    except HatobaError as error:
        fail(error.message, 1)


def _offline(directory: Path, use: Callable[[Backups], Coroutine[Any, Any, T]]) -> T:
    """Work on the store of a directory whose server does not run."""
    from hatoba_scheduler.errors import HatobaError
    from hatoba_scheduler.store.errors import AlreadyRunning, DatabaseDamaged
    from hatoba_scheduler.telemetry.logging import configure_logging

    configure_logging("warning")

    async def work() -> T:
        async with _opened(directory) as kept:
            return await use(kept)

    try:
        return asyncio.run(work())
    except AlreadyRunning as error:
        fail(str(error), EXIT_IN_USE)
    except DatabaseDamaged as error:
        fail(error.message, EXIT_DAMAGED)
    except HatobaError as error:
        fail(error.message, 1)


@asynccontextmanager
async def _opened(directory: Path) -> AsyncIterator[Backups]:
    from hatoba import __version__
    from hatoba_scheduler.config import Config, load_config
    from hatoba_scheduler.control.backups import Backups
    from hatoba_scheduler.store.blobs import ChunkStore, StoreLimits
    from hatoba_scheduler.store.places import open_place
    from hatoba_scheduler.store.sqlite import open_store
    from hatoba_scheduler.store.sqlite.database import FILE

    if not (directory / FILE).exists():
        fail(f"there is no store in {directory}; --data names another directory", 1)
    config = Config()
    with suppress(FileNotFoundError):
        config = load_config(directory / "hatoba.toml")
    store = await open_store(directory, _now)
    try:
        place = await asyncio.to_thread(open_place, config.blobs, directory / "blobs")
        limits = StoreLimits(lease_seconds=config.blobs.lease_seconds)
        async with ChunkStore.open(place, store.blob_index, _now, limits) as chunks:
            yield Backups(store, chunks, directory, _now, __version__)
    finally:
        await store.close()


COMMANDS = (doctor, backup, backups, restore, adopt)
"""What `hatoba server` takes in."""
