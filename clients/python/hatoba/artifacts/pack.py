"""Turns what was found in a directory into a manifest, and keeps where each chunk can be read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hatoba.artifacts.errors import TreeChanged, TreeRefused
from hatoba.artifacts.manifest import (
    CHUNK_BYTES,
    FILE,
    MAX_MANIFEST_BYTES,
    PIECE_BYTES,
    canonical_bytes,
    digest_of,
)
from hatoba.artifacts.scan import Found, Scan, Selection, scan_tree
from hatoba.v1 import artifact_pb2, common_pb2

# NONBLOCK: a pipe that took a file's place must not hold us up.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ChunkSource(NamedTuple):
    """Where a chunk can be read: file, offset and size in bytes."""

    path: str
    offset: int
    size: int


@dataclass(slots=True)
class PackedTree:
    """A manifest, its reference, and where each of its chunks lies."""

    manifest: artifact_pb2.Manifest
    ref: common_pb2.ManifestRef
    sources: dict[bytes, ChunkSource] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def pack_tree(
    tree: str | Path | Scan,
    selection: Selection = Selection.CODE,
    *,
    hashed: Callable[[int], None] = lambda size: None,
) -> PackedTree:
    """Hash a directory's files into a manifest. Blocks; holds at most 1 MiB of content.

    `hashed` is told the size of each piece, on the same thread. Raises TreeRefused and TreeChanged.
    """
    scan = tree if isinstance(tree, Scan) else scan_tree(tree, selection)
    packed = PackedTree(artifact_pb2.Manifest(), common_pb2.ManifestRef(), warnings=scan.warnings)
    for found in scan.entries:
        entry = packed.manifest.entries.add(
            path=found.path, type=found.type, mode=found.mode, target=found.target
        )
        if found.type == FILE:
            _add_content(packed, entry, found, hashed)
    canonical = canonical_bytes(packed.manifest)
    if len(canonical) > MAX_MANIFEST_BYTES:
        why = f"has too many files ({len(scan.entries):,}) for one tree"
        raise TreeRefused(scan.root, why, remedy="name in .hatobaignore what is not needed")
    packed.ref.digest = digest_of(canonical)
    packed.ref.files = scan.files
    return packed


def _add_content(
    packed: PackedTree,
    entry: artifact_pb2.ManifestEntry,
    found: Found,
    hashed: Callable[[int], None],
) -> None:
    for chunk in _chunks(found, hashed):
        entry.chunks.append(chunk)
        packed.sources.setdefault(chunk.sha256, ChunkSource(found.source, entry.size, chunk.size))
        entry.size += chunk.size
    packed.ref.total_bytes += entry.size


def _chunks(found: Found, hashed: Callable[[int], None]) -> Iterator[artifact_pb2.Chunk]:
    """The file's chunks; what is appended after it was opened is left out."""
    fd = _open(found)
    try:
        left = os.fstat(fd).st_size
        while left > 0:
            digest, size = _hash_chunk(fd, min(left, CHUNK_BYTES), hashed)
            if size:
                yield artifact_pb2.Chunk(sha256=digest, size=size)
            left = left - size if size == CHUNK_BYTES else 0
    except OSError as error:
        raise TreeRefused(found.path, f"cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def _open(found: Found) -> int:
    try:
        fd = os.open(found.source, _READ)
    except FileNotFoundError:
        raise TreeChanged(found.path) from None
    except OSError as error:
        raise TreeRefused(found.path, f"cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise TreeChanged(found.path)
    return fd


def _hash_chunk(fd: int, wanted: int, hashed: Callable[[int], None]) -> tuple[bytes, int]:
    """Digest and size of the next `wanted` bytes, or of fewer where the file ends."""
    sha = hashlib.sha256()
    size = 0
    while size < wanted:
        data = os.read(fd, min(PIECE_BYTES, wanted - size))
        if not data:
            break
        sha.update(data)
        size += len(data)
        hashed(len(data))
    return sha.digest(), size
