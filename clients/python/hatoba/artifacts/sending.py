"""Brings the chunks that a server lacks to it: small ones many at a time, big ones in pieces, and
straight to the object store where there is one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import grpc.aio

from hatoba.artifacts.direct import Unreachable, put
from hatoba.artifacts.errors import TreeChanged
from hatoba.artifacts.manifest import DIRECT_BYTES, PIECE_BYTES
from hatoba.artifacts.options import TransferOptions, ahead, batches, transfer_urls
from hatoba.artifacts.pack import ChunkSource
from hatoba.errors import HatobaError, ServerError, from_rpc
from hatoba.streams import open_stream
from hatoba.v1 import artifact_pb2, artifact_pb2_grpc

if TYPE_CHECKING:
    from typing import TypeAlias

    _Upload: TypeAlias = grpc.aio.StreamUnaryCall[
        artifact_pb2.UploadChunksRequest, artifact_pb2.UploadChunksResponse
    ]

# Chunks up to this size travel whole, with others in one message.
WHOLE_BYTES = 256 * 1024
WHOLE_CHUNKS = 1_024
DIRECT_BATCH = 16
DIRECT_AT_ONCE = 4
DIRECT_TRIES = 3
_READ_AHEAD = 3
STREAMS = 3
# A cut loses a chunk of each stream, which shall stay a small share of what is sent.
MUCH_BYTES = 768 * 1024 * 1024

Chunks = Mapping[bytes, ChunkSource]


class _Slice(NamedTuple):
    """Up to 1 MiB of a chunk: where it can be read, and whether it is its end, or all of it."""

    sha256: bytes
    path: str
    offset: int
    size: int
    last: bool
    whole: bool = False


class Sending:
    """One upload: what was sent so far, and who is told."""

    def __init__(
        self,
        stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
        chunks: Chunks,
        options: TransferOptions,
    ) -> None:
        self._stub = stub
        self._chunks = chunks
        self._options = options
        self._total = sum(source.size for source in chunks.values())
        self._done = 0

    async def run(self) -> None:
        """Send all. Raises TreeChanged, and what the server's status stands for."""
        if not self._chunks:
            return
        self._tell(0)
        small = {sha: one for sha, one in self._chunks.items() if one.size < DIRECT_BYTES}
        large = {sha: one for sha, one in self._chunks.items() if one.size >= DIRECT_BYTES}
        if large and await self._directly(large):
            large = {}
        await self._streams({**small, **large})

    def _tell(self, size: int) -> None:
        self._done += size
        self._options.progress(self._done, self._total)

    # -- by way of the server -------------------------------------------------------------------

    async def _streams(self, chunks: Chunks) -> None:
        """Send by one stream; by several when there is much: one goes while another is hashed."""
        much = sum(one.size for one in chunks.values()) >= MUCH_BYTES
        order = list(chunks.items())
        shares = [dict(order[first::STREAMS]) for first in range(STREAMS)] if much else [chunks]
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, share in enumerate(shares):
                    tasks.create_task(self._stream(share), name=f"upload {number}")
        except BaseExceptionGroup as failures:
            # One breaks the others off: what it met is what the caller hears.
            raise failures.exceptions[0] from None

    async def _stream(self, chunks: Chunks) -> None:
        if not chunks:
            return
        reads = (partial(_message, part) for part in _parts(chunks))
        async with (
            open_stream(self._stub.UploadChunks(metadata=self._options.metadata)) as call,
            aclosing(ahead(reads, _READ_AHEAD)) as messages,
        ):
            try:
                async for message, size in messages:
                    await call.write(message)
                    self._tell(size)
                await call.done_writing()
                await call
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.InternalError):
                # The server ended the call early, or the connection broke; its status says why.
                raise await self._blamed(call, chunks) from None

    async def _blamed(self, call: _Upload, chunks: Chunks) -> HatobaError:
        """Why an upload failed; a digest that does not fit means that a file was written to."""
        try:
            await call
        except grpc.aio.AioRpcError as failure:
            return self._named(from_rpc(failure, self._options.address), chunks)
        return ServerError("the server ended the upload before all of it was sent")

    def _named(self, error: HatobaError, chunks: Chunks) -> HatobaError:
        if error.reason == "DIGEST_MISMATCH":
            found = error.details.metadata.get("sha256", "")
            source = next((chunks[sha] for sha in chunks if sha.hex() == found), None)
            return TreeChanged(source.path) if source else error
        return error

    # -- straight to the object store -----------------------------------------------------------

    async def _directly(self, chunks: Chunks) -> bool:
        """Put chunks where the server says; False when that is not to be, and nothing was sent."""
        for number, batch in enumerate(batches(list(chunks), DIRECT_BATCH)):
            try:
                if not await self._put_all({sha: chunks[sha] for sha in batch}):
                    return False
            except Unreachable:
                if number:
                    raise
                # Some stores can be reached from the server alone.
                return False
        return True

    async def _put_all(self, chunks: Chunks) -> bool:
        left = list(chunks)
        for _ in range(DIRECT_TRIES):
            request = artifact_pb2.GetTransferUrlsRequest(
                direction=artifact_pb2.TRANSFER_DIRECTION_UPLOAD, sha256=left
            )
            reply = await transfer_urls(self._stub, request, self._options)
            if not reply.direct:
                return False
            work = [
                partial(_put, one.url, chunks[sha])
                for sha, one in zip(left, reply.urls, strict=True)
            ]
            async with aclosing(ahead(work, DIRECT_AT_ONCE)) as sizes:
                async for size in sizes:
                    self._tell(size)
            left = await self._confirmed(left, chunks)
            if not left:
                return True
            self._tell(-sum(chunks[sha].size for sha in left))
        raise ServerError(f"{len(left)} chunks did not arrive at the object store; try again")

    async def _confirmed(self, sent: list[bytes], chunks: Chunks) -> list[bytes]:
        named = [artifact_pb2.Chunk(sha256=sha, size=chunks[sha].size) for sha in sent]
        request = artifact_pb2.ConfirmChunksRequest(chunks=named)
        options = self._options
        try:
            reply = await self._stub.ConfirmChunks(
                request, timeout=options.call_seconds, metadata=options.metadata
            )
        except grpc.aio.AioRpcError as failure:
            raise self._named(from_rpc(failure, options.address), chunks) from None
        return list(reply.missing)


