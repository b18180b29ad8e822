"""ArtifactService: chunks up and down, and manifests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from hatoba.artifacts.manifest import CHUNK_BYTES, DIGEST_BYTES, MAX_MANIFEST_BYTES, PIECE_BYTES
from hatoba.v1 import artifact_pb2, artifact_pb2_grpc
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.control.garbage import Garbage
from hatoba_scheduler.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Reason,
    ResourceExhausted,
)
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.store.blob_place import Signed
from hatoba_scheduler.store.blobs import ChunkStore, Piece, Read
from hatoba_scheduler.store.buckets import Externals

if TYPE_CHECKING:
    from hatoba_scheduler.interceptors.types import Context

MAX_FIND = 10_000
MAX_DOWNLOAD = 10_000
MAX_DIRECT = 1_000
MAX_WHOLE = 4_096
SMALL_PIECE = 64 << 10
"""Bytes of a message for devices: of one on whose way the link broke all is lost."""


class ArtifactLimits(NamedTuple):
    """How many streams are served at once and how many may wait for that, each way.

    `stall_seconds` is how long a stream may stand still. A stream takes some 2 MiB of memory.
    """

    streams: int = 8
    waiting: int = 64
    stall_seconds: float = 60.0


class ArtifactParts(NamedTuple):
    """What ArtifactService stands on."""

    chunks: ChunkStore
    garbage: Garbage
    externals: Externals


class ArtifactServicer(artifact_pb2_grpc.ArtifactServiceServicer):
    """Answers the calls of ArtifactService out of a ChunkStore."""

    def __init__(self, parts: ArtifactParts, limits: ArtifactLimits | None = None) -> None:
        self._store = parts.chunks
        self._garbage = parts.garbage
        self._externals = parts.externals
        self._limits = limits or ArtifactLimits()
        self._uploads = _Gate(self._limits, "uploads")
        self._downloads = _Gate(self._limits, "downloads")

    async def FindMissingChunks(
        self, request: artifact_pb2.FindMissingChunksRequest, context: Context
    ) -> artifact_pb2.FindMissingChunksResponse:
        """Which chunks are not stored, and which manifests are."""
        _check_digests(request.sha256, MAX_FIND)
        _check_digests(request.manifests, MAX_DIRECT, "manifests")
        manifests = await self._store.stored_manifests(request.manifests)
        missing = await self._store.missing(request.sha256)
        return artifact_pb2.FindMissingChunksResponse(sha256=missing, manifests=manifests)

    async def UploadChunks(
        self, requests: Any, context: Context
    ) -> artifact_pb2.UploadChunksResponse:
        """Store chunks; the answer comes when all of them are on the disk."""
        order = _PieceOrder()
        async with self._uploads.passing(), self._store.upload() as upload:
            async with _unless_stalled(self._limits.stall_seconds) as patience:
                async for request in requests:
                    patience.rest()
                    for piece in order.follow(request):
                        await upload.add(piece)
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
        _check_offset(request)
        packed = _packing(request)
        skip = request.offset
        async with (
            self._downloads.passing(),
            aclosing(self._store.read(request.sha256)) as visits,
            _unless_stalled(self._limits.stall_seconds) as patience,
        ):
            begun = False
            async for pieces in visits:
                rest, skip = _from(pieces, skip) if skip else (pieces, 0)
                for reply in packed(rest, begun):
                    patience.renew()
                    await context.write(reply)
                begun = bool(pieces) and not pieces[-1].last
                patience.rest()

    async def CreateManifest(
        self, request: artifact_pb2.CreateManifestRequest, context: Context
    ) -> artifact_pb2.CreateManifestResponse:
        """Store a manifest whose chunks are stored."""
        ref = await self._store.put_manifest(request.manifest)
        return artifact_pb2.CreateManifestResponse(ref=ref)

    async def UploadManifest(
        self, requests: Any, context: Context
    ) -> artifact_pb2.CreateManifestResponse:
        """As CreateManifest, for one that comes in pieces."""
        async with self._uploads.passing(), self._store.manifest_upload() as upload:
            async with _unless_stalled(self._limits.stall_seconds) as patience:
                async for request in requests:
                    patience.rest()
                    _check_piece(len(request.data))
                    await upload.add(request.data)
                    patience.renew()
            ref = await upload.commit()
        return artifact_pb2.CreateManifestResponse(ref=ref)

    async def GetManifest(
        self, request: artifact_pb2.GetManifestRequest, context: Context
    ) -> artifact_pb2.Manifest:
        """A manifest by digest."""
        return await self._store.manifest(request.digest, most=MAX_MANIFEST_BYTES)

    async def DownloadManifest(  # type: ignore[override]
        self, request: artifact_pb2.DownloadManifestRequest, context: Context
    ) -> None:
        """Send a manifest in pieces."""
        async with (
            self._downloads.passing(),
            aclosing(self._store.manifest_pieces(request.digest)) as pieces,
            _unless_stalled(self._limits.stall_seconds) as patience,
        ):
            async for piece in pieces:
                patience.renew()
                await context.write(artifact_pb2.DownloadManifestResponse(data=piece))
                patience.rest()

    async def GetTransferUrls(
        self, request: artifact_pb2.GetTransferUrlsRequest, context: Context
    ) -> artifact_pb2.GetTransferUrlsResponse:
        """Addresses at the object store, and at users' buckets."""
        _check_digests(request.sha256, MAX_DIRECT)
        upload = request.direction == artifact_pb2.TRANSFER_DIRECTION_UPLOAD
        _check_direction(request, upload=upload)
        direct = self._store.place.direct
        reply = artifact_pb2.GetTransferUrlsResponse(direct=direct is not None)
        if direct is not None and request.sha256:
            ask = direct.upload_urls if upload else direct.download_urls
            _add_urls(reply, await self._store.on_thread(ask, list(request.sha256)))
        if request.external:
            await self._check_named(request.manifest, request.external)
            uris = [one.uri for one in request.external]
            _add_urls(reply, await self._store.on_thread(self._externals.urls, uris))
        return reply

    async def ConfirmChunks(
        self, request: artifact_pb2.ConfirmChunksRequest, context: Context
    ) -> artifact_pb2.ConfirmChunksResponse:
        """Take in chunks that were put to upload addresses."""
        _check_digests([chunk.sha256 for chunk in request.chunks], MAX_DIRECT, "chunks")
        direct = self._store.place.direct
        if direct is None:
            raise FailedPrecondition(
                "this server keeps chunks in a directory and gives out no upload addresses; "
                "send them by UploadChunks"
            )
        missing = await self._store.confirm(direct, request.chunks)
        return artifact_pb2.ConfirmChunksResponse(missing=missing)

    async def CollectGarbage(
        self, request: artifact_pb2.CollectGarbageRequest, context: Context
    ) -> artifact_pb2.CollectGarbageResponse:
        """One run of garbage collection."""
        collected = await self._garbage.collect(only_say=request.validate_only)
        return artifact_pb2.CollectGarbageResponse(**asdict(collected))

    async def _check_named(
        self, digest: str, objects: Sequence[artifact_pb2.ExternalObject]
    ) -> None:
        """Raise InvalidArgument unless the stored manifest names all of these objects."""
        wanted = {(one.uri, one.etag): index for index, one in enumerate(objects)}
        async with aclosing(self._store.entries(digest)) as batches:
            async for entries in batches:
                for entry in entries:
                    if entry.HasField("external"):
                        wanted.pop((entry.external.uri, entry.external.etag), None)
                if not wanted:
                    return
        index = min(wanted.values())
        raise InvalidArgument.field(
            f"external[{index}]",
            f"must be an object that manifest {digest} names",
            value=objects[index].uri,
        )


