"""ArtifactService: chunks up and down, and manifests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from hatoba.artifacts.manifest import CHUNK_BYTES, DIGEST_BYTES, PIECE_BYTES
from hatoba.v1 import artifact_pb2, artifact_pb2_grpc
from hatoba_scheduler.errors import (
    DeadlineExceeded,
    InvalidArgument,
    Reason,
    ResourceExhausted,
)
from hatoba_scheduler.store.blobs import ChunkStore, Piece

if TYPE_CHECKING:
    from hatoba_scheduler.interceptors.types import Context

MAX_FIND = 10_000
MAX_DOWNLOAD = 1_000


class ArtifactLimits(NamedTuple):
    """How many streams are served at once and how many may wait for that, each way.

    `stall_seconds` is how long a stream may stand still. A stream takes some 2 MiB of memory.
    """

    streams: int = 8
    waiting: int = 64
    stall_seconds: float = 60.0


class ArtifactServicer(artifact_pb2_grpc.ArtifactServiceServicer):
    """Answers the calls of ArtifactService out of a ChunkStore."""

    def __init__(self, store: ChunkStore, limits: ArtifactLimits | None = None) -> None:
        self._store = store
        self._limits = limits or ArtifactLimits()
        self._uploads = _Gate(self._limits, "uploads")
        self._downloads = _Gate(self._limits, "downloads")

    async def FindMissingChunks(
        self, request: artifact_pb2.FindMissingChunksRequest, context: Context
    ) -> artifact_pb2.FindMissingChunksResponse:
        """Which chunks are not stored."""
        _check_digests(request.sha256, MAX_FIND)
        missing = await self._store.missing(request.sha256)
        return artifact_pb2.FindMissingChunksResponse(sha256=missing)

    async def UploadChunks(
        self, requests: Any, context: Context
    ) -> artifact_pb2.UploadChunksResponse:
        """Store chunks; the answer comes when all of them are on the disk."""
        order = _PieceOrder()
        async with self._uploads.passing(), self._store.upload() as upload:
            async with _unless_stalled(self._limits.stall_seconds) as patience:
                async for request in requests:
                    patience.rest()
                    await upload.add(order.follow(request))
                    patience.renew()
            order.check_end()
            await upload.commit()
        return artifact_pb2.UploadChunksResponse(chunks=order.chunks, bytes=order.bytes)

    # grpc.aio takes handlers that write as well as handlers that yield; the stubs know the latter.
    async def DownloadChunks(  # type: ignore[override]
        self, request: artifact_pb2.DownloadChunksRequest, context: Context
    ) -> None:
        """Send chunks in the order asked for."""
        _check_digests(request.sha256, MAX_DOWNLOAD)
        async with (
            self._downloads.passing(),
            aclosing(self._store.read(request.sha256)) as visits,
            _unless_stalled(self._limits.stall_seconds) as patience,
        ):
            async for pieces in visits:
                for piece in pieces:
                    patience.renew()
                    await context.write(artifact_pb2.DownloadChunksResponse(**piece._asdict()))
                patience.rest()

    async def CreateManifest(
        self, request: artifact_pb2.CreateManifestRequest, context: Context
    ) -> artifact_pb2.CreateManifestResponse:
        """Store a manifest whose chunks are stored."""
        ref = await self._store.put_manifest(request.manifest)
        return artifact_pb2.CreateManifestResponse(ref=ref)

    async def GetManifest(
        self, request: artifact_pb2.GetManifestRequest, context: Context
    ) -> artifact_pb2.Manifest:
        """A manifest by digest."""
        return await self._store.manifest(request.digest)


class _PieceOrder:
    """Whether the pieces of a stream follow one another, and how much came."""

    def __init__(self) -> None:
        self.chunks = 0
        self.bytes = 0
        self._current = b""
        self._size = 0

    def follow(self, request: artifact_pb2.UploadChunksRequest) -> Piece:
        """The piece with its chunk's digest. Raises InvalidArgument."""
        self._check_digest(request.sha256)
        self._check_size(len(request.data), request.last)
        piece = Piece(self._current, request.data, request.last)
        self.bytes += len(request.data)
        if request.last:
            self.chunks += 1
            self._current, self._size = b"", 0
        return piece

    def check_end(self) -> None:
        """Raise InvalidArgument when the last chunk was not finished."""
        if self._current:
            raise InvalidArgument.field(
                "last",
                f"must be set on the last piece of chunk {self._current.hex()}",
                value=False,
                remedy="send the rest of it",
            )

    def _check_digest(self, sha256: bytes) -> None:
        if not self._current:
            if len(sha256) != DIGEST_BYTES:
                rule = f"must have {DIGEST_BYTES} bytes on the first piece of a chunk"
                raise InvalidArgument.field("sha256", rule, value=sha256.hex())
            self._current = sha256
        elif sha256 not in (b"", self._current):
            raise InvalidArgument.field(
                "sha256",
                f"must be absent or that of the chunk that has begun, {self._current.hex()}",
                value=sha256.hex(),
                remedy="set `last` on a chunk's last piece before the next one begins",
            )

    def _check_size(self, size: int, last: bool) -> None:
        self._size += size
        if size > PIECE_BYTES:
            raise InvalidArgument.field(
                "data", f"must be at most {PIECE_BYTES:,} bytes", value=size
            )
        if self._size > CHUNK_BYTES:
            rule = f"must add up to at most {CHUNK_BYTES:,} bytes for one chunk"
            raise InvalidArgument.field("data", rule, value=self._size)
        if not size and not last:
            raise InvalidArgument.field("data", "must not be empty", value=size)
        if not self._size:
            raise InvalidArgument.field("data", "must have at least 1 byte for a chunk", value=0)


class _Gate:
    """Lets a number of streams through at a time, in order of their coming."""

    def __init__(self, limits: ArtifactLimits, what: str) -> None:
        self._places = asyncio.Semaphore(limits.streams)
        self._room = limits.waiting
        self._what = what

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """A place among those that are served. Raises ResourceExhausted when too many wait."""
        if self._places.locked() and not self._room:
            raise ResourceExhausted(
                f"the server has as many {self._what} as it can take; try again soon",
                reason=Reason.TOO_MANY_CALLS,
                retry_after=1.0,
            )
        self._room -= 1
        try:
            await self._places.acquire()
        finally:
            self._room += 1
        try:
            yield
        finally:
            self._places.release()


class _Patience:
    """How long the other side may still stand still; our own disk's time is not counted."""

    def __init__(self, scope: asyncio.Timeout, seconds: float) -> None:
        self._scope = scope
        self._seconds = seconds

    def rest(self) -> None:
        """It is our turn."""
        self._scope.reschedule(None)

    def renew(self) -> None:
        """It is the other side's turn, with all the time again."""
        self._scope.reschedule(asyncio.get_running_loop().time() + self._seconds)


@asynccontextmanager
async def _unless_stalled(seconds: float) -> AsyncIterator[_Patience]:
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            yield _Patience(scope, seconds)
    except TimeoutError:
        if not scope.expired():
            raise
        raise DeadlineExceeded(
            f"nothing was sent or taken for {seconds:g} s; ask which chunks are missing, and go on"
        ) from None


def _check_digests(digests: Any, most: int) -> None:
    if len(digests) > most:
        raise InvalidArgument.field(
            "sha256", f"must have at most {most:,} items", value=len(digests)
        )
    for index, digest in enumerate(digests):
        if len(digest) != DIGEST_BYTES:
            rule = f"must have {DIGEST_BYTES} bytes"
            raise InvalidArgument.field(f"sha256[{index}]", rule, value=digest.hex())