def _put(url: str, source: ChunkSource) -> int:
    put(url, _read(source.path, source.offset, source.size))
    return source.size


def _parts(chunks: Chunks) -> Iterator[list[_Slice]]:
    """What one message each carries: a piece of a chunk, or whole small chunks."""
    row: list[_Slice] = []
    size = 0
    for sha256, (path, start, length) in chunks.items():
        if length > WHOLE_BYTES:
            for offset in range(0, length, PIECE_BYTES):
                some = min(PIECE_BYTES, length - offset)
                yield [_Slice(sha256, path, start + offset, some, offset + some == length)]
            continue
        if size + length > PIECE_BYTES or len(row) == WHOLE_CHUNKS:
            yield row
            row, size = [], 0
        row.append(_Slice(sha256, path, start, length, True, True))
        size += length
    if row:
        yield row


def _message(part: list[_Slice]) -> tuple[artifact_pb2.UploadChunksRequest, int]:
    """The message, and how many bytes of content it has."""
    first = part[0]
    if not first.whole:
        data = _read(first.path, first.offset, first.size)
        message = artifact_pb2.UploadChunksRequest(sha256=first.sha256, data=data, last=first.last)
        return message, first.size
    return _whole(part), sum(one.size for one in part)


def _whole(part: Iterable[_Slice]) -> artifact_pb2.UploadChunksRequest:
    message = artifact_pb2.UploadChunksRequest()
    for one in part:
        message.whole.add(sha256=one.sha256, data=_read(one.path, one.offset, one.size))
    return message


def _read(path: str, offset: int, size: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise TreeChanged(path) from None
    try:
        data = os.pread(fd, size, offset)
    finally:
        os.close(fd)
    if len(data) != size:
        raise TreeChanged(path)
    return data
