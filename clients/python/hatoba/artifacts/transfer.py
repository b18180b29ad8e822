"""Sends trees to a server and fetches them: only the chunks that are missing, a piece at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import grpc.aio

from hatoba.artifacts.errors import DigestMismatch, TreeChanged
from hatoba.artifacts.manifest import PIECE_BYTES, canonical_bytes, digest_of, ref_of
from hatoba.artifacts.pack import ChunkSource, PackedTree, pack_tree
from hatoba.artifacts.unpack import Piece, Unpacking
from hatoba.errors import HatobaError, ServerError, from_rpc
from hatoba.streams import open_stream
from hatoba.v1 import artifact_pb2, artifact_pb2_grpc, common_pb2

if TYPE_CHECKING:
    from typing import TypeAlias

    _Upload: TypeAlias = grpc.aio.StreamUnaryCall[
        artifact_pb2.UploadChunksRequest, artifact_pb2.UploadChunksResponse
    ]

FIND_BATCH = 10_000
DOWNLOAD_BATCH = 1_000
# Pieces that are read, or written, in one visit to a thread.
VISIT_PIECES = 256

T = TypeVar("T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TransferOptions:
    """How to transfer: headers of every call, who is told (bytes done, bytes in all), and limits.

    `call_seconds` bounds each call that is not a stream. `address` is named in errors. With `only`,
    of a tree that is fetched only the files at these paths are.
    """

    metadata: tuple[tuple[str, str], ...] = ()
    progress: Progress = lambda done, total: None
    call_seconds: float = 60.0
    address: str = ""
    only: frozenset[str] = frozenset()


DEFAULT = TransferOptions()


class _Slice(NamedTuple):
    """Up to 1 MiB of a chunk: where it can be read, and whether it is the chunk's end."""

    sha256: bytes
    path: str
    offset: int
    size: int
    last: bool


async def upload_tree(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    tree: str | Path | PackedTree,
    options: TransferOptions = DEFAULT,
) -> common_pb2.ManifestRef:
    """Store a tree on the server; what it returns is durable there.

    A directory is packed as code (see `pack_tree` for other trees). After an error, the same call
    again sends only what the server has not got yet. Raises TreeRefused, TreeChanged, and the
    HatobaError that the server's status stands for.
    """
    packed = tree if isinstance(tree, PackedTree) else await asyncio.to_thread(pack_tree, tree)
    with _typed_errors(options):
        missing = await _missing(stub, list(packed.sources), options)
        await _send(stub, {sha: packed.sources[sha] for sha in missing}, options)
        request = artifact_pb2.CreateManifestRequest(manifest=packed.manifest)
        reply = await stub.CreateManifest(
            request, timeout=options.call_seconds, metadata=options.metadata
        )
    return reply.ref


async def fetch_manifest(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    digest: str,
    options: TransferOptions = DEFAULT,
) -> artifact_pb2.Manifest:
    """A manifest by digest, checked against it. Raises NotFound, DigestMismatch, HatobaError."""
    with _typed_errors(options):
        manifest = await stub.GetManifest(
            artifact_pb2.GetManifestRequest(digest=digest),
            timeout=options.call_seconds,
            metadata=options.metadata,
        )
    found = digest_of(canonical_bytes(manifest))
    if found != digest:
        raise DigestMismatch(f"the server sent manifest {found} instead of {digest}")
    return manifest


async def download_tree(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    digest: str,
    target: str | Path,
    options: TransferOptions = DEFAULT,
) -> common_pb2.ManifestRef:
    """Fetch a tree into `target`, which must be absent or an empty directory.

    The target appears when all of it is there and checked; after an error nothing is left behind.
    Raises NotFound, BadManifest, DigestMismatch, UnpackFailed, HatobaError.
    """
    manifest = await fetch_manifest(stub, digest, options)
    if options.only:
        manifest = await asyncio.to_thread(_part, manifest, options.only)
    await download_files(stub, manifest, target, options)
    return ref_of(manifest)


async def download_files(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    manifest: artifact_pb2.Manifest,
    target: str | Path,
    options: TransferOptions = DEFAULT,
) -> None:
    """Fetch what a manifest at hand names, as `download_tree` does; it need not be a stored one."""
    unpacking = await asyncio.to_thread(Unpacking, manifest, target)
    try:
        await _uninterrupted(unpacking.begin)
        await _receive(stub, unpacking, options)
        await _uninterrupted(unpacking.finish)
    finally:
        await _uninterrupted(unpacking.discard)


def _part(whole: artifact_pb2.Manifest, paths: frozenset[str]) -> artifact_pb2.Manifest:
    """The tree with nothing but the files at these paths."""
    return artifact_pb2.Manifest(entries=[one for one in whole.entries if one.path in paths])


async def _missing(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    digests: Sequence[bytes],
    options: TransferOptions,
) -> list[bytes]:
    missing: list[bytes] = []
    for batch in _batches(digests, FIND_BATCH):
        reply = await stub.FindMissingChunks(
            artifact_pb2.FindMissingChunksRequest(sha256=batch),
            timeout=options.call_seconds,
            metadata=options.metadata,
        )
        missing.extend(reply.sha256)
    return missing


