"""Content-addressed storage on a directory: chunks that come in pieces, and manifests over them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import structlog

from hatoba.artifacts.errors import Problem
from hatoba.artifacts.manifest import (
    MAX_TOTAL_BYTES,
    PIECE_BYTES,
    canonical_bytes,
    digest_of,
    ref_of,
    validate_manifest,
)
from hatoba.v1 import artifact_pb2, common_pb2
from hatoba_scheduler.errors import (
    FailedPrecondition,
    FieldViolation,
    HatobaError,
    InvalidArgument,
    NotFound,
    Reason,
    Resource,
)
from hatoba_scheduler.store.blob_files import (
    RESERVE_BYTES,
    BlobFiles,
    Incoming,
    Named,
    Piece,
    Read,
    no_chunk,
    open_new,
    read_chunks,
    write_all,
)
from hatoba_scheduler.store.disk import disk_errors
from hatoba_scheduler.store.errors import StorageFailed, StorageFull

__all__ = ["ChunkStore", "Piece", "Read", "StorageFailed", "StorageFull", "Upload"]

_THREADS = 4
_WAITING_PIECES = 256
_NAMED_MISSING = 10
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_log = structlog.get_logger("hatoba.blobs")

T = TypeVar("T")


class ChunkStore:
    """The chunks and manifests below one directory, which only one process may use.

    Disk work is done on a few threads of its own. Every method raises StorageFull or StorageFailed
    when the disk refuses.
    """

    def __init__(self, files: BlobFiles, threads: ThreadPoolExecutor, max_total: int) -> None:
        self._files = files
        self._threads = threads
        self._max_total = max_total

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        root: Path,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        max_tree_bytes: int = MAX_TOTAL_BYTES,
    ) -> AsyncIterator[Self]:
        """The store below `root`, made when it is not there.

        `reserve_bytes` of the disk are left free; a manifest of more than `max_tree_bytes` is
        refused.
        """
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="blobs")
        store = cls(BlobFiles(root, reserve_bytes), threads, max_tree_bytes)
        try:
            await store.on_thread(store._files.prepare)
            yield store
        finally:
            threads.shutdown(wait=False)

    async def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Those of the chunks that are not stored, each once, in the order given."""
        return await self.on_thread(self._missing, list(dict.fromkeys(digests)))

    def upload(self) -> Upload:
        """A place for the chunks of one stream; use it with `async with`."""
        return Upload(self, Incoming(self._files))

    async def read(self, digests: Sequence[bytes]) -> AsyncGenerator[list[Read], None]:
        """The pieces of chunks in order, about 1 MiB at a time. Raises NotFound before any."""
        missing = await self.missing(digests)
        if missing:
            raise no_chunk(missing[0])
        visits = read_chunks(self._files, digests)
        while (visit := await self.on_thread(next, visits, None)) is not None:
            yield visit

    async def put_manifest(self, manifest: artifact_pb2.Manifest) -> common_pb2.ManifestRef:
        """Store a manifest durably. Storing it again is the same digest.

        Raises InvalidArgument for one that breaks a rule (fields are named from `manifest.` on),
        FailedPrecondition when chunks are missing.
        """
        return await self.on_thread(self._put_manifest, manifest)

    async def manifest(self, digest: str) -> artifact_pb2.Manifest:
        """A stored manifest by its digest. Raises InvalidArgument and NotFound."""
        return await self.on_thread(self._manifest, digest)

    async def ref(self, digest: str) -> common_pb2.ManifestRef:
        """The true sizes of a stored manifest. Raises InvalidArgument and NotFound."""
        return ref_of(await self.manifest(digest))

    async def on_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Do blocking work; a cancellation is delivered once the thread has come back."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        cancelled = False
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
        return running.result()

    def _missing(self, digests: Sequence[bytes]) -> list[bytes]:
        files = self._files
        return [sha for sha in digests if files.size(files.chunk_path(sha)) is None]

    def _put_manifest(self, manifest: artifact_pb2.Manifest) -> common_pb2.ManifestRef:
        problems = validate_manifest(manifest, max_total_bytes=self._max_total)
        if problems:
            raise InvalidArgument.of(map(_violation, problems))
        self._check_chunks(manifest)
        ref = ref_of(manifest)
        path = self._files.manifest_path(ref.digest.partition(":")[2])
        if self._files.size(path) is None:
            self._write_manifest(path, canonical_bytes(manifest))
        return ref

    def _check_chunks(self, manifest: artifact_pb2.Manifest) -> None:
        stored = _Stored(self._files)
        for index, entry in enumerate(manifest.entries):
            for number, chunk in enumerate(entry.chunks):
                size = stored.size(chunk.sha256)
                if size is not None and size != chunk.size:
                    raise InvalidArgument.field(
                        f"manifest.entries[{index}].chunks[{number}].size",
                        f"must be the stored chunk's size, {size:,}",
                        value=chunk.size,
                        rule="chunk.size",
                    )
        if stored.missing:
            raise _chunks_missing(stored.missing)

    def _write_manifest(self, path: Path, canonical: bytes) -> None:
        self._files.check_room(len(canonical))
        temporary = self._files.temporary()
        try:
            fd = open_new(temporary)
            with disk_errors("the manifest is not kept"), contextlib.ExitStack() as stack:
                stack.callback(os.close, fd)
                write_all(fd, canonical)
            self._files.publish([Named(temporary, path)])
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _manifest(self, digest: str) -> artifact_pb2.Manifest:
        matched = _DIGEST.fullmatch(digest)
        if matched is None:
            raise InvalidArgument.field(
                "digest", "must be `sha256:` and 64 lower-case hex digits", value=digest
            )
        path = self._files.manifest_path(matched[1])
        if self._files.size(path) is None:
            resource = Resource("manifest", digest)
            raise NotFound(f"manifest {digest} is not stored", resource=resource)
        with disk_errors(f"cannot read manifest {digest}"):
            raw = path.read_bytes()
        if digest_of(raw) != digest:
            raise StorageFailed(f"manifest {digest} is damaged on the server's disk")
        return artifact_pb2.Manifest.FromString(raw)


