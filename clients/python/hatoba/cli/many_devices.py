"""One thing that is done to many devices: counted and asked first, then told of each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from hatoba.aio import short_name
from hatoba.cli.exits import Exit
from hatoba.cli.output import emit_line
from hatoba.cli.session import with_client
from hatoba.errors import HatobaError

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import device_pb2, job_pb2

AT_ONCE = 16
"""Calls under way at a time."""
NAMED = 5
"""Devices that a question names."""


@dataclass(frozen=True, slots=True)
class Action:
    """What is done to a device, by its name, and the words for it."""

    question: Callable[[str], str]
    """About so many devices."""
    act: Callable[[AsyncClient, str], Awaitable[device_pb2.Device]]
    told: Callable[[device_pb2.Device], str]
    """What became of one, after its name."""


def do_to_all(
    selector: Sequence[job_pb2.LabelRequirement], action: Action, output: str, *, yes: bool
) -> Exit:
    """Do it to each device with these labels, once whoever is there agreed; how it went."""
    found = with_client(lambda client: client.devices.list(selector))
    names = [short_name(one.name) for one in found]
    if not names:
        click.echo("no device has these labels", err=True)
        return Exit.NOT_FOUND
    if not yes:
        click.confirm(action.question(counted(names)), abort=True, err=True)
    failed = with_client(lambda client: _each(client, names, action, output))
    done = len(names) - failed
    click.echo(f"{_devices(done)} done, {failed:,} failed", err=True)
    return Exit.FAILURE if failed else Exit.OK


def counted(names: Sequence[str]) -> str:
    """How many, and the first of them: `1,204 devices (shop-1, shop-2, ...)`."""
    more = ", ..." if len(names) > NAMED else ""
    return f"{_devices(len(names))} ({', '.join(names[:NAMED])}{more})"


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count:,} devices"


async def _each(client: AsyncClient, names: Sequence[str], action: Action, output: str) -> int:
    """How many failed; each is told of as soon as it is done."""
    left = iter(names)

    async def work() -> int:
        return sum([not await _one(client, name, action, output) for name in left])

    async with asyncio.TaskGroup() as tasks:
        workers = [
            tasks.create_task(work(), name=f"devices-{number}")
            for number in range(min(AT_ONCE, len(names)))
        ]
    return sum(worker.result() for worker in workers)


async def _one(client: AsyncClient, name: str, action: Action, output: str) -> bool:
    """Whether it went well."""
    try:
        device = await action.act(client, name)
    except HatobaError as error:
        click.echo(f"{name}  failed: {error.message}", err=True)
        return False
    emit_line(device, output, f"{name}  {action.told(device)}")
    return True
