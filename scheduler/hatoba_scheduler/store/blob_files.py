"""Chunks and manifests as files of one directory. Everything here blocks.

    chunks/ab/cd/HEX      a chunk, named by its SHA-256
    manifests/HEX         a serialised manifest, likewise
    tmp/                  what is being written; emptied at every start

A file gets its name when its content is on the disk, and counts as stored when its name is, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hatoba.artifacts.manifest import MIB, PIECE_BYTES
from hatoba_scheduler.errors import FieldViolation, InvalidArgument, NotFound, Reason, Resource
from hatoba_scheduler.store.disk import disk_errors, parents_of, sync_all
from hatoba_scheduler.store.errors import StorageFailed, StorageFull

RESERVE_BYTES = 16 * MIB
# A stream's chunks are made durable in groups of at most so many, or so many bytes.
GROUP_CHUNKS = 256
GROUP_BYTES = 64 * MIB
_GATHERED_PIECES = 256


class Piece(NamedTuple):
    """A piece of the chunk with this digest; `last` ends the chunk."""

    sha256: bytes
    data: bytes
    last: bool


class Read(NamedTuple):
    """A piece of the chunk at `position` of a request; `last` ends the chunk."""

    position: int
    data: bytes
    last: bool


class Named(NamedTuple):
    """A finished file and the name it is to get."""

    temporary: Path
    path: Path


class BlobFiles:
    """The directory. `reserve` bytes of the disk are left to others, our database first."""

    def __init__(self, root: Path, reserve: int = RESERVE_BYTES) -> None:
        self.root = root
        self._chunks = root / "chunks"
        self._manifests = root / "manifests"
        self._tmp = root / "tmp"
        self._reserve = reserve
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        self._appearing: set[Path] = set()

    def prepare(self) -> None:
        """Make what is not there yet and remove what an earlier process left unfinished."""
        with disk_errors(f"cannot prepare {self.root}"):
            shutil.rmtree(self._tmp, ignore_errors=True)
            for directory in (self._tmp, self._manifests, *self._first_levels()):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_all([self._chunks, self._manifests, self.root, self.root.parent], anchor=self.root)

    def chunk_path(self, sha256: bytes) -> Path:
        """Where the chunk is, or would be."""
        name = sha256.hex()
        return self._chunks / name[:2] / name[2:4] / name

    def manifest_path(self, hex_digest: str) -> Path:
        """Where the manifest is, or would be."""
        return self._manifests / hex_digest

    def size(self, path: Path) -> int | None:
        """The stored file's size in bytes; None when it is not stored, or not durably yet."""
        with self._lock:
            if path in self._appearing:
                return None
        with disk_errors(f"cannot look for {path.name}"):
            return _size(path)

    def temporary(self) -> Path:
        """A name for a new file that is not finished."""
        return self._tmp / secrets.token_hex(16)

    def check_room(self, size: int) -> None:
        """Raise StorageFull when `size` more bytes would touch the reserve."""
        with disk_errors(f"cannot ask for the room in {self.root}"):
            status = os.statvfs(self.root)
        free = status.f_bavail * status.f_frsize
        if free < self._reserve + size:
            raise StorageFull(
                f"the server's disk is full: {free:,} bytes are free below {self.root}, "
                f"{self._reserve:,} of them are reserved",
                metadata={"free_bytes": str(free), "reserved_bytes": str(self._reserve)},
            )

    def publish(self, files: Iterable[Named]) -> None:
        """Make finished files durable under their names; they count as stored when this returns.

        Raises StorageFull or StorageFailed; then none of them counts that did not before.
        """
        with self._publishing:
            new = [file for file in files if self.size(file.path) is None]
            self._appear({file.path for file in new})
            try:
                with disk_errors("what was sent is not kept"):
                    self._name(new)
            except BaseException:
                self._disappear(new)
                raise
            with self._lock:
                self._appearing.difference_update(file.path for file in new)

    def _appear(self, paths: set[Path]) -> None:
        with self._lock:
            self._appearing |= paths

    def _disappear(self, files: Iterable[Named]) -> None:
        """Take names away again; one that cannot be taken away still does not count as stored."""
        for file in files:
            with contextlib.suppress(OSError):
                file.path.unlink(missing_ok=True)
                with self._lock:
                    self._appearing.discard(file.path)

    def _name(self, files: Sequence[Named]) -> None:
        sync_all([file.temporary for file in files], anchor=self.root)
        for file in files:
            file.path.parent.mkdir(mode=0o700, exist_ok=True)
            file.temporary.rename(file.path)
        sync_all(parents_of(file.path for file in files), anchor=self.root)

    def _first_levels(self) -> Iterator[Path]:
        return (self._chunks / f"{number:02x}" for number in range(256))


