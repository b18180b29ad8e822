"""Fetches the chunks and objects of a tree; what broke off goes on where it broke."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import NamedTuple

from hatoba.artifacts.direct import Changed, get
from hatoba.artifacts.errors import DigestMismatch, ObjectChanged
from hatoba.artifacts.manifest import DIRECT_BYTES, PIECE_BYTES
from hatoba.artifacts.options import (
    TransferOptions,
    ahead,
    batches,
    transfer_urls,
    typed_errors,
    uninterrupted,
)
from hatoba.artifacts.unpack import Piece, Unpacking
from hatoba.errors import Unavailable
from hatoba.streams import open_stream
from hatoba.v1 import artifact_pb2, artifact_pb2_grpc

DOWNLOAD_BATCH = 1_000
URL_BATCH = 100
AT_ONCE = 4
# Pieces that are written in one visit to a thread.
VISIT_PIECES = 4_096
# Waits after a stream broke; they begin anew with everything that comes.
WAITS = (0.2, 0.5, 1.0)


class _Object(NamedTuple):
    """An entry that stays in a bucket, and the address where it can be got now."""

    entry: artifact_pb2.ManifestEntry
    url: str


class Receiving:
    """One download into `unpacking`, which has begun. `digest` is that of the stored manifest."""

    def __init__(
        self,
        stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
        unpacking: Unpacking,
        options: TransferOptions,
        digest: str,
    ) -> None:
        self._stub = stub
        self._unpacking = unpacking
        self._options = options
        self._digest = digest
        stored = sum(chunk.size for chunk in unpacking.wanted)
        self._total = stored + sum(entry.size for entry in unpacking.externals)
        self._done = 0

    async def run(self) -> None:
        """Fetch all. Raises NotFound, DigestMismatch, ObjectChanged, Unavailable, UnpackFailed."""
        self._options.progress(0, self._total)
        with typed_errors(self._options):
            await self._chunks()
            await self._externals()

    async def _chunks(self) -> None:
        waits = iter(WAITS)
        while self._unpacking.position < len(self._unpacking.wanted):
            before = self._unpacking.position
            try:
                with typed_errors(self._options):
                    await self._some()
            except Unavailable:
                waits = iter(WAITS) if self._unpacking.position > before else waits
                wait = next(waits, None)
                if wait is None:
                    raise
                self._unpacking.rewind()
                self._recount()
                await asyncio.sleep(wait)

    def _recount(self) -> None:
        written = self._unpacking.wanted[: self._unpacking.position]
        self._done = sum(chunk.size for chunk in written)

    async def _some(self) -> None:
        """From the chunk that is next on: small ones by a stream, then big ones directly."""
        wanted = self._unpacking.wanted
        first = self._unpacking.position
        large = next(
            (at for at in range(first, len(wanted)) if wanted[at].size >= DIRECT_BYTES), len(wanted)
        )
        direct = large < len(wanted) and await self._is_direct(wanted[large])
        end = large if direct else len(wanted)
        async with aclosing(self._streamed(first, end)) as visits:
            await self._write(visits)
        for start in range(end, len(wanted), URL_BATCH):
            async with aclosing(self._got(start, min(start + URL_BATCH, len(wanted)))) as visits:
                await self._write(visits)

    async def _write(self, visits: AsyncGenerator[list[Piece], None]) -> None:
        async for pieces in visits:
            await uninterrupted(self._unpacking.write, pieces)
            self._tell(sum(len(piece.data) for piece in pieces))

    def _tell(self, size: int) -> None:
        self._done += size
        self._options.progress(self._done, self._total)

    # -- by way of the server -------------------------------------------------------------------

    async def _streamed(self, first: int, end: int) -> AsyncGenerator[list[Piece], None]:
        """What the server sends, about 1 MiB at a time, with positions counted over all."""
        for batch in batches(self._unpacking.wanted[first:end], DOWNLOAD_BATCH):
            request = artifact_pb2.DownloadChunksRequest(
                sha256=[chunk.sha256 for chunk in batch], whole=True
            )
            gathered: list[Piece] = []
            size = 0
            call = self._stub.DownloadChunks(request, metadata=self._options.metadata)
            async with open_stream(call):
                async for reply in call:
                    gathered += _pieces(first, reply)
                    size += len(reply.data) + sum(map(len, reply.whole))
                    if size >= PIECE_BYTES or len(gathered) >= VISIT_PIECES:
                        yield gathered
                        gathered, size = [], 0
            yield gathered
            first += len(batch)
            if self._unpacking.position != first:
                raise DigestMismatch(f"{first - self._unpacking.position} chunks did not come")

    # -- from the object store ------------------------------------------------------------------

    async def _is_direct(self, chunk: artifact_pb2.Chunk) -> bool:
        if chunk.size < DIRECT_BYTES:
            return False
        request = artifact_pb2.GetTransferUrlsRequest(
            direction=artifact_pb2.TRANSFER_DIRECTION_DOWNLOAD
        )
        return (await self._urls(request)).direct

    async def _got(self, start: int, end: int) -> AsyncGenerator[list[Piece], None]:
        """Chunks from the object store, a few under way at once, each held whole for a moment."""
        chunks = self._unpacking.wanted[start:end]
        request = artifact_pb2.GetTransferUrlsRequest(
            direction=artifact_pb2.TRANSFER_DIRECTION_DOWNLOAD,
            sha256=[chunk.sha256 for chunk in chunks],
        )
        urls = [one.url for one in (await self._urls(request)).urls]
        work = [
            partial(_chunk, start + at, url, chunk.size)
            for at, (url, chunk) in enumerate(zip(urls, chunks, strict=True))
        ]
        async with aclosing(ahead(work, AT_ONCE)) as fetched:
            async for pieces in fetched:
                yield pieces

    async def _externals(self) -> None:
        """Files that stay in a bucket, by addresses at the bucket."""
        for batch in batches(self._unpacking.externals, URL_BATCH):
            request = artifact_pb2.GetTransferUrlsRequest(
                direction=artifact_pb2.TRANSFER_DIRECTION_DOWNLOAD,
                manifest=self._digest,
                external=[entry.external for entry in batch],
            )
            urls = [one.url for one in (await self._urls(request)).urls]
            objects = [_Object(*both) for both in zip(batch, urls[-len(batch) :], strict=True)]
            await self._fill(objects)

    async def _fill(self, objects: Sequence[_Object]) -> None:
        fds: dict[str, int] = {}
        try:
            for one in objects:
                fds[one.entry.path] = await uninterrupted(self._unpacking.open_external, one.entry)
            work: list[Callable[[], int]] = [
                partial(_copy, one, fds[one.entry.path]) for one in objects
            ]
            async with aclosing(ahead(work, AT_ONCE)) as sizes:
                async for size in sizes:
                    self._tell(size)
        finally:
            for fd in fds.values():
                os.close(fd)

    async def _urls(
        self, request: artifact_pb2.GetTransferUrlsRequest
    ) -> artifact_pb2.GetTransferUrlsResponse:
        return await transfer_urls(self._stub, request, self._options)


def _pieces(first: int, reply: artifact_pb2.DownloadChunksResponse) -> list[Piece]:
    at = first + reply.position
    if reply.whole:
        return [Piece(at + number, data, True) for number, data in enumerate(reply.whole)]
    return [Piece(at, reply.data, reply.last)]


def _chunk(position: int, url: str, size: int) -> list[Piece]:
    pieces = [Piece(position, data, False) for data in get(url, size)]
    return [*pieces[:-1], pieces[-1]._replace(last=True)]


def _copy(found: _Object, fd: int) -> int:
    entry = found.entry
    try:
        offset = 0
        for data in get(found.url, entry.size, entry.external.etag):
            _write_all(fd, data, offset)
            offset += len(data)
    except Changed as changed:
        external = entry.external
        raise ObjectChanged(entry.path, external.uri, external.etag, str(changed)) from None
    return entry.size


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
