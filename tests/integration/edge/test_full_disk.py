"""Somebody else fills a device's disk to the last byte, at each step of an update: what runs, runs
on, that it is full is said, and with room it goes on by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from bed_device import FarMachine, until
from edge_versions import diagnosed, go_on, pointed_device, said, stop_at, until_stopped, version
from edge_world import World

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
DISK_MIB = 64
SIZE = 1 << 20
PIECE = 1 << 20
AGAIN, PATIENCE = 0.02, 60.0


@contextlib.contextmanager
def filler(machine: FarMachine) -> Iterator[None]:
    """Somebody who writes one file for as long as there is room for a byte of it."""
    path, done = machine.seen.with_name("others"), threading.Event()

    def fill() -> None:
        with path.open("wb", buffering=0) as file:
            while not done.is_set():
                _to_the_last_byte(file)
                done.wait(AGAIN)

    with ThreadPoolExecutor(1) as threads:
        filling = threads.submit(fill)
        try:
            until(lambda: path.exists() and _free(path) == 0, PATIENCE, "a full disk")
            yield
        finally:
            done.set()
            filling.result()
            path.unlink()


def _to_the_last_byte(file: io.FileIO) -> None:
    size = PIECE
    while size:
        try:
            file.write(bytes(size))
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            size //= 2


def _free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@asynccontextmanager
async def full(machine: FarMachine) -> AsyncIterator[None]:
    """Its disk is full, whatever is removed from it."""
    with ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, filler(machine))
        close = stack.pop_all().close
    try:
        yield
    finally:
        await asyncio.to_thread(close)


@pytest.mark.parametrize("kind", ["wanted", "staged", "switched", "good"])
async def test_a_disk_that_is_full_before_a_step_costs_nothing_but_time(
    world: World, kind: str
) -> None:
    shop = await pointed_device(world, "shop", disk_mib=DISK_MIB)
    if not shop.mounts:
        pytest.skip("this machine mounts no files, so that all disks are its own")
    first, second = [await version(world, name, size=SIZE) for name in ("one", "two")]
    await world.deploy(first.model)
    await world.until_runs(shop, 1)
    may_be = {first.content, second.content} if kind == "good" else {first.content}
    stop_at(shop, f"journal.{kind}.before")
    await world.update(second.model)
    await asyncio.to_thread(until_stopped, shop, kind)
    async with full(shop):
        await asyncio.to_thread(go_on, shop)
        assert await said(world, shop) in may_be
        assert "bad  disk      0 B free" in await diagnosed(shop)
        await asyncio.to_thread(shop.kill_agent)
        told = await asyncio.to_thread(lambda: shop.log.stat().st_size)
        await asyncio.to_thread(shop.start_agent)
        await world.until_connected("shop")
        await asyncio.to_thread(until, partial(misses_room, shop, told), PATIENCE, "no room")
        assert await said(world, shop) in may_be
    await world.until_runs(shop, 2)
    assert await said(world, shop) == second.content


def misses_room(machine: FarMachine, told: int) -> bool:
    """Whether its agent has said so since it had said so much."""
    return b"No space left" in machine.log.read_bytes()[told:]
