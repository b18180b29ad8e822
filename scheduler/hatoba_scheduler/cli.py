"""`hatoba server`: start, init, check, gc, status, stop; about its store see `cli_store`."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before anything imports grpc: its fork handlers would break the children that we start.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import click

from hatoba_scheduler import cli_store
from hatoba_scheduler.cli_common import (
    EXIT_DAMAGED,
    EXIT_IN_USE,
    EXIT_USAGE,
    data_option,
    directory_of,
    fail,
    running,
)

STOP_WAIT = 15.0
GC_SECONDS = 60.0


@click.group()
def server() -> None:
    """Run and look after a Hatoba server."""


@server.command()
@data_option
@click.option("--listen", metavar="HOST:PORT", help="Where gRPC is answered; port 0: any.")
@click.option("--http-listen", metavar="HOST:PORT", help="Where /metrics is answered.")
@click.option(
    "--ready-file", type=click.Path(path_type=Path), metavar="F", help="Written once ready."
)
@click.option("--no-worker", is_flag=True, help="Start no worker on this machine.")
def start(
    data: str, listen: str | None, http_listen: str | None, ready_file: Path | None, no_worker: bool
) -> None:
    """Serve until SIGTERM or Ctrl-C. Jobs, worker and served work go on when it ends."""
    directory = directory_of(data)
    config = _configured(directory, listen, http_listen)
    from hatoba_scheduler.telemetry.logging import configure_logging

    configure_logging(config.server.log_level)
    from hatoba_scheduler.app import ServeOptions, serve
    from hatoba_scheduler.auth.files import InsecureFile
    from hatoba_scheduler.config import ConfigError
    from hatoba_scheduler.errors import HatobaError
    from hatoba_scheduler.store.errors import AlreadyRunning, DatabaseDamaged, StorageDamaged
    from hatoba_scheduler.store.sqlite.database import FILE

    options = ServeOptions(directory, config, ready_file, not no_worker)
    try:
        asyncio.run(serve(options))
    except* AlreadyRunning as taken:
        fail(str(_first(taken)), EXIT_IN_USE)
    except* DatabaseDamaged as damage:
        fail(str(_first(damage)), EXIT_DAMAGED)
    except* StorageDamaged as found:
        fail(str(DatabaseDamaged(directory / FILE, str(_first(found)))), EXIT_DAMAGED)
    except* (HatobaError, ConfigError, InsecureFile, OSError, RuntimeError, sqlite3.Error) as group:
        fail(f"the server cannot start: {_first(group)}", 1)


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    """The first error in a group, however deep."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def _configured(directory: Path, listen: str | None, http_listen: str | None) -> Any:
    from hatoba_scheduler.config import Config, ConfigError, load_config, parse_address

    path = directory / "hatoba.toml"
    try:
        config = load_config(path) if path.exists() else Config()
        if listen:
            config = replace(config, server=replace(config.server, listen=parse_address(listen)))
        if http_listen:
            address = parse_address(http_listen)
            config = replace(config, server=replace(config.server, http_listen=address))
    except (ConfigError, ValueError) as error:
        fail(str(error), EXIT_USAGE)
    return config


@server.command()
@data_option
def init(data: str) -> None:
    """Write a commented hatoba.toml into the data directory."""
    from hatoba_plugins.loader import load
    from hatoba_scheduler.config_text import default_config_text

    types = {name: found.type.options for name, found in load().types.items()}
    path = directory_of(data) / "hatoba.toml"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with path.open("x") as file:
            file.write(default_config_text(types))
    except FileExistsError:
        fail(f"{path} exists; edit it, or remove it first", 1)
    click.echo(path)


