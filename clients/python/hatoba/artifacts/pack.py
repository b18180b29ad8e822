"""Turns what was found in a directory into a manifest, and keeps where each chunk can be read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from hatoba.artifacts.errors import TreeChanged, TreeRefused
from hatoba.artifacts.manifest import (
    CHUNK_BYTES,
    FILE,
    MIB,
    PIECE_BYTES,
    ref_of,
)
from hatoba.artifacts.scan import Found, Scan, Selection, no_collections, scan_tree
from hatoba.artifacts.scan_cache import Content, ScanCache
from hatoba.v1 import artifact_pb2, common_pb2

# NONBLOCK: a pipe that took a file's place must not hold us up.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HASHERS = max(1, min(4, os.cpu_count() or 1))
_SMALL = 1 * MIB
_BATCH_FILES = 512
_BATCH_BYTES = 8 * MIB
_BATCHES = 2 * _HASHERS

Hashed = Callable[[int], None]


class ChunkSource(NamedTuple):
    """Where a chunk can be read: file, offset and size in bytes."""

    path: str
    offset: int
    size: int


class PackedTree:
    """A manifest, its reference, and where each of its chunks lies."""

    def __init__(
        self,
        manifest: artifact_pb2.Manifest,
        ref: common_pb2.ManifestRef,
        sources: dict[bytes, ChunkSource] | None = None,
        warnings: list[str] | None = None,
    ) -> None:
        self.ref = ref
        self.warnings = warnings or []
        self._manifest = manifest
        self._sources = sources if sources is not None else {}

    @property
    def manifest(self) -> artifact_pb2.Manifest:
        """The manifest."""
        self.load()
        return self._manifest

    @property
    def sources(self) -> dict[bytes, ChunkSource]:
        """Where each chunk can be read, by its digest."""
        self.load()
        return self._sources

    def load(self) -> None:
        """Have the manifest at hand; what is known from an earlier time is read now. Blocks.

        Raises TreeRefused and TreeChanged; `ref` may be another one afterwards.
        """

    def distrust(self) -> None:
        """Forget what is remembered of the tree: it was not what it seemed to be. Blocks."""


class _ScannedTree(PackedTree):
    """A directory's tree. One that did not change since it was packed is packed when asked for."""

    def __init__(self, scan: Scan, ref: common_pb2.ManifestRef, cache: ScanCache | None) -> None:
        super().__init__(artifact_pb2.Manifest(), ref, warnings=scan.warnings)
        self._scan = scan
        self._cache = cache
        self._loaded = False

    def load(self) -> None:
        if not self._loaded:
            self.pack(lambda size: None)

    def distrust(self) -> None:
        if self._cache is not None:
            self._cache.forget(self._scan.root)

    def pack(self, hashed: Hashed) -> None:
        """Hash the files, as far as they are not known, into the manifest."""
        with no_collections():
            known = self._cache.contents(self._scan) if self._cache else {}
            contents = _Hashing(self._scan, known, hashed).run()
            for found in self._scan.entries:
                self._add(found, contents.get(found.path, []))
            self.ref = ref_of(self._manifest)
            if self._cache is not None:
                self._cache.remember(self._scan, self.ref, contents)
        self._loaded = True

    def _add(self, found: Found, content: Content) -> None:
        entry = self._manifest.entries.add(
            path=found.path, type=found.type, mode=found.mode, target=found.target
        )
        size = 0
        for sha256, length in content:
            entry.chunks.add(sha256=sha256, size=length)
            if sha256 not in self._sources:
                self._sources[sha256] = ChunkSource(found.source, size, length)
            size += length
        entry.size = size


def pack_tree(
    tree: str | Path | Scan,
    selection: Selection = Selection.CODE,
    *,
    hashed: Hashed = lambda size: None,
    cache: ScanCache | None = None,
) -> PackedTree:
    """Hash a directory's files into a manifest. Blocks; holds a few MiB of content at most.

    `hashed` is told the size of each chunk, on the same thread. With a `cache`, files that did not
    change since they were last packed are not read. Raises TreeRefused and TreeChanged.
    """
    scan = tree if isinstance(tree, Scan) else scan_tree(tree, selection)
    with no_collections():
        known = cache.ref(scan) if cache is not None else None
    packed = _ScannedTree(scan, known or common_pb2.ManifestRef(), cache)
    if known is None:
        packed.pack(hashed)
    return packed


