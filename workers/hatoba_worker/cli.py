"""`hatoba worker`: make this machine a host."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import click

DATA = "~/.local/share/hatoba-worker"


@click.group()
def worker() -> None:
    """Run jobs of a server on this machine."""


def _labels(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is no label: write KEY=VALUE")
        if key.startswith("hatoba/"):
            raise click.BadParameter(f"{text!r}: labels `hatoba/...` are not given by people")
        labels[key] = value
    return labels


def _named(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[str, int]:
    named: dict[str, int] = {}
    for text in given:
        name, _, amount = text.partition("=")
        if not re.fullmatch(r"[a-z]([a-z0-9._-]{0,46}[a-z0-9])?", name) or not amount.isdecimal():
            raise click.BadParameter(
                f"{text!r} is no resource: write NAME=N, the name in small letters, digits and .-_"
            )
        if not 1 <= int(amount) <= 1_000_000:
            raise click.BadParameter(f"{text!r}: so many of it must be 1 to 1,000,000")
        named[name] = int(amount)
    return named


def _mounts(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    from hatoba_worker.executors.containers.choosing import mounts_of

    try:
        mounts_of(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return given


def _registries(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        registry, equals, secret = text.partition("=")
        if not registry or not equals or not secret:
            raise click.BadParameter(f"{text!r} names no secret: write REGISTRY=SECRET")
        found[registry] = secret
    return found


def _memory(_context: click.Context, _option: click.Parameter, given: str | None) -> int:
    from hatoba.units import parse_memory

    if given is None:
        return -1
    try:
        return parse_memory(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@worker.command()
@click.option(
    "--server",
    default="",
    metavar="HOST:PORT",
    help="Server to work for. Without it this host goes on with its settings.",
)
@click.option(
    "--data",
    default=None,
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Directory of this host; two workers need two.  [default: {DATA}]",
)
@click.option(
    "--join",
    default="",
    metavar="TOKEN",
    help="Become a host, by what `hatoba hosts add` printed. It may stay: it is used once.",
)
@click.option("--token-file", default="", metavar="FILE", help="File with a worker's token.")
@click.option(
    "--ca-file", default="", metavar="FILE", help="Authority of a server that made its own."
)
@click.option("--name", default="", help="Name of this host; chosen once, then kept.")
@click.option("--cpus", type=click.FloatRange(min=0), default=None, help="Cores to give away.")
@click.option("--memory", callback=_memory, default=None, help="Memory to give away, e.g. 8Gi.")
@click.option(
    "--gpus",
    type=click.IntRange(min=0),
    metavar="N",
    help="GPUs to give away. [default: all that the driver names]",
)
@click.option("--slots", type=click.IntRange(min=1), default=None, help="Tasks that state no need.")
@click.option(
    "--resource",
    "named",
    multiple=True,
    callback=_named,
    metavar="NAME=N",
    help="So many things of any name to give away, e.g. license=2. Repeatable.",
)
@click.option(
    "--address",
    default="",
    metavar="ADDRESS",
    help="Where other hosts reach this one, for gangs; the machine's name when not given.",
)
@click.option(
    "--serve-address",
    default=None,
    metavar="ADDRESS",
    help="Address of this machine on which replicas answer; routers have to reach it.  [default: "
    "where it reaches the server from, or 127.0.0.1 if it has not joined]",
)
@click.option(
    "--engine",
    default="",
    metavar="SOCKET",
    help="Docker engine that runs containers here, or `none`; DOCKER_HOST or the standard one when "
    "not given.",
)
@click.option(
    "--mount",
    "mounts",
    multiple=True,
    callback=_mounts,
    metavar="SOURCE[:TARGET][:ro]",
    help="Directory of this machine that all containers see. Repeatable.",
)
@click.option(
    "--registry",
    "registries",
    multiple=True,
    callback=_registries,
    metavar="REGISTRY=SECRET",
    help="Secret of this host that opens a registry of images: USER:PASSWORD. Repeatable.",
)
@click.option(
    "--label", "labels", multiple=True, callback=_labels, metavar="K=V", help="Repeatable."
)
def start(
    server: str,
    data: Path | None,
    join: str,
    token_file: str,
    ca_file: str,
    name: str,
    cpus: float | None,
    memory: int,
    gpus: int | None,
    slots: int | None,
    named: dict[str, int],
    address: str,
    serve_address: str | None,
    engine: str,
    mounts: tuple[str, ...],
    registries: dict[str, str],
    labels: dict[str, str],
) -> None:
    """Work for a server until told to end; what runs then goes on, and the next start takes it up.

    The settings are kept in DATA/worker.json: `hatoba worker start` alone goes on with them, for
    example after an upgrade.
    """
    from hatoba_worker.config import Config
    from hatoba_worker.main import run
    from hatoba_worker.starting import Entry, WrongStart, entered, go_on

    directory = (data or Path(DATA)).expanduser().resolve()
    try:
        if not server:
            sys.exit(run(go_on(directory)))
        entry = entered(Entry(directory, server, join, token_file, ca_file, name, serve_address))
    except WrongStart as error:
        raise click.UsageError(str(error)) from None
    config = Config(
        data=directory,
        server=server,
        token_file=entry.token_file,
        ca_file=entry.ca_file,
        joined=entry.joined,
        name=entry.name,
        cpus=-1 if cpus is None else cpus,
        memory_bytes=memory,
        gpus=-1 if gpus is None else gpus,
        slots=-1 if slots is None else slots,
        labels=labels,
        named=named,
        address=address,
        serve_address=entry.serve_address,
        engine=engine,
        mounts=list(mounts),
        registries=registries,
    )
    config.save()
    sys.exit(run(config))


@worker.command()
@click.option(
    "--data",
    default=None,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help=f"Directory of the host.  [default: {DATA}]",
)
@click.option("--all", "all_", is_flag=True, help="End its jobs and its keeper too.")
@click.option(
    "--grace", default=10.0, show_default=True, help="Seconds for jobs to end by themselves."
)
def stop(data: Path | None, all_: bool, grace: float) -> None:
    """End the worker of a directory; its jobs go on unless --all."""
    from hatoba_worker.main import end

    directory = (data or Path(DATA)).expanduser().resolve()
    asyncio.run(end(directory, everything=all_, grace=grace))
