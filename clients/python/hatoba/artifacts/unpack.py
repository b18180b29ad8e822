"""Writes a tree into a fresh directory, and nowhere else.

Every directory is reached through descriptors, without following links; links come last; all of it
happens beside the target under another name, which becomes the target's at the end.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hatoba.artifacts.errors import BadManifest, DigestMismatch, UnpackFailed
from hatoba.artifacts.manifest import (
    CHUNK_BYTES,
    DIRECT_BYTES,
    DIRECTORY,
    FILE,
    MAX_TOTAL_BYTES,
    SYMLINK,
    validate_manifest,
)
from hatoba.v1 import artifact_pb2

_OPEN_DIRECTORIES = 32
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOT_MODE = 0o755


class Piece(NamedTuple):
    """Bytes of the chunk at `position` in `Unpacking.wanted`, in order; `last` ends the chunk."""

    position: int
    data: bytes
    last: bool


class _Place(NamedTuple):
    """Where a chunk belongs: a file and an offset in it."""

    path: str
    offset: int


class Unpacking:
    """A tree on its way into `target`, which must be absent or an empty directory. Blocks.

    Call `begin`, `write` with all pieces of the chunks `wanted` (small ones first), fill what
    `externals` names, then `finish`; or `discard`, which leaves nothing behind. One thread at a
    time.
    """

    def __init__(
        self,
        manifest: artifact_pb2.Manifest,
        target: str | Path,
        *,
        max_total_bytes: int = MAX_TOTAL_BYTES,
    ) -> None:
        problems = validate_manifest(manifest, max_total_bytes=max_total_bytes)
        if problems:
            raise BadManifest(problems)
        self._manifest = manifest
        self._target = os.path.abspath(target)
        self._partial = f"{self._target}.partial-{secrets.token_hex(8)}"
        self._places = _places(manifest)
        self.wanted: list[artifact_pb2.Chunk] = _distinct(manifest)
        self.externals = [one for one in manifest.entries if one.HasField("external")]
        self._directories: _Directories | None = None
        self._chunk = _Chunk(0, hashlib.sha256(), 0)

    def begin(self) -> None:
        """Make every directory and every file, still empty. Raises UnpackFailed."""
        with self._failures(self._target):
            if os.path.isdir(self._target) and os.listdir(self._target):
                raise UnpackFailed(
                    self._target, "is there and not empty", remedy="choose another directory"
                )
            os.makedirs(os.path.dirname(self._target), exist_ok=True)
            os.mkdir(self._partial, 0o700)
            self._directories = _Directories(os.open(self._partial, _DIRECTORY))
        for entry in self._manifest.entries:
            with self._failures(entry.path):
                self._make(entry)

    def write(self, pieces: Sequence[Piece]) -> None:
        """Put pieces where they belong. Raises DigestMismatch and UnpackFailed."""
        for piece in pieces:
            self._check(piece)
            self._put(piece)
            self._chunk.sha.update(piece.data)
            self._chunk = self._chunk._replace(size=self._chunk.size + len(piece.data))
            if piece.last:
                self._end_chunk()

    def finish(self) -> None:
        """Make links, set modes, give the tree its name. Raises DigestMismatch and UnpackFailed."""
        if self._chunk.position != len(self.wanted):
            missing = len(self.wanted) - self._chunk.position
            raise DigestMismatch(f"{missing} chunks did not come")
        for entry in self._manifest.entries:
            with self._failures(entry.path):
                self._settle(entry)
        # Children before parents: a directory may lose the right to be entered.
        for entry in reversed(self._manifest.entries):
            if entry.type == DIRECTORY:
                with self._failures(entry.path):
                    os.fchmod(self._tree.fd(entry.path), entry.mode)
        with self._failures(self._target):
            os.fchmod(self._tree.fd(""), _ROOT_MODE)
            os.rename(self._partial, self._target)
        self._tree.close()

    @property
    def position(self) -> int:
        """How many of the chunks `wanted` are written whole."""
        return self._chunk.position

    def rewind(self) -> None:
        """Forget what came of the chunk that is not whole: it will come again from its start."""
        self._chunk = _Chunk(self._chunk.position, hashlib.sha256(), 0)

    def open_external(self, entry: artifact_pb2.ManifestEntry) -> int:
        """A descriptor of the file of an entry that stays in a bucket; the caller closes it.

        Raises UnpackFailed.
        """
        directory, name = os.path.split(entry.path)
        with self._failures(entry.path):
            return os.open(name, _WRITE, dir_fd=self._tree.fd(directory))

    def discard(self) -> None:
        """Take away what was written, unless it is finished."""
        if self._directories is not None:
            self._directories.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    @property
    def _tree(self) -> _Directories:
        if self._directories is None:
            raise RuntimeError("`begin` comes first")
        return self._directories

    def _make(self, entry: artifact_pb2.ManifestEntry) -> None:
        directory, name = os.path.split(entry.path)
        if entry.type == DIRECTORY:
            self._tree.make(entry.path)
            return
        self._tree.make(directory)
        if entry.type == FILE:
            os.close(os.open(name, _CREATE, 0o600, dir_fd=self._tree.fd(directory)))

    def _settle(self, entry: artifact_pb2.ManifestEntry) -> None:
        directory, name = os.path.split(entry.path)
        if entry.type == SYMLINK:
            os.symlink(entry.target, name, dir_fd=self._tree.fd(directory))
        elif entry.type == FILE:
            with self._opened(entry.path) as fd:
                os.fchmod(fd, entry.mode)

    def _check(self, piece: Piece) -> None:
        chunk = self._chunk
        if piece.position != chunk.position or chunk.position >= len(self.wanted):
            raise DigestMismatch(f"chunk {piece.position} came instead of {chunk.position}")
        if chunk.size + len(piece.data) > self.wanted[chunk.position].size:
            raise DigestMismatch(f"chunk {self._digest()} is longer than its manifest says")

    def _put(self, piece: Piece) -> None:
        for place in self._places[self.wanted[piece.position].sha256]:
            with self._failures(place.path), self._opened(place.path) as fd:
                _write_all(fd, piece.data, place.offset + self._chunk.size)

    def _end_chunk(self) -> None:
        wanted = self.wanted[self._chunk.position]
        if self._chunk.size != wanted.size or self._chunk.sha.digest() != wanted.sha256:
            raise DigestMismatch(f"what came for chunk {self._digest()} is something else")
        self._chunk = _Chunk(self._chunk.position + 1, hashlib.sha256(), 0)

    def _digest(self) -> str:
        return self.wanted[self._chunk.position].sha256.hex()

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        directory, name = os.path.split(path)
        fd = os.open(name, _WRITE, dir_fd=self._tree.fd(directory))
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _failures(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnpackFailed(path, f"cannot be written: {error.strerror}") from error


class _Chunk(NamedTuple):
    """The chunk that is coming: its position, the hash and the size of what has come."""

    position: int
    sha: hashlib._Hash
    size: int


class _Directories:
    """Descriptors of directories below a root, opened part by part; the last few stay open."""

    def __init__(self, root_fd: int) -> None:
        self._root = root_fd
        self._open: OrderedDict[str, int] = OrderedDict()
        self._made = {""}

    def fd(self, path: str) -> int:
        """The directory at `path`; valid until the next call."""
        if not path:
            return self._root
        found = self._open.get(path)
        if found is None:
            parent, _, name = path.rpartition("/")
            found = os.open(name, _DIRECTORY, dir_fd=self.fd(parent))
            self._open[path] = found
        self._open.move_to_end(path)
        while len(self._open) > _OPEN_DIRECTORIES:
            os.close(self._open.popitem(last=False)[1])
        return found

    def make(self, path: str) -> None:
        """Make a directory and those above it, each once."""
        if path in self._made:
            return
        parent, _, name = path.rpartition("/")
        self.make(parent)
        os.mkdir(name, 0o755, dir_fd=self.fd(parent))
        self._made.add(path)

    def close(self) -> None:
        """Close every descriptor, once."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


def _places(manifest: artifact_pb2.Manifest) -> dict[bytes, list[_Place]]:
    places: dict[bytes, list[_Place]] = {}
    for entry in manifest.entries:
        for number, chunk in enumerate(entry.chunks):
            place = _Place(entry.path, number * CHUNK_BYTES)
            places.setdefault(chunk.sha256, []).append(place)
    return places


def _distinct(manifest: artifact_pb2.Manifest) -> list[artifact_pb2.Chunk]:
    """Each chunk once; those that are worth a request of their own at the end."""
    chunks = {chunk.sha256: chunk for entry in manifest.entries for chunk in entry.chunks}
    return sorted(chunks.values(), key=lambda chunk: chunk.size >= DIRECT_BYTES)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
