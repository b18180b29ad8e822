"""A backup that copies what it names, while all that named it is removed and collected."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from server_process import running_server
from trees import put_tree
from waiting import eventually
from wire import Wire

from hatoba.v1 import admin_pb2, artifact_pb2, dataset_pb2
from hatoba_scheduler.config import BlobsConfig

from .test_commands import with_bucket

LEASE = "lease_seconds = 1\n"
CHUNK = b"/chunks/"
PIECE = 1 << 16
COLLECTED_WITHIN = 100.0


class Sluice:
    """In front of a bucket: chunks are given out when the test says so, all else at once."""

    def __init__(self, endpoint: str) -> None:
        there = urlsplit(endpoint)
        assert there.hostname is not None
        self._host, self._port = there.hostname, there.port
        self.port = 0
        self.open = asyncio.Event()
        self.open.set()
        self.held = asyncio.Event()
        """Somebody waits for a chunk."""

    def in_front_of(self, bucket: BlobsConfig) -> BlobsConfig:
        """The bucket as it is reached through here."""
        return replace(bucket, endpoint=f"http://127.0.0.1:{self.port}")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the server's."""
        inner, outer = await asyncio.open_connection(self._host, self._port)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._asked(reader, outer), name="asked")
            group.create_task(_pass_on(inner, writer), name="answered")

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(PIECE):
            line = data.partition(b"\r\n")[0]
            if line.startswith(b"GET ") and CHUNK in line.partition(b"?")[0]:
                self.held.set()
                await self.open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def sluice(bucket: BlobsConfig) -> AsyncIterator[Sluice]:
    """A port in front of the bucket's server."""
    one = Sluice(bucket.endpoint)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()


async def collected(wire: Wire) -> artifact_pb2.CollectGarbageResponse:
    request = artifact_pb2.CollectGarbageRequest()
    return await wire.call(request, artifact_pb2.CollectGarbageResponse)


async def in_a_version(wire: Wire, content: bytes) -> str:
    """A dataset version with one file; its name."""
    tree = await put_tree(wire, {"a.txt": content})
    request = dataset_pb2.CreateDatasetVersionRequest(dataset="faces", manifest=tree)
    await wire.call(request, dataset_pb2.DatasetVersion)
    return "datasets/faces:1"


@pytest.mark.timeout(240)
async def test_what_a_backup_is_copying_is_not_collected(
    tmp_path: Path, bucket: BlobsConfig
) -> None:
    data, content = tmp_path / "data", b"worth keeping"
    async with sluice(bucket) as between:
        with_bucket(data, between.in_front_of(bucket))
        config = data / "hatoba.toml"
        await asyncio.to_thread(config.write_text, config.read_text() + LEASE)
        async with running_server(data, worker=False) as server, Wire(server) as wire:
            version = await in_a_version(wire, content)
            await put_tree(wire, {"b.txt": b"named by nobody"})
            between.open.clear()
            between.held.clear()
            async with asyncio.TaskGroup() as group:
                request = admin_pb2.CreateBackupRequest(
                    path=str(tmp_path / "copy"), with_blobs=True
                )
                copying = group.create_task(wire.call(request, admin_pb2.Backup), name="backup")
                await between.held.wait()
                end = dataset_pb2.DeleteDatasetVersionRequest(name=version)
                await wire.call(end, dataset_pb2.DatasetVersion)
                # Once something is deleted, all that was unnamed then had its marks and its time.
                await eventually(lambda: _deleted(wire), COLLECTED_WITHIN)
                assert not copying.done()
                between.open.set()
            digest = hashlib.sha256(content).hexdigest()
            file = tmp_path / "copy" / "blobs" / "chunks" / digest[:2] / digest
            assert await asyncio.to_thread(file.read_bytes) == content
            # It was the backup alone that kept it.
            gone = admin_pb2.DeleteBackupRequest(name=copying.result().name)
            await wire.call(gone, admin_pb2.DeleteBackupResponse)
            await eventually(lambda: _nothing_left(wire), COLLECTED_WITHIN)


async def _deleted(wire: Wire) -> bool:
    return (await collected(wire)).deleted > 0


async def _nothing_left(wire: Wire) -> bool:
    found = await collected(wire)
    return found.stored == found.deleted