class Upload:
    """The chunks that one stream brings; holds at most 2 MiB of them in memory.

    Leaving the block keeps what was verified, also after an error, and drops what was not finished.
    """

    def __init__(self, store: ChunkStore, incoming: Incoming) -> None:
        self._store = store
        self._incoming = incoming
        self._waiting: list[Piece] = []
        self._waiting_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._store.on_thread(self._leave)
        except HatobaError as failure:
            _log.warning("chunks of a broken upload are not kept", error=failure.message)

    async def add(self, piece: Piece) -> None:
        """Take the next piece. Raises InvalidArgument for a wrong digest, and drops that chunk."""
        self._waiting.append(piece)
        self._waiting_bytes += len(piece.data)
        if self._waiting_bytes >= PIECE_BYTES or len(self._waiting) == _WAITING_PIECES:
            await self._take()

    async def commit(self) -> None:
        """Return once every finished chunk is durable. Raises as `add` does."""
        await self._take()
        await self._store.on_thread(self._incoming.settle)

    async def _take(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        await self._store.on_thread(self._incoming.take, waiting)

    def _leave(self) -> None:
        try:
            self._incoming.take(self._waiting)
        finally:
            self._incoming.drop()
            self._incoming.settle()


class _Stored:
    """Sizes of stored chunks, each looked up once."""

    def __init__(self, files: BlobFiles) -> None:
        self._files = files
        self._sizes: dict[bytes, int | None] = {}

    def size(self, sha256: bytes) -> int | None:
        if sha256 not in self._sizes:
            self._sizes[sha256] = self._files.size(self._files.chunk_path(sha256))
        return self._sizes[sha256]

    @property
    def missing(self) -> list[bytes]:
        return [sha for sha, size in self._sizes.items() if size is None]


def _violation(problem: Problem) -> FieldViolation:
    return FieldViolation(f"manifest.{problem.field}", problem.rule, "manifest", problem.value)


def _chunks_missing(missing: Sequence[bytes]) -> FailedPrecondition:
    named = [sha.hex() for sha in missing[:_NAMED_MISSING]]
    more = f" and {len(missing) - len(named)} more" if len(missing) > len(named) else ""
    return FailedPrecondition(
        f"{len(missing)} chunks of the manifest are not stored: {', '.join(named)}{more}; "
        "upload what FindMissingChunks names, then try again",
        reason=Reason.CHUNKS_MISSING,
        metadata={"count": str(len(missing)), "first": named[0]},
    )
