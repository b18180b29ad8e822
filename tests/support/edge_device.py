"""A device for tests, as a process: conductor, content and model servers, without a server of ours.

    python edge_device.py DATA SHOP

`SHOP` is a directory that stands for the other end of the link: `chunks/` and `manifests/` by hex
digest; while `SHOP/away` exists the link is cut. It takes in `SHOP/desired.json` whenever that
changes, and writes what it tells to `DATA/status.json`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from hatoba.v1 import artifact_pb2, worker_pb2
from hatoba_worker import host
from hatoba_worker.agent.blobs import BlobStore, Cut, Gone
from hatoba_worker.agent.conductor import Conductor
from hatoba_worker.agent.content import ModelContent
from hatoba_worker.agent.journal import Journal
from hatoba_worker.agent.names import slot_name
from hatoba_worker.agent.servers import Servers
from hatoba_worker.agent.slots import Release, Wanted
from hatoba_worker.agent.trees import DeviceTrees
from hatoba_worker.process_log import configure_log

LOOK = 0.02
PIECE = 4_096


class Shop:
    """The other end of the link, on the disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def read(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        data = await asyncio.to_thread(_bytes, self._root / "chunks" / digest[7:])
        for start in range(offset, len(data), PIECE):
            if await asyncio.to_thread((self._root / "away").exists):
                raise Cut("the link is cut")
            yield data[start : start + PIECE]

    async def manifest(self, digest: str) -> artifact_pb2.Manifest:
        if await asyncio.to_thread((self._root / "away").exists):
            raise Cut("the link is cut")
        data = await asyncio.to_thread(_bytes, self._root / "manifests" / digest[7:])
        return artifact_pb2.Manifest.FromString(data)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Gone(path.name) from None


class Device:
    """One boot of it."""

    def __init__(self, data: Path, shop: Path) -> None:
        self._data, self._shop = data, shop
        blobs = BlobStore(data / "blobs")
        self._trees = DeviceTrees(data / "trees", blobs)
        self._content = ModelContent(data / "specs", self._trees, blobs, Shop(shop))
        environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._servers = Servers(data, environ, self._trees, self._content.spec_of, name="edge-1")
        self._conductor = Conductor(
            Journal(data / "journal"),
            self._content,
            self._servers,
            os.environ.get("BOOT_ID", host.boot_id()),
        )

    async def run(self) -> None:
        self._content.prepare()
        await self._conductor.load()
        async with asyncio.TaskGroup() as tasks:
            await self._servers.begin(tasks)
            await self._servers.keep_only(set(self._conductor.slots.names))
            tasks.create_task(self._conductor.run(), name="conductor")
            tasks.create_task(self._take_in(), name="desired")
            tasks.create_task(self._tell(), name="status")

    async def _take_in(self) -> None:
        while True:
            with contextlib.suppress(FileNotFoundError):
                told = json.loads((self._shop / "desired.json").read_text())
                if told["generation"] > self._conductor.slots.generation:
                    await self._want(told)
            await asyncio.sleep(LOOK)

    async def _want(self, told: dict[str, Any]) -> None:
        wanted = {}
        for name, one in told["wants"].items():
            spec = worker_pb2.ReplicaSpec.FromString(base64.b64decode(one["spec"]))
            digest = await self._content.offer(spec)
            release = Release(spec.revision, one["tries"], digest)
            wanted[slot_name(name)] = Wanted(release, one["bake"])
        await self._conductor.want(told["generation"], wanted)

    async def _tell(self) -> None:
        fresh = self._data / "status.new"
        while True:
            slots = self._conductor.slots
            told = {}
            for name in slots.names:
                status = self._conductor.status(name)
                told[name] = {
                    "phase": status.phase.value,
                    "running": status.running.revision if status.running else 0,
                    "cause": status.cause,
                    "address": self._servers.address(name),
                    "inconsistent": status.inconsistent,
                }
            whole = {"pid": os.getpid(), "generation": slots.generation, "slots": told}
            fresh.write_text(json.dumps(whole))
            fresh.replace(self._data / "status.json")
            await asyncio.sleep(LOOK)


async def main() -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await Device(Path(sys.argv[1]), Path(sys.argv[2])).run()


if __name__ == "__main__":
    configure_log()
    asyncio.run(main())