@server.command()
@data_option
def check(data: str) -> None:
    """Say whether hatoba.toml is good, backends' options included; nothing is started."""
    from hatoba_scheduler.backends import EMBEDDED

    config = _configured(directory_of(data), None, None)
    from hatoba_plugins.loader import load

    loaded = load()
    problems = []
    for name, wanted in (config.backends or EMBEDDED).items():
        found = loaded.types.get(wanted.type)
        if found is None:
            known = ", ".join(sorted(loaded.types))
            problems.append(f"backends.{name}: no type {wanted.type!r}; known are {known}")
            continue
        problems += [
            f"backends.{name}.options.{one.field}: {one.message}"
            for one in found.type.options.check(dict(wanted.options))
        ]
    problems += _bucket_problems(config)
    if problems:
        fail("\n".join(problems), EXIT_USAGE)
    click.echo("good")


def _bucket_problems(config: Any) -> list[str]:
    """What is wrong with the bucket of `[blobs]`, if there is one: something is written to it."""
    from hatoba_scheduler.errors import HatobaError

    if not config.blobs.url:
        return []
    from hatoba_scheduler.store.buckets import Bucket

    try:
        Bucket(config.blobs).check()
    except HatobaError as error:
        return [f"blobs: {error.message}"]
    return []


@server.command()
@data_option
@click.option("--dry-run", is_flag=True, help="Only say what would be marked and deleted.")
def gc(data: str, dry_run: bool) -> None:
    """Delete chunks and trees that nothing names.

    What is unnamed is marked first and deleted at a later run, once nobody used it for an hour. The
    server does this by itself once an hour.
    """
    directory = directory_of(data)
    found = running(directory)
    if found is None:
        fail(f"no server runs on {directory}; `hatoba server start` starts one", 1)
    from hatoba.errors import HatobaError

    try:
        click.echo(asyncio.run(_collect(directory, found, dry_run)))
    except HatobaError as error:
        fail(error.message, 1)


async def _collect(directory: Path, ready: dict[str, Any], dry_run: bool) -> str:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import artifact_pb2

    request = artifact_pb2.CollectGarbageRequest(validate_only=dry_run)
    async with AsyncClient(
        ready["grpc"], token_file=ready["token_file"], ca_file=ready.get("ca_file", "")
    ) as client:
        done = await client.call(request, artifact_pb2.CollectGarbageResponse, timeout=GC_SECONDS)
    would = "would be " if dry_run else ""
    return (
        f"{done.stored:,} stored, {done.live:,} in use, {done.marked:,} {would}marked, "
        f"{done.deleted:,} {would}deleted ({done.deleted_bytes:,} bytes)"
    )


@server.command()
@data_option
def status(data: str) -> None:
    """Say whether a server runs on the data directory, and where it answers."""
    found = running(directory_of(data))
    if found is None:
        fail(f"no server runs on {directory_of(data)}; `hatoba server start` starts one", 1)
    else:
        click.echo(json.dumps(found))


@server.command()
@data_option
@click.option("--all", "everything", is_flag=True, help="Also end jobs, worker and keeper.")
@click.option("--grace", default=10.0, show_default=True, help="Seconds jobs get with --all.")
def stop(data: str, everything: bool, grace: float) -> None:
    """End the server alone: jobs go on. With --all, end everything on its data directory."""
    directory = directory_of(data)
    found = running(directory)
    if found is None and not everything:
        fail(f"no server runs on {directory}", 1)
    if found is not None:
        # First, since it would start keeper and worker again.
        _end(int(found["pid"]))
    if everything:
        subprocess.run(
            [
                *(sys.executable, "-m", "hatoba_worker.embedded", "end"),
                *("--data", str(directory), "--grace", str(grace)),
            ],
            check=False,
        )


def _end(pid: int) -> None:
    try:
        # Not kill(pid, 0): whoever started it may never wait for it.
        handle = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    if select.select([handle], [], [], STOP_WAIT)[0]:
        return
    fail(f"process {pid} did not end in {STOP_WAIT:.0f} s", 1)


for _command in cli_store.COMMANDS:
    server.add_command(_command)
