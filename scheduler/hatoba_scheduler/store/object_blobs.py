"""Chunks and manifests as objects of a bucket, through obstore. Everything here blocks.

    chunks/ab/HEX         a chunk, named by its SHA-256
    manifests/HEX         a serialised manifest, likewise
    incoming/HEX          what a client put itself and nobody has checked yet
    checking/RANDOM       the copy of it that is being checked: nobody else can write it

Credentials come from the server's environment alone. obstore bounds neither its calls nor its
memory: calls in flight are bounded here.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import obstore

from hatoba.artifacts.manifest import CHUNK_BYTES, PIECE_BYTES
from hatoba.v1 import artifact_pb2
from hatoba_scheduler.store.blob_index import BlobKind
from hatoba_scheduler.store.blob_place import (
    Direct,
    Signed,
    Spool,
    Stored,
    digest_in,
    not_stored,
    unlink_all,
    wrong_digest,
)
from hatoba_scheduler.store.buckets import Bucket

if TYPE_CHECKING:
    from obstore import ObjectMeta

IN_FLIGHT = 16
LARGE_IN_FLIGHT = 4
_LARGE = PIECE_BYTES
UNFINISHED_KEPT = dt.timedelta(days=1)

T = TypeVar("T")
R = TypeVar("R")


class BlobObjects:
    """A bucket, or what lies below a prefix of one; see BlobPlace. `spool` is a local directory."""

    def __init__(self, bucket: Bucket, root: Path, reserve: int) -> None:
        self.root = root
        self.spool = Spool(root, reserve)
        self._bucket = bucket
        self._store = bucket.store
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="objects")
        self._large = threading.Semaphore(LARGE_IN_FLIGHT)
        self.direct: Direct | None = self if bucket.signs else None

    def prepare(self) -> None:
        """Make ready for use. Raises FailedPrecondition when the bucket refuses us.

        One that does not answer is no reason not to begin: calls say so.
        """
        self.spool.prepare()
        self._bucket.probe()

    def key(self, kind: BlobKind, digest: bytes) -> str:
        """The name of its object."""
        name = digest.hex()
        return f"manifests/{name}" if kind is BlobKind.MANIFEST else f"chunks/{name[:2]}/{name}"

    def sizes(self, kind: BlobKind, digests: Sequence[bytes]) -> list[int | None]:
        """See BlobPlace."""
        return self._all(lambda digest: self._size(self.key(kind, digest)), digests)

    def publish(self, kind: BlobKind, files: Mapping[bytes, str]) -> None:
        """See BlobPlace."""
        try:
            self._all(lambda item: self._put(self.key(kind, item[0]), item[1]), files.items())
        finally:
            unlink_all(files.values())

    def read(self, kind: BlobKind, digest: bytes) -> Iterator[bytes]:
        """See BlobPlace."""
        with self._bucket.errors():
            try:
                found = obstore.get(self._store, self.key(kind, digest))
            except FileNotFoundError:
                raise not_stored(kind, digest) from None
            yield from _pieces(found.stream(min_chunk_size=PIECE_BYTES))

    def listed(self, kind: BlobKind) -> Iterator[Stored]:
        """See BlobPlace."""
        for meta in self._list("manifests/" if kind is BlobKind.MANIFEST else "chunks/"):
            digest = digest_in(meta["path"].rpartition("/")[2])
            if digest is not None:
                yield Stored(digest, meta["size"])

    def delete(self, kind: BlobKind, digests: Sequence[bytes]) -> None:
        """See BlobPlace."""
        self._delete([self.key(kind, digest) for digest in digests])

    def sweep(self) -> None:
        """See BlobPlace."""
        before = dt.datetime.now(dt.UTC) - UNFINISHED_KEPT
        for folder in ("incoming/", "checking/"):
            old = [one["path"] for one in self._list(folder) if one["last_modified"] < before]
            self._delete(old)

    # -- straight to the bucket and from it ---------------------------------------------------

    def upload_urls(self, digests: Sequence[bytes]) -> Signed:
        """See Direct."""
        return self._bucket.signed("PUT", [_incoming(digest) for digest in digests])

    def download_urls(self, digests: Sequence[bytes]) -> Signed:
        """See Direct."""
        keys = [self.key(BlobKind.CHUNK, digest) for digest in digests]
        return self._bucket.signed("GET", keys)

    def confirm(self, chunks: Sequence[artifact_pb2.Chunk]) -> list[bytes]:
        """See Direct."""
        arrived = self._all(lambda chunk: self._take_in(chunk.sha256, chunk.size), chunks)
        return [chunk.sha256 for chunk, came in zip(chunks, arrived, strict=True) if not came]

    def _take_in(self, sha256: bytes, size: int) -> bool:
        held = f"checking/{secrets.token_hex(16)}"
        with self._bucket.errors():
            try:
                obstore.copy(self._store, _incoming(sha256), held)
            except FileNotFoundError:
                return self._size(self.key(BlobKind.CHUNK, sha256)) is not None
            try:
                self._check(held, sha256, size)
                obstore.copy(self._store, held, self.key(BlobKind.CHUNK, sha256))
            finally:
                self._delete([held, _incoming(sha256)])
        return True

    def _check(self, held: str, sha256: bytes, size: int) -> None:
        sha, found = hashlib.sha256(), 0
        meta = obstore.head(self._store, held)
        if meta["size"] <= CHUNK_BYTES:
            for piece in obstore.get(self._store, held).stream(min_chunk_size=PIECE_BYTES):
                sha.update(piece)
                found += len(piece)
        if sha.digest() != sha256 or found != size:
            raise wrong_digest(sha256, sha.digest(), meta["size"])

    # -- calls ----------------------------------------------------------------------------------

    def _size(self, key: str) -> int | None:
        with self._bucket.errors():
            try:
                return obstore.head(self._store, key)["size"]
            except FileNotFoundError:
                return None

    def _put(self, key: str, path: str) -> None:
        large = Path(path).stat().st_size > _LARGE
        if large:
            self._large.acquire()
        try:
            with self._bucket.errors():
                obstore.put(self._store, key, Path(path), use_multipart=large and _is_tree(key))
        finally:
            if large:
                self._large.release()

    def _list(self, prefix: str) -> Iterator[ObjectMeta]:
        with self._bucket.errors():
            for page in obstore.list(self._store, prefix):
                yield from page

    def _delete(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        with self._bucket.errors(), suppress(FileNotFoundError):
            obstore.delete(self._store, keys)

    def _all(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Do it for all, a few at a time. Raises the first error once nothing runs any more."""
        running = [self._threads.submit(work, item) for item in items]
        try:
            return [one.result() for one in running]
        finally:
            for one in running:
                one.cancel()
            for one in running:
                one.exception() if not one.cancelled() else None


def _is_tree(key: str) -> bool:
    """Chunks are put whole: a part of an object is never read."""
    return key.startswith("manifests/")


def _incoming(sha256: bytes) -> str:
    return f"incoming/{sha256.hex()}"


def _pieces(parts: Iterable[Any]) -> Iterator[bytes]:
    """The same bytes in pieces of 1 MiB; the last one may be smaller."""
    held = bytearray()
    for part in parts:
        held += part
        while len(held) >= PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    if held:
        yield bytes(held)