class Incoming:
    """The chunks that one stream brings. One thread at a time."""

    def __init__(self, files: BlobFiles) -> None:
        self._files = files
        self._current: _Writing | None = None
        self._verified: dict[bytes, Named] = {}
        self._verified_bytes = 0

    def take(self, pieces: Iterable[Piece]) -> None:
        """Write pieces; a chunk that ends is checked. Raises InvalidArgument for a wrong digest."""
        pieces = list(pieces)
        self._files.check_room(sum(len(piece.data) for piece in pieces))
        for piece in pieces:
            if self._current is None:
                self._current = self._begin(piece.sha256)
            with disk_errors("what was sent is not kept"):
                self._current.write(piece.data)
            if piece.last:
                self._end(self._current)

    def settle(self) -> None:
        """Make all that was verified durable. Raises StorageFull or StorageFailed."""
        verified, self._verified, self._verified_bytes = self._verified, {}, 0
        if not verified:
            return
        try:
            self._files.publish(verified.values())
        finally:
            for file in verified.values():
                with contextlib.suppress(OSError):
                    file.temporary.unlink(missing_ok=True)

    def drop(self) -> None:
        """Forget the chunk that was not finished."""
        if self._current is not None:
            self._current.discard()
            self._current = None

    def _begin(self, sha256: bytes) -> _Writing:
        known = sha256 in self._verified or self._files.size(self._files.chunk_path(sha256))
        return _Writing(sha256, None if known else self._files.temporary())

    def _end(self, current: _Writing) -> None:
        if current.sha.digest() != current.sha256:
            self.drop()
            raise _wrong_digest(current)
        self._current = None
        current.close()
        if current.temporary is None:
            return
        path = self._files.chunk_path(current.sha256)
        self._verified[current.sha256] = Named(current.temporary, path)
        self._verified_bytes += current.size
        if len(self._verified) >= GROUP_CHUNKS or self._verified_bytes >= GROUP_BYTES:
            self.settle()


class _Writing:
    """A chunk that is coming in; one that is known is only hashed."""

    def __init__(self, sha256: bytes, temporary: Path | None) -> None:
        self.sha256 = sha256
        self.temporary = temporary
        self.sha = hashlib.sha256()
        self.size = 0
        self._file = None if temporary is None else open_new(temporary)

    def write(self, data: bytes) -> None:
        self.sha.update(data)
        self.size += len(data)
        if self._file is not None:
            write_all(self._file, data)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def discard(self) -> None:
        self.close()
        if self.temporary is not None:
            self.temporary.unlink(missing_ok=True)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def open_new(path: Path) -> int:
    """A new file to write to. Raises StorageFull or StorageFailed."""
    with disk_errors("what was sent is not kept"):
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_chunks(files: BlobFiles, digests: Sequence[bytes]) -> Iterator[list[Read]]:
    """The chunks' pieces of at most 1 MiB, about 1 MiB at a time. Raises NotFound."""
    gathered: list[Read] = []
    size = 0
    for position, sha256 in enumerate(digests):
        for piece in _read_chunk(files, position, sha256):
            gathered.append(piece)
            size += len(piece.data)
            if size >= PIECE_BYTES or len(gathered) == _GATHERED_PIECES:
                yield gathered
                gathered, size = [], 0
    yield gathered


def _read_chunk(files: BlobFiles, position: int, sha256: bytes) -> Iterator[Read]:
    path = files.chunk_path(sha256)
    left = files.size(path)
    if left is None:
        raise no_chunk(sha256)
    with disk_errors(f"cannot read chunk {path.name}"), path.open("rb", buffering=0) as file:
        while left > 0:
            data = file.read(min(left, PIECE_BYTES))
            if not data:
                raise StorageFailed(f"chunk {path.name} is damaged: {left:,} bytes are missing")
            left -= len(data)
            yield Read(position, data, left == 0)


def no_chunk(sha256: bytes) -> NotFound:
    """The error for a chunk that is not stored."""
    name = sha256.hex()
    return NotFound(f"chunk {name} is not stored", resource=Resource("chunk", name))


def _wrong_digest(current: _Writing) -> InvalidArgument:
    named, found = current.sha256.hex(), current.sha.hexdigest()
    wrong = FieldViolation(
        "sha256",
        f"must be the SHA-256 of the {current.size:,} bytes that were sent, {found}",
        "digest",
        named,
        "read the file again: it may have changed",
    )
    return InvalidArgument(
        f"sha256: {wrong.text()}",
        reason=Reason.DIGEST_MISMATCH,
        field_violations=[wrong],
        metadata={"sha256": named},
    )