def _check_direction(request: artifact_pb2.GetTransferUrlsRequest, *, upload: bool) -> None:
    if upload and request.external:
        raise InvalidArgument.field("external", "must be empty for uploads")
    if request.external and not request.manifest:
        rule = "must name the manifest that has the external objects"
        raise InvalidArgument.field("manifest", rule, value="")
    if upload and current_call().role is Role.VIEWER:
        raise PermissionDenied("a viewer may not upload; use a token with the role user")


def _add_urls(reply: artifact_pb2.GetTransferUrlsResponse, signed: Signed) -> None:
    for url in signed.urls:
        reply.urls.add(url=url).expire_time.FromNanoseconds(round(signed.expire_time * 1e9))


def _check_offset(request: artifact_pb2.DownloadChunksRequest) -> None:
    if request.offset and len(request.sha256) > 1:
        raise InvalidArgument.field(
            "offset",
            "is for a single chunk",
            value=request.offset,
            remedy="ask for the others in another call",
        )


def _from(pieces: Sequence[Read], skip: int) -> tuple[list[Read], int]:
    """Pieces without their first bytes, and how many are still to be left out. The last piece
    stays, be it empty: it says that there is no more."""
    kept = []
    for piece in pieces:
        size = len(piece.data)
        if size > skip or piece.last:
            kept.append(piece._replace(data=piece.data[skip:]))
        skip = max(0, skip - size)
    return kept, skip


