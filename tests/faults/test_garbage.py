"""Garbage collection without pause against uploads that share chunks, while the server is killed.

Leases last seconds instead of an hour here. Every job whose submit was acknowledged names a tree,
and at the end every one of these trees is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from server_process import ColdLauncher, HatobaServer, configured

from hatoba.artifacts.pack import pack_tree
from hatoba.artifacts.scan import Selection
from hatoba.artifacts.transfer import TransferOptions, download_tree, upload_tree
from hatoba.errors import HatobaError
from hatoba.v1 import artifact_pb2, artifact_pb2_grpc, job_pb2, job_pb2_grpc

CONFIG = """
[blobs]
lease_seconds = 3
[defaults]
train = "null"
[backends.null]
type = "null"
"""
FULL_SECONDS = 60.0
SHORT_SECONDS = 12.0
PATIENCE = 5
UPLOADERS = 4
NAMED = 0.3
KILL_EVERY = 4.0
WINDOW = 12
PASSING = (HatobaError, grpc.aio.AioRpcError, OSError)


class Storm:
    """The server, those who upload, collect and kill, and what was acknowledged."""

    def __init__(self, house: HatobaServer, work: Path, seed: int) -> None:
        self.house = house
        self.work = work
        self.random = random.Random(seed)
        self.began = time.monotonic()
        self.seconds = 0.0
        self.named: list[str] = []
        self.uploaded = 0
        self.deleted = 0
        self.kills = 0

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.insecure_channel(self.house.address) as channel:
            yield channel

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.house.token()}"),)

    @property
    def over(self) -> bool:
        """Whether the time is up and all kinds of things happened; a slow machine gets more."""
        passed = time.monotonic() - self.began
        happened = self.named and self.deleted and self.kills
        return passed > self.seconds * (1 if happened else PATIENCE)

    async def run(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(UPLOADERS):
                group.create_task(self._upload(number), name=f"upload-{number}")
            group.create_task(self._collect(), name="collect")
            group.create_task(self._kill(), name="kill")

    async def _upload(self, number: int) -> None:
        count = 0
        while not self.over:
            count += 1
            root = self.work / f"tree-{number}-{count}"
            await asyncio.to_thread(self._fill, root)
            with contextlib.suppress(*PASSING):
                await self._send(root)
            await asyncio.sleep(0.01)

    def _fill(self, root: Path) -> None:
        """A few files out of a window of contents that moves on: chunks come, are shared and go."""
        root.mkdir()
        first = self.uploaded // 4
        for name in range(5):
            content = self.random.randrange(first, first + WINDOW)
            (root / str(name)).write_bytes(content.to_bytes(4, "big") * 200)

    async def _send(self, root: Path) -> None:
        packed = await asyncio.to_thread(pack_tree, root, Selection.EVERYTHING)
        options = TransferOptions(self.metadata, call_seconds=10.0)
        async with self.channel() as channel:
            ref = await upload_tree(artifact_pb2_grpc.ArtifactServiceStub(channel), packed, options)
            self.uploaded += 1
            if self.random.random() > NAMED:
                return
            spec = job_pb2.JobSpec(name="storm", command=["true"], hold=True)
            spec.code.CopyFrom(ref)
            await job_pb2_grpc.JobServiceStub(channel).SubmitJob(
                job_pb2.SubmitJobRequest(spec=spec), metadata=self.metadata, timeout=10.0
            )
        self.named.append(ref.digest)

    async def _collect(self) -> None:
        while not self.over:
            with contextlib.suppress(*PASSING):
                async with self.channel() as channel:
                    done = await artifact_pb2_grpc.ArtifactServiceStub(channel).CollectGarbage(
                        artifact_pb2.CollectGarbageRequest(), metadata=self.metadata, timeout=10.0
                    )
                    self.deleted += done.deleted
            await asyncio.sleep(0.05)

    async def _kill(self) -> None:
        while not self.over:
            await asyncio.sleep(self.random.uniform(0.5, 1.5) * KILL_EVERY)
            await self.house.restart()
            self.kills += 1

    async def check(self) -> None:
        """Every tree that an acknowledged job names can be fetched, every byte of it."""
        options = TransferOptions(self.metadata)
        async with self.channel() as channel:
            stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
            for number, digest in enumerate(sorted(set(self.named))):
                await download_tree(stub, digest, self.work / f"copy-{number}", options)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_every_named_tree_is_complete_after_kills(tmp_path: Path, full_round: bool) -> None:
    data, work = configured(tmp_path / "data", CONFIG), tmp_path / "work"
    work.mkdir()
    launcher = ColdLauncher()
    house = HatobaServer(data, worker=False, launcher=launcher)
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    storm = Storm(house, work, seed)
    try:
        await house.start()
        await storm.run(FULL_SECONDS if full_round else SHORT_SECONDS)
        await storm.check()
    finally:
        await house.close()
        await asyncio.to_thread(launcher.close)
    print(
        f"{storm.uploaded} uploads, {len(storm.named)} named, {storm.deleted} deleted, "
        f"{storm.kills} kills"
    )
    assert storm.named
    assert storm.deleted
    assert storm.kills
