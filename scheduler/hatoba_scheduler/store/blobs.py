"""Content-addressed storage: chunks that come in pieces, and manifests over them.

What is stored is told by the files or objects themselves. The index adds leases, so that garbage
collection never deletes what somebody is about to name, and marks. Two rules keep every stored
manifest complete: a chunk is leased before its presence is looked at, and nothing is deleted while
anybody is between the two; a manifest is deleted before the chunks that it alone names.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import structlog

from hatoba.artifacts.errors import BadManifest, Problem
from hatoba.artifacts.manifest import (
    MAX_TOTAL_BYTES,
    PIECE_BYTES,
    Rules,
    canonical_bytes,
    entries_of,
    pieces_of,
)
from hatoba.v1 import artifact_pb2, common_pb2
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.errors import (
    FailedPrecondition,
    FieldViolation,
    HatobaError,
    InvalidArgument,
    Reason,
    ResourceExhausted,
)
from hatoba_scheduler.store.blob_index import BlobIndex, BlobKind, Judged
from hatoba_scheduler.store.blob_place import (
    BlobPlace,
    Direct,
    Incoming,
    Piece,
    Read,
    Stored,
    file_pieces,
    not_stored,
    open_new,
    read_chunks,
    write_all,
)
from hatoba_scheduler.store.disk import disk_errors
from hatoba_scheduler.store.errors import StorageFailed

__all__ = ["ChunkStore", "ManifestUpload", "Piece", "Read", "Stored", "Upload"]

LEASE_SECONDS = 3600.0
_THREADS = 4
_WAITING_PIECES = 4096
_NAMED_MISSING = 10
_BATCH = 2_000
_LISTED = 1_000
_MAX_MANIFEST = 1024 * 1024 * 1024
_KNOWN_REFS = 1_024
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_log = structlog.get_logger("hatoba.blobs")

T = TypeVar("T")


class StoreLimits(NamedTuple):
    """The most bytes that a manifest may name, and how long a lease lasts at least."""

    max_tree_bytes: int = MAX_TOTAL_BYTES
    lease_seconds: float = LEASE_SECONDS


class ChunkStore:
    """The chunks and manifests of one place, which only one process may use.

    Blocking work is done on a few threads of its own. Every method raises StorageFull or
    StorageFailed when disk or object store refuse.
    """

    def __init__(
        self,
        place: BlobPlace,
        index: BlobIndex,
        now: Callable[[], Micros],
        threads: ThreadPoolExecutor,
        limits: StoreLimits,
    ) -> None:
        self.place = place
        self._index = index
        self._now = now
        self._threads = threads
        self._max_total = limits.max_tree_bytes
        self.lease_seconds = limits.lease_seconds
        self._doors = _Doors()
        self.tasks = asyncio.TaskGroup()
        """What uploads have under way: it goes on when the call that began it is gone."""
        self._uploads: set[Upload] = set()
        self._leaving = 0
        self._none_leaves = asyncio.Event()
        self._none_leaves.set()
        self._refs: OrderedDict[str, common_pb2.ManifestRef] = OrderedDict()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        place: BlobPlace,
        index: BlobIndex,
        now: Callable[[], Micros],
        limits: StoreLimits | None = None,
    ) -> AsyncIterator[Self]:
        """The store of a place, made when it is not there. `now` tells the time of leases."""
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="blobs")
        store = cls(place, index, now, threads, limits or StoreLimits())
        await store.tasks.__aenter__()
        try:
            await store.on_thread(place.prepare)
            yield store
        finally:
            # Not told of the caller's error: it would wrap it into an exception group.
            await store.tasks.__aexit__(None, None, None)
            threads.shutdown(wait=False)

    # -- chunks ---------------------------------------------------------------------------------

    async def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Those of the chunks that are not stored, each once, in order; the others are leased.

        What a stream has brought so far counts: it may have broken off without our knowing yet.
        """
        await self._none_leaves.wait()
        wanted = list(dict.fromkeys(digests))
        for upload in list(self._uploads):
            await upload.settle(wanted)
        present = await self._leased(BlobKind.CHUNK, wanted)
        return [sha for sha in wanted if sha not in present]

    def upload(self) -> Upload:
        """A place for the chunks of one stream; use it with `async with`."""
        return Upload(self, Incoming(self.place), self._uploads)

    async def read(self, digests: Sequence[bytes]) -> AsyncGenerator[list[Read], None]:
        """The pieces of chunks in order, about 1 MiB at a time. Raises NotFound before any."""
        sizes = await self.on_thread(self.place.sizes, BlobKind.CHUNK, digests)
        for sha256, size in zip(digests, sizes, strict=True):
            if size is None:
                raise not_stored(BlobKind.CHUNK, sha256)
        visits = read_chunks(self.place, digests)
        while (visit := await self.on_thread(next, visits, None)) is not None:
            yield visit

    async def keep_chunks(self, verified: dict[bytes, str]) -> None:
        """Give checked chunks their places, leased before they have them."""
        async with self._doors.touching():
            await self._index.lease(BlobKind.CHUNK, list(verified), self._lease_end())
            await self.on_thread(self.place.publish, BlobKind.CHUNK, verified)

    # -- manifests --------------------------------------------------------------------------------

    async def put_manifest(self, manifest: artifact_pb2.Manifest) -> common_pb2.ManifestRef:
        """Store a manifest durably and lease it. Storing it again is the same digest.

        Raises InvalidArgument for one that breaks a rule (fields are named from `manifest.` on),
        FailedPrecondition when chunks are missing.
        """
        canonical = await self.on_thread(canonical_bytes, manifest)
        async with self.manifest_upload() as upload:
            for piece in pieces_of(canonical):
                await upload.add(piece)
            return await upload.commit()

    def manifest_upload(self) -> ManifestUpload:
        """A place for a manifest that comes in pieces; use it with `async with`."""
        return ManifestUpload(self, self.place)

    async def manifest(self, digest: str, most: int = 0) -> artifact_pb2.Manifest:
        """A stored manifest by its digest. Raises InvalidArgument and NotFound.

        With `most`, ResourceExhausted for one of more bytes.
        """
        sha256 = _sha256(digest)
        (size,) = await self.on_thread(self.place.sizes, BlobKind.MANIFEST, [sha256])
        if most and (size or 0) > most:
            raise ResourceExhausted(
                f"manifest {digest} has {size:,} bytes, more than one message holds; "
                "call DownloadManifest",
                reason=Reason.MESSAGE_TOO_LARGE,
            )
        return await self.on_thread(self._manifest, sha256)

    async def manifest_pieces(self, digest: str) -> AsyncGenerator[bytes, None]:
        """Its serialisation, at most 1 MiB at a time. Raises InvalidArgument, NotFound."""
        pieces = self.place.read(BlobKind.MANIFEST, _sha256(digest))
        while (piece := await self.on_thread(next, pieces, None)) is not None:
            yield piece

    async def entries(
        self, digest: str, count: int = 1_000
    ) -> AsyncGenerator[list[artifact_pb2.ManifestEntry], None]:
        """A manifest's entries, so many at a time, without holding all of it.

        Raises NotFound, and StorageFailed for one that is damaged, which may show at the end only.
        """
        walk = self._walk(_sha256(digest))
        while some := await self.on_thread(_some, walk, count):
            yield some

    async def ref(self, digest: str) -> common_pb2.ManifestRef:
        """The true sizes of a stored manifest, now leased. Raises InvalidArgument, NotFound."""
        sha256 = _sha256(digest)
        if not await self._leased(BlobKind.MANIFEST, [sha256]):
            raise not_stored(BlobKind.MANIFEST, sha256)
        known = self._refs.get(digest)
        if known is None:
            known = await self.on_thread(self._ref, sha256)
            self._remember(known)
        return known

    async def stored_manifests(self, digests: Iterable[bytes]) -> list[bytes]:
        """Those of the manifests that are stored, each now leased."""
        wanted = list(dict.fromkeys(digests))
        present = await self._leased(BlobKind.MANIFEST, wanted)
        return [sha for sha in wanted if sha in present]

    async def keep_manifest(self, temporary: str) -> common_pb2.ManifestRef:
        """Check a manifest's file, chunks included, and give it its place."""
        sha256 = await self.on_thread(_file_digest, temporary)
        digest = f"sha256:{sha256.hex()}"
        if await self._leased(BlobKind.MANIFEST, [sha256]):
            # A stored manifest is complete.
            return await self.ref(digest)
        walk = _Walk(temporary, self._max_total)
        while batch := await self.on_thread(walk.next_chunks):
            async with self._doors.touching():
                await self._index.lease(BlobKind.CHUNK, list(batch), self._lease_end())
                walk.compare(batch, await self.on_thread(self._sizes, list(batch)))
        walk.refuse()
        async with self._doors.touching():
            await self._index.lease(BlobKind.MANIFEST, [sha256], self._lease_end())
            await self.on_thread(self.place.publish, BlobKind.MANIFEST, {sha256: temporary})
        made = common_pb2.ManifestRef(
            digest=digest, total_bytes=walk.rules.total_bytes, files=walk.rules.files
        )
        self._remember(made)
        return made

    # -- straight to an object store ------------------------------------------------------------

    async def confirm(self, direct: Direct, chunks: Sequence[artifact_pb2.Chunk]) -> list[bytes]:
        """Take in chunks that clients put themselves; those that did not arrive.

        Raises InvalidArgument for one that is something else; the others are kept.
        """
        async with self._doors.touching():
            digests = [chunk.sha256 for chunk in chunks]
            await self._index.lease(BlobKind.CHUNK, digests, self._lease_end())
            return await self.on_thread(direct.confirm, chunks)

    # -- garbage --------------------------------------------------------------------------------

    async def stored(self, kind: BlobKind) -> AsyncGenerator[list[Stored], None]:
        """All that is stored, some at a time; those with the same first byte follow one another."""
        listing = self.place.listed(kind)
        while some := await self.on_thread(_some, listing, _LISTED):
            yield some

    async def leased_manifests(self) -> set[bytes]:
        """Manifests that have a lease."""
        return await self._index.leased(BlobKind.MANIFEST, self._now())

    async def judge(
        self, kind: BlobKind, unnamed: Sequence[bytes], run: Micros, *, only_say: bool
    ) -> Judged:
        """Mark unnamed blobs, or delete those that an earlier run marked and nobody leased since.

        `run` is when this run began; `only_say` changes nothing.
        """
        async with self._doors.deleting():
            judged = await self._index.judge(kind, unnamed, self._now(), run, only_say=only_say)
            if judged.condemned and not only_say:
                for sha256 in judged.condemned:
                    self._refs.pop(f"sha256:{sha256.hex()}", None)
                await self.on_thread(self.place.delete, kind, judged.condemned)
                await self._index.forget(kind, judged.condemned)
        return judged

    async def tidy(self, marked_before: Micros) -> None:
        """Drop what the index remembers for nothing, and what was sent and never finished."""
        await self._index.purge(self._now(), marked_before)
        await self.on_thread(self.place.sweep)

    # -- helpers ----------------------------------------------------------------------------------

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
            running.exception()
            raise asyncio.CancelledError
        return running.result()

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """A stream broke off, and what it brought is about to be kept."""
        self._leaving += 1
        self._none_leaves.clear()
        try:
            yield
        finally:
            self._leaving -= 1
            if not self._leaving:
                self._none_leaves.set()

    def _lease_end(self) -> Micros:
        """When a lease that is taken now ends: rounded up, by a sixth of it at most."""
        step = max(1, round(self.lease_seconds * 1e6 / 6))
        return (self._now() // step + 7) * step

    async def _leased(self, kind: BlobKind, digests: list[bytes]) -> set[bytes]:
        """Those of them that are stored; each of these has a lease."""
        async with self._doors.touching():
            sizes = await self.on_thread(self.place.sizes, kind, digests)
            present = [one for one, size in zip(digests, sizes, strict=True) if size is not None]
            await self._index.lease(kind, present, self._lease_end())
        return set(present)

    def _sizes(self, digests: list[bytes]) -> dict[bytes, int | None]:
        return dict(zip(digests, self.place.sizes(BlobKind.CHUNK, digests), strict=True))

    def _manifest(self, sha256: bytes) -> artifact_pb2.Manifest:
        raw = b"".join(self.place.read(BlobKind.MANIFEST, sha256))
        if hashlib.sha256(raw).digest() != sha256:
            raise _damaged(sha256)
        return artifact_pb2.Manifest.FromString(raw)

    def _walk(self, sha256: bytes) -> Iterator[artifact_pb2.ManifestEntry]:
        sha = hashlib.sha256()
        try:
            yield from entries_of(_hashed(self.place.read(BlobKind.MANIFEST, sha256), sha))
        except BadManifest:
            raise _damaged(sha256) from None
        if sha.digest() != sha256:
            raise _damaged(sha256)

    def _ref(self, sha256: bytes) -> common_pb2.ManifestRef:
        rules = Rules(self._max_total)
        for entry in self._walk(sha256):
            rules.take(entry)
        digest = f"sha256:{sha256.hex()}"
        return common_pb2.ManifestRef(
            digest=digest, total_bytes=rules.total_bytes, files=rules.files
        )

    def _remember(self, ref: common_pb2.ManifestRef) -> None:
        self._refs[ref.digest] = ref
        if len(self._refs) > _KNOWN_REFS:
            self._refs.popitem(last=False)


class Upload:
    """The chunks that one stream brings; holds a few MiB of them in memory at most.

    While pieces are written and hashed on a thread the next ones come, and while one group of
    chunks goes to the disk so does the next. Leaving the block keeps what was verified, also after
    an error, and drops what was not finished.
    """

    def __init__(self, store: ChunkStore, incoming: Incoming, open_ones: set[Upload]) -> None:
        self._store = store
        self._incoming = incoming
        self._open_ones = open_ones
        self._taking: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._error: HatobaError | None = None
        self._waiting: list[Piece] = []
        self._waiting_bytes = 0

    async def __aenter__(self) -> Self:
        self._open_ones.add(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await _surely_ended(self._start(self._leave(), "leave"))

    async def add(self, piece: Piece) -> None:
        """Take the next piece. Raises InvalidArgument for a wrong digest, and drops that chunk."""
        self._waiting.append(piece)
        self._waiting_bytes += len(piece.data)
        if self._waiting_bytes >= PIECE_BYTES or len(self._waiting) == _WAITING_PIECES:
            await self._begin_taking()

    async def commit(self) -> None:
        """Return once every finished chunk is durable. Raises as `add` does."""
        await self._begin_taking()
        await _ended(self._taking)
        await self._begin_keeping()
        await _ended(self._keeping)
        self._raise()

    async def settle(self, wanted: Collection[bytes]) -> None:
        """Make durable what was finished so far, when it has any of these chunks."""
        while _under_way(self._taking) or _under_way(self._keeping):
            await _ended(self._taking)
            await _ended(self._keeping)
        if self._incoming.verified & set(wanted):
            self._keep()
            await _ended(self._keeping)

    async def _begin_taking(self) -> None:
        await _ended(self._taking)
        self._raise()
        if self._incoming.due:
            await self._begin_keeping()
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._taking = self._start(self._take(waiting), "take")

    async def _begin_keeping(self) -> None:
        while _under_way(self._keeping):
            await _ended(self._keeping)
        self._keep()

    def _keep(self) -> None:
        """Begin to keep what was verified. No thread may be at it."""
        verified = self._incoming.detach()
        if verified:
            self._keeping = self._start(self._kept(verified), "keep")

    def _start(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Begin something that goes on when the call is gone."""
        return self._store.tasks.create_task(work, name=f"upload-{name}")

    async def _take(self, pieces: list[Piece]) -> None:
        with self._noting():
            await self._store.on_thread(self._incoming.take, pieces)

    async def _kept(self, verified: dict[bytes, str]) -> None:
        with self._noting():
            await self._store.keep_chunks(verified)

    async def _leave(self) -> None:
        """Keep what was finished, also when the stream broke off; drop the rest."""
        with self._store.leaving():
            self._open_ones.discard(self)
            await _ended(self._taking)
            if self._waiting and self._error is None:
                self._taking = self._start(self._take(self._waiting), "take")
                await _ended(self._taking)
            await self._begin_keeping()
            await _ended(self._keeping)
        await self._store.on_thread(self._incoming.discard)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Keep an error for those who wait: a task that raises would end the others."""
        try:
            yield
        except HatobaError as error:
            if self._error is not None:
                _log.warning("chunks of an upload are not kept", error=error.message)
            self._error = self._error or error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _under_way(task: asyncio.Task[None] | None) -> bool:
    return task is not None and not task.done()


async def _surely_ended(task: asyncio.Task[None]) -> None:
    """Return once the task is over; a cancellation is delivered then."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def _ended(task: asyncio.Task[None] | None) -> None:
    """Return once the task is over; whoever waits may be cancelled without it."""
    if task is not None and not task.done():
        await asyncio.wait([task])


class ManifestUpload:
    """A manifest that comes in pieces, kept in a file until it is whole."""

    def __init__(self, store: ChunkStore, place: BlobPlace) -> None:
        self._store = store
        self._spool = place.spool
        self._path = place.spool.temporary()
        self._fd = -1
        self._size = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._store.on_thread(self._drop)

    async def add(self, data: bytes) -> None:
        """Take the next piece. Raises StorageFull, StorageFailed; InvalidArgument over 1 GiB."""
        self._size += len(data)
        if self._size > _MAX_MANIFEST:
            rule = f"must add up to at most {_MAX_MANIFEST:,} bytes"
            raise InvalidArgument.field("data", rule, value=self._size)
        await self._store.on_thread(self._write, data)

    async def commit(self) -> common_pb2.ManifestRef:
        """Check and store what came. Raises as ChunkStore.put_manifest."""
        await self._store.on_thread(self._write, b"")
        return await self._store.keep_manifest(self._path)

    def _write(self, data: bytes) -> None:
        self._spool.check_room(len(data))
        if self._fd < 0:
            self._fd = open_new(self._path)
        with disk_errors("the manifest is not kept"):
            write_all(self._fd, data)

    def _drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class _Place(NamedTuple):
    """Where a manifest names a chunk, and the size it says."""

    entry: int
    number: int
    size: int


class _Walk:
    """One pass over a manifest's file: its rules, and its chunks in batches."""

    def __init__(self, path: str, max_total: int) -> None:
        self.rules = Rules(max_total)
        self._entries = enumerate(entries_of(file_pieces(path)))
        self._sizes: list[FieldViolation] = []
        self._missing: dict[bytes, None] = {}

    def next_chunks(self) -> dict[bytes, _Place]:
        """Some chunks of the next entries, each once; none at the end. Raises InvalidArgument."""
        batch: dict[bytes, _Place] = {}
        try:
            for index, entry in self._entries:
                self.rules.take(entry)
                for number, chunk in enumerate(entry.chunks):
                    place = _Place(index, number, chunk.size)
                    known = batch.setdefault(chunk.sha256, place)
                    if known.size != chunk.size:
                        self._wrong_size(place, known.size)
                if len(batch) >= _BATCH:
                    return batch
        except BadManifest as error:
            raise InvalidArgument.of(map(_violation, error.problems)) from None
        return batch

    def compare(self, batch: dict[bytes, _Place], sizes: dict[bytes, int | None]) -> None:
        """Note chunks that are not stored, or have another size."""
        for sha256, place in batch.items():
            size = sizes[sha256]
            if size is None:
                self._missing[sha256] = None
            elif size != place.size:
                self._wrong_size(place, size)

    def refuse(self) -> None:
        """Raise InvalidArgument or FailedPrecondition unless all is well; after the last batch."""
        self.rules.end()
        if self.rules.problems:
            raise InvalidArgument.of(map(_violation, self.rules.problems))
        if self._sizes:
            raise InvalidArgument.of(self._sizes)
        if self._missing:
            raise _chunks_missing(list(self._missing))

    def _wrong_size(self, place: _Place, size: int) -> None:
        if len(self._sizes) < _NAMED_MISSING:
            field = f"manifest.entries[{place.entry}].chunks[{place.number}].size"
            rule = f"must be the stored chunk's size, {size:,}"
            self._sizes.append(FieldViolation(field, rule, "chunk.size", str(place.size)))


class _Doors:
    """Many may touch blobs at once, or one may delete some."""

    def __init__(self) -> None:
        self._touching = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = asyncio.Event()
        self._open.set()
        self._one_deleter = asyncio.Lock()

    @asynccontextmanager
    async def touching(self) -> AsyncIterator[None]:
        """Between the lease of something and the look at it, or its coming."""
        while not self._open.is_set():
            await self._open.wait()
        self._touching += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._touching -= 1
            if not self._touching:
                self._idle.set()

    @asynccontextmanager
    async def deleting(self) -> AsyncIterator[None]:
        """Between the decision to delete something and its end."""
        async with self._one_deleter:
            self._open.clear()
            try:
                await self._idle.wait()
                yield
            finally:
                self._open.set()


def _some(items: Iterator[T], count: int) -> list[T]:
    return list(islice(items, count))


def _hashed(pieces: Iterable[bytes], sha: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        sha.update(piece)
        yield piece


def _file_digest(path: str) -> bytes:
    sha = hashlib.sha256()
    with disk_errors("the manifest is not kept"):
        for piece in file_pieces(path):
            sha.update(piece)
    return sha.digest()


def _sha256(digest: str) -> bytes:
    matched = _DIGEST.fullmatch(digest)
    if matched is None:
        raise InvalidArgument.field(
            "digest", "must be `sha256:` and 64 lower-case hex digits", value=digest
        )
    return bytes.fromhex(matched[1])


def _damaged(sha256: bytes) -> StorageFailed:
    return StorageFailed(f"manifest sha256:{sha256.hex()} is damaged where it is stored")


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