def _single(pieces: Sequence[Read], begun: bool) -> Iterator[artifact_pb2.DownloadChunksResponse]:
    """A message for each piece."""
    for piece in pieces:
        yield artifact_pb2.DownloadChunksResponse(
            position=piece.position, data=piece.data, last=piece.last
        )


def _small(pieces: Sequence[Read], begun: bool) -> Iterator[artifact_pb2.DownloadChunksResponse]:
    """Many messages for each piece."""
    for one in _single(pieces, begun):
        for start in range(0, max(1, len(one.data)), SMALL_PIECE):
            end = start + SMALL_PIECE
            yield artifact_pb2.DownloadChunksResponse(
                position=one.position,
                data=one.data[start:end],
                last=one.last and end >= len(one.data),
            )


def _packing(
    request: artifact_pb2.DownloadChunksRequest,
) -> Callable[[Sequence[Read], bool], Iterator[artifact_pb2.DownloadChunksResponse]]:
    """How chunks become messages for who asks."""
    if request.whole and not request.offset:
        return _packed
    return _small if current_call().role is Role.DEVICE else _single


def _packed(pieces: Sequence[Read], begun: bool) -> Iterator[artifact_pb2.DownloadChunksResponse]:
    """A message for each row of whole chunks, and for each other piece.

    `begun`: the first piece goes on with a chunk.
    """
    row: list[Read] = []
    for piece in pieces:
        if piece.last and not begun and len(row) < MAX_WHOLE:
            row.append(piece)
        else:
            yield from _row(row)
            row = []
            yield from _single([piece], begun)
        begun = not piece.last
    yield from _row(row)


def _row(row: Sequence[Read]) -> Iterator[artifact_pb2.DownloadChunksResponse]:
    if row:
        whole = [piece.data for piece in row]
        yield artifact_pb2.DownloadChunksResponse(position=row[0].position, whole=whole)


class _PieceOrder:
    """Whether the pieces of a stream follow one another, and how much came."""

    def __init__(self) -> None:
        self.chunks = 0
        self.bytes = 0
        self._current = b""
        self._size = 0

    def follow(self, request: artifact_pb2.UploadChunksRequest) -> list[Piece]:
        """The pieces with their chunks' digests. Raises InvalidArgument."""
        if request.whole:
            return self._whole(request)
        self._check_digest(request.sha256)
        self._check_size(len(request.data), request.last)
        piece = Piece(self._current, request.data, request.last)
        self.bytes += len(request.data)
        if request.last:
            self.chunks += 1
            self._current, self._size = b"", 0
        return [piece]

    def _whole(self, request: artifact_pb2.UploadChunksRequest) -> list[Piece]:
        if self._current or request.sha256 or request.data or request.last:
            raise InvalidArgument.field(
                "whole", "must stand alone, between two chunks", value=len(request.whole)
            )
        pieces = [Piece(chunk.sha256, chunk.data, True) for chunk in request.whole]
        size = sum(len(piece.data) for piece in pieces)
        if size > PIECE_BYTES:
            rule = f"must have at most {PIECE_BYTES:,} bytes together"
            raise InvalidArgument.field("whole", rule, value=size)
        for index, piece in enumerate(pieces):
            if len(piece.sha256) != DIGEST_BYTES or not piece.data:
                rule = f"must have a digest of {DIGEST_BYTES} bytes and at least 1 byte"
                raise InvalidArgument.field(f"whole[{index}]", rule, value=piece.sha256.hex())
        self.chunks += len(pieces)
        self.bytes += size
        return pieces

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
        _check_piece(size)
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


def _check_piece(size: int) -> None:
    if size > PIECE_BYTES:
        raise InvalidArgument.field("data", f"must be at most {PIECE_BYTES:,} bytes", value=size)


def _check_digests(digests: Any, most: int, field: str = "sha256") -> None:
    if len(digests) > most:
        raise InvalidArgument.field(field, f"must have at most {most:,} items", value=len(digests))
    for index, digest in enumerate(digests):
        if len(digest) != DIGEST_BYTES:
            rule = f"must have {DIGEST_BYTES} bytes"
            raise InvalidArgument.field(f"{field}[{index}]", rule, value=digest.hex())
