"""An upload whose connection is cut goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from server_process import clean_environment, running_server

from hatoba.artifacts.manifest import MIB
from hatoba.artifacts.pack import pack_tree
from hatoba.artifacts.scan import Selection

SIZE = 256 * MIB
# Each in the middle of a chunk: what came of that one is lost.
CUTS = (68 * MIB, 60 * MIB, 76 * MIB)
BLOCK = 256 * 1024


class Cutter:
    """Passes connections on to a server; each is cut after so many bytes, counted on their way."""

    def __init__(self, host: str, port: int, cuts: tuple[int, ...]) -> None:
        self._target = (host, port)
        self._cuts = list(cuts)
        self.sent = 0
        self.cut = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as group:
                down = group.create_task(_pump(there_reader, writer), name="down")
                await self._up(reader, there_writer)
                down.cancel()
        finally:
            for each in (writer, there_writer):
                each.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(BLOCK):
                self.sent += len(data)
                passed += len(data)
                if self._cuts and passed > self._cuts[0]:
                    del self._cuts[0]
                    self.cut += 1
                    return
                writer.write(data)
                await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(BLOCK):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def cutting(address: str, cuts: tuple[int, ...]) -> AsyncIterator[tuple[Cutter, str]]:
    host, _, port = address.rpartition(":")
    cutter = Cutter(host, int(port), cuts)
    proxy = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    async with proxy:
        yield cutter, f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"


def hatoba(*arguments: str | Path, **environment: str) -> None:
    command = [sys.executable, "-m", "hatoba", *map(str, arguments)]
    done = subprocess.run(
        command,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def random_tree(root: Path, size: int) -> None:
    root.mkdir()
    with (root / "weights.bin").open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))


@pytest.mark.timeout(300)
async def test_256_mib_that_are_cut_three_times_arrive_and_little_is_sent_twice(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    await asyncio.to_thread(random_tree, source, SIZE)
    packed = await asyncio.to_thread(pack_tree, source, Selection.EVERYTHING)
    async with running_server(tmp_path / "data", worker=False) as house:
        token = {"HATOBA_TOKEN_FILE": str(tmp_path / "data" / "admin.token")}
        async with cutting(house.address, CUTS) as (cutter, address):
            await asyncio.to_thread(
                hatoba, "datasets", "push", source, HATOBA_ADDRESS=address, **token
            )
        assert cutter.cut == len(CUTS)
        assert SIZE <= cutter.sent <= 1.1 * SIZE
        pull = ("datasets", "pull", "source", tmp_path / "copy")
        await asyncio.to_thread(hatoba, *pull, HATOBA_ADDRESS=house.address, **token)
    copy = await asyncio.to_thread(pack_tree, tmp_path / "copy", Selection.EVERYTHING)
    assert copy.ref == packed.ref
