"""`hatoba server`: start, init, check, status, stop."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

# Before anything imports grpc: its fork handlers would break the children that we start.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import click

DEFAULT_DATA = "~/.local/share/hatoba"
EXIT_USAGE = 2
EXIT_IN_USE = 75
STOP_WAIT = 15.0
GC_SECONDS = 60.0


def data_option(function: Any) -> Any:
    """`--data DIR`, else HATOBA_DATA, else the default directory."""
    return click.option(
        "--data",
        envvar="HATOBA_DATA",
        default=DEFAULT_DATA,
        show_default=True,
        metavar="DIR",
        help="The server's data directory.",
    )(function)


def _directory(text: str) -> Path:
    return Path(text).expanduser().absolute()


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
    directory = _directory(data)
    config = _configured(directory, listen, http_listen)
    from hatoba_scheduler.telemetry.logging import configure_logging

    configure_logging(config.server.log_level)
    from hatoba_scheduler.app import ServeOptions, serve
    from hatoba_scheduler.auth.files import InsecureFile
    from hatoba_scheduler.config import ConfigError
    from hatoba_scheduler.errors import HatobaError
    from hatoba_scheduler.store.errors import AlreadyRunning

    options = ServeOptions(directory, config, ready_file, not no_worker)
    try:
        asyncio.run(serve(options))
    except* AlreadyRunning as running:
        _fail(str(_first(running)), EXIT_IN_USE)
    except* (HatobaError, ConfigError, InsecureFile, OSError, RuntimeError) as group:
        _fail(f"the server cannot start: {_first(group)}", 1)


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
        _fail(str(error), EXIT_USAGE)
    return config


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"hatoba server: {message}", err=True)
    sys.exit(code)


@server.command()
@data_option
def init(data: str) -> None:
    """Write a commented hatoba.toml into the data directory."""
    from hatoba_scheduler.config import default_config_text

    path = _directory(data) / "hatoba.toml"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with path.open("x") as file:
            file.write(default_config_text())
    except FileExistsError:
        _fail(f"{path} exists; edit it, or remove it first", 1)
    click.echo(path)


@server.command()
@data_option
def check(data: str) -> None:
    """Say whether hatoba.toml is good, backends' options included; nothing is started."""
    from hatoba_scheduler.backends import EMBEDDED

    config = _configured(_directory(data), None, None)
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
        _fail("\n".join(problems), EXIT_USAGE)
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
    directory = _directory(data)
    found = _running(directory)
    if found is None:
        _fail(f"no server runs on {directory}; `hatoba server start` starts one", 1)
    from hatoba.errors import HatobaError

    try:
        click.echo(asyncio.run(_collect(directory, found, dry_run)))
    except HatobaError as error:
        _fail(error.message, 1)


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
    found = _running(_directory(data))
    if found is None:
        _fail(f"no server runs on {_directory(data)}; `hatoba server start` starts one", 1)
    else:
        click.echo(json.dumps(found))


def _running(directory: Path) -> dict[str, Any] | None:
    """The ready file of a server that lives, else None."""
    try:
        found: dict[str, Any] = json.loads((directory / "server.json").read_text())
        command = Path(f"/proc/{found['pid']}/cmdline").read_bytes()
    except (OSError, ValueError, KeyError):
        return None
    return found if b"server" in command and b"start" in command else None


@server.command()
@data_option
@click.option("--all", "everything", is_flag=True, help="Also end jobs, worker and keeper.")
@click.option("--grace", default=10.0, show_default=True, help="Seconds jobs get with --all.")
def stop(data: str, everything: bool, grace: float) -> None:
    """End the server alone: jobs go on. With --all, end everything on its data directory."""
    directory = _directory(data)
    found = _running(directory)
    if found is None and not everything:
        _fail(f"no server runs on {directory}", 1)
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
    _fail(f"process {pid} did not end in {STOP_WAIT:.0f} s", 1)
