"""`hatoba worker`: make this machine a host."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import click


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


def _memory(_context: click.Context, _option: click.Parameter, given: str | None) -> int:
    from hatoba.units import parse_memory

    if given is None:
        return -1
    try:
        return parse_memory(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@worker.command()
@click.option("--server", required=True, metavar="HOST:PORT", help="Server to work for.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of this host; two workers need two.",
)
@click.option("--token-file", required=True, metavar="FILE", help="File with a worker's token.")
@click.option(
    "--ca-file", default="", metavar="FILE", help="Authority of a server that made its own."
)
@click.option("--name", default="", help="Name of this host; chosen once, then kept.")
@click.option("--cpus", type=click.FloatRange(min=0), default=None, help="Cores to give away.")
@click.option("--memory", callback=_memory, default=None, help="Memory to give away, e.g. 8Gi.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, help="GPUs to give away.")
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
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address of this machine on which replicas answer; routers have to reach it.",
)
@click.option(
    "--label", "labels", multiple=True, callback=_labels, metavar="K=V", help="Repeatable."
)
def start(
    server: str,
    data: Path,
    token_file: str,
    ca_file: str,
    name: str,
    cpus: float | None,
    memory: int,
    gpus: int,
    slots: int | None,
    named: dict[str, int],
    address: str,
    serve_address: str,
    labels: dict[str, str],
) -> None:
    """Work for a server until told to end; what runs then goes on, and the next start takes it up.

    The settings are kept in DATA/worker.json.
    """
    from hatoba.errors import InvalidSpec
    from hatoba.settings import parse_address, read_token
    from hatoba_worker.config import Config
    from hatoba_worker.main import run

    try:
        parse_address(server)
        read_token(token_file)
    except InvalidSpec as error:
        raise click.UsageError(f"{error}; {error.remedy}") from None
    config = Config(
        data=data.resolve(),
        server=server,
        token_file=str(Path(token_file).resolve()),
        ca_file=str(Path(ca_file).resolve()) if ca_file else "",
        name=name,
        cpus=-1 if cpus is None else cpus,
        memory_bytes=memory,
        gpus=gpus,
        slots=-1 if slots is None else slots,
        labels=labels,
        named=named,
        address=address,
        serve_address=serve_address,
    )
    config.save()
    sys.exit(run(config))


@worker.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Directory of the host.",
)
@click.option("--all", "all_", is_flag=True, help="End its jobs and its keeper too.")
@click.option(
    "--grace", default=10.0, show_default=True, help="Seconds for jobs to end by themselves."
)
def stop(data: Path, all_: bool, grace: float) -> None:
    """End the worker of a directory; its jobs go on unless --all."""
    from hatoba_worker.main import end

    asyncio.run(end(data.resolve(), everything=all_, grace=grace))