class _Hashing:
    """Reads files on a few threads: small ones many at a time, big ones a few chunks at a time."""

    def __init__(self, scan: Scan, known: Mapping[str, Content], hashed: Hashed) -> None:
        self._scan = scan
        self._contents: dict[str, Content] = dict(known)
        self._hashed = hashed
        self._running: deque[Future[list[tuple[str, Content]]]] = deque()

    def run(self) -> dict[str, Content]:
        """The chunks of every file, by path."""
        with ThreadPoolExecutor(_HASHERS, thread_name_prefix="hash") as pool:
            try:
                self._all(pool)
            finally:
                for running in self._running:
                    running.cancel()
        return self._contents

    def _all(self, pool: ThreadPoolExecutor) -> None:
        batch: list[Found] = []
        size = 0
        for found in self._scan.entries:
            if found.type != FILE or found.path in self._contents:
                continue
            if found.size > _SMALL:
                self._keep([(found.path, _large(pool, found))])
                continue
            batch.append(found)
            size += found.size
            if size >= _BATCH_BYTES or len(batch) == _BATCH_FILES:
                self._running.append(pool.submit(_small, batch))
                batch, size = [], 0
                self._drain(_BATCHES)
        self._running.append(pool.submit(_small, batch))
        self._drain(0)

    def _drain(self, left: int) -> None:
        while len(self._running) > left:
            self._keep(self._running.popleft().result())

    def _keep(self, contents: list[tuple[str, Content]]) -> None:
        for path, content in contents:
            self._contents[path] = content
            for _, size in content:
                self._hashed(size)


def _small(batch: list[Found]) -> list[tuple[str, Content]]:
    return [(found.path, _whole(found)) for found in batch]


def _whole(found: Found) -> Content:
    """The file's chunks; what is appended after it was opened is left out."""
    fd, left = _open(found)
    content: Content = []
    try:
        while left > 0:
            sha256, size = _hash_range(fd, len(content) * CHUNK_BYTES, min(left, CHUNK_BYTES))
            if size:
                content.append((sha256, size))
            left = left - size if size == CHUNK_BYTES else 0
    except OSError as error:
        raise TreeRefused(found.path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    return content


def _large(pool: ThreadPoolExecutor, found: Found) -> Content:
    """As _whole, with all threads at once."""
    fd, size = _open(found)
    content: Content = []
    try:
        ranges = [(at, min(CHUNK_BYTES, size - at)) for at in range(0, size, CHUNK_BYTES)]
        for (_, wanted), chunk in zip(
            ranges, pool.map(lambda part: _hash_range(fd, *part), ranges), strict=True
        ):
            if chunk[1]:
                content.append(chunk)
            if chunk[1] < wanted:
                raise TreeChanged(found.path)
    except OSError as error:
        raise TreeRefused(found.path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)
    return content


def _open(found: Found) -> tuple[int, int]:
    """The open file and its size."""
    try:
        fd = os.open(found.source, _READ)
    except FileNotFoundError:
        raise TreeChanged(found.path) from None
    except OSError as error:
        raise TreeRefused(found.path, f"cannot be read: {error.strerror}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise TreeChanged(found.path)
    return fd, status.st_size


def _hash_range(fd: int, offset: int, wanted: int) -> tuple[bytes, int]:
    """Digest and size of so many bytes from `offset`, or of fewer where the file ends."""
    data = os.pread(fd, min(PIECE_BYTES, wanted), offset)
    if len(data) == wanted:
        return hashlib.sha256(data).digest(), wanted
    sha = hashlib.sha256(data)
    size = len(data)
    while data and size < wanted:
        data = os.pread(fd, min(PIECE_BYTES, wanted - size), offset + size)
        sha.update(data)
        size += len(data)
    return sha.digest(), size