async def _send(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    chunks: dict[bytes, ChunkSource],
    options: TransferOptions,
) -> None:
    if not chunks:
        return
    total = sum(source.size for source in chunks.values())
    done = 0
    options.progress(done, total)
    async with (
        open_stream(stub.UploadChunks(metadata=options.metadata)) as call,
        aclosing(_read(chunks)) as visits,
    ):
        try:
            async for pieces in visits:
                for piece in pieces:
                    await call.write(piece)
                done += sum(len(piece.data) for piece in pieces)
                options.progress(done, total)
            await call.done_writing()
            await call
        except asyncio.InvalidStateError:
            # The server ended the call early; its status says why.
            raise await _blamed(call, chunks, options) from None
        except grpc.aio.AioRpcError:
            raise await _blamed(call, chunks, options) from None


async def _read(
    chunks: dict[bytes, ChunkSource],
) -> AsyncGenerator[list[artifact_pb2.UploadChunksRequest], None]:
    """The pieces of the chunks, about 1 MiB for each visit to a thread."""
    for visit in _visits(_slices(chunks)):
        yield await asyncio.to_thread(_read_slices, visit)


def _slices(chunks: dict[bytes, ChunkSource]) -> Iterator[_Slice]:
    for sha256, (path, start, size) in chunks.items():
        for offset in range(0, size, PIECE_BYTES):
            length = min(PIECE_BYTES, size - offset)
            yield _Slice(sha256, path, start + offset, length, offset + length == size)


def _visits(slices: Iterable[_Slice]) -> Iterator[list[_Slice]]:
    visit: list[_Slice] = []
    size = 0
    for piece in slices:
        if visit and (size + piece.size > PIECE_BYTES or len(visit) == VISIT_PIECES):
            yield visit
            visit, size = [], 0
        visit.append(piece)
        size += piece.size
    if visit:
        yield visit


def _read_slices(slices: Iterable[_Slice]) -> list[artifact_pb2.UploadChunksRequest]:
    return [
        artifact_pb2.UploadChunksRequest(
            sha256=piece.sha256, data=_read_slice(piece), last=piece.last
        )
        for piece in slices
    ]


def _read_slice(piece: _Slice) -> bytes:
    try:
        fd = os.open(piece.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise TreeChanged(piece.path) from None
    try:
        data = os.pread(fd, piece.size, piece.offset)
    finally:
        os.close(fd)
    if len(data) != piece.size:
        raise TreeChanged(piece.path)
    return data


async def _blamed(
    call: _Upload, chunks: dict[bytes, ChunkSource], options: TransferOptions
) -> HatobaError:
    """Why an upload failed; a digest that does not fit means that a file was written to."""
    try:
        await call
    except grpc.aio.AioRpcError as failure:
        error = from_rpc(failure, options.address)
    else:
        return ServerError("the server ended the upload before all of it was sent")
    if error.reason == "DIGEST_MISMATCH":
        found = error.details.metadata.get("sha256", "")
        source = next((chunks[sha] for sha in chunks if sha.hex() == found), None)
        return TreeChanged(source.path) if source else error
    return error


async def _receive(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    unpacking: Unpacking,
    options: TransferOptions,
) -> None:
    total = sum(chunk.size for chunk in unpacking.wanted)
    done = 0
    options.progress(done, total)
    with _typed_errors(options):
        async with aclosing(_pieces(stub, unpacking.wanted, options)) as visits:
            async for pieces in visits:
                await _uninterrupted(unpacking.write, pieces)
                done += sum(len(piece.data) for piece in pieces)
                options.progress(done, total)


async def _pieces(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    wanted: Sequence[artifact_pb2.Chunk],
    options: TransferOptions,
) -> AsyncGenerator[list[Piece], None]:
    """What the server sends, about 1 MiB at a time, with positions counted over all of `wanted`."""
    first = 0
    for batch in _batches(wanted, DOWNLOAD_BATCH):
        request = artifact_pb2.DownloadChunksRequest(sha256=[chunk.sha256 for chunk in batch])
        gathered: list[Piece] = []
        size = 0
        call = stub.DownloadChunks(request, metadata=options.metadata)
        async with open_stream(call):
            async for reply in call:
                gathered.append(Piece(first + reply.position, reply.data, reply.last))
                size += len(reply.data)
                if size >= PIECE_BYTES or len(gathered) == VISIT_PIECES:
                    yield gathered
                    gathered, size = [], 0
        yield gathered
        first += len(batch)


@contextmanager
def _typed_errors(options: TransferOptions) -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as failure:
        raise from_rpc(failure, options.address) from None


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


async def _uninterrupted(work: Callable[..., T], *arguments: object) -> T:
    """Do blocking work on a thread; a cancellation waits until the thread has come back."""
    running = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return running.result()
