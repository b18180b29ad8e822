"""Chunks and manifests as files of one directory. Everything here blocks.

    chunks/ab/HEX         a chunk, named by its SHA-256
    manifests/HEX         a serialised manifest, likewise
    tmp/                  what is being written; emptied at every start

A file gets its name when its content is on the disk, and counts as stored when its name is, too.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hatoba.artifacts.manifest import PIECE_BYTES
from hatoba_scheduler.store.blob_index import BlobKind
from hatoba_scheduler.store.blob_place import (
    RESERVE_BYTES,
    Direct,
    Spool,
    Stored,
    digest_in,
    not_stored,
    unlink_all,
)
from hatoba_scheduler.store.disk import disk_errors, sync_all
from hatoba_scheduler.store.errors import StorageFailed

_HEX_DIGITS = 64


class Named(NamedTuple):
    """A finished file and the name it is to get."""

    temporary: str
    path: str


class BlobFiles:
    """The directory; see BlobPlace. `reserve` bytes of the disk are left to others."""

    def __init__(self, root: Path, reserve: int = RESERVE_BYTES) -> None:
        self.root = root
        self.spool = Spool(root, reserve)
        self._chunks = f"{root}/chunks"
        self._manifests = f"{root}/manifests"
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        self._appearing: set[str] = set()
        self.direct: Direct | None = None

    def prepare(self) -> None:
        """Make what is not there yet and remove what an earlier process left unfinished."""
        with disk_errors(f"cannot prepare {self.root}"):
            self.spool.prepare()
            chunks, manifests = Path(self._chunks), Path(self._manifests)
            for directory in (manifests, *(chunks / f"{number:02x}" for number in range(256))):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._flatten()
            sync_all([chunks, manifests, self.root, self.root.parent], anchor=self.root)

    def path(self, kind: BlobKind, digest: bytes) -> str:
        """Where it is, or would be."""
        name = digest.hex()
        if kind is BlobKind.MANIFEST:
            return f"{self._manifests}/{name}"
        return f"{self._chunks}/{name[:2]}/{name}"

    def sizes(self, kind: BlobKind, digests: Sequence[bytes]) -> list[int | None]:
        """See BlobPlace."""
        paths = [self.path(kind, digest) for digest in digests]
        before = self._not_yet()
        with disk_errors("cannot look for what is stored"):
            found = [_size(path) for path in paths]
        # One that appears meanwhile is seen by the second look.
        hidden = before | self._not_yet()
        if not hidden:
            return found
        return [None if path in hidden else size for path, size in zip(paths, found, strict=True)]

    def publish(self, kind: BlobKind, files: Mapping[bytes, str]) -> None:
        """See BlobPlace."""
        try:
            with self._publishing:
                self._publish(kind, files)
        except BaseException:
            unlink_all(files.values())
            raise

    def _publish(self, kind: BlobKind, files: Mapping[bytes, str]) -> None:
        sizes = self.sizes(kind, list(files))
        known = [one for one, size in zip(files.items(), sizes, strict=True) if size is not None]
        unlink_all(temporary for _, temporary in known)
        new = [
            Named(temporary, self.path(kind, digest))
            for (digest, temporary), size in zip(files.items(), sizes, strict=True)
            if size is None
        ]
        self._appear({file.path for file in new})
        try:
            with disk_errors("what was sent is not kept"):
                self._name(new)
        except BaseException:
            self._disappear(new)
            raise
        with self._lock:
            self._appearing -= {file.path for file in new}

    def read(self, kind: BlobKind, digest: bytes) -> Iterator[bytes]:
        """See BlobPlace."""
        path = self.path(kind, digest)
        with disk_errors(f"cannot read {kind.name.lower()} {digest.hex()}"):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise not_stored(kind, digest) from None
            try:
                left = os.fstat(fd).st_size
                while left > 0:
                    data = os.read(fd, min(left, PIECE_BYTES))
                    if not data:
                        raise StorageFailed(f"{path} is damaged: {left:,} bytes are missing")
                    left -= len(data)
                    yield data
            finally:
                os.close(fd)

    def listed(self, kind: BlobKind) -> Iterator[Stored]:
        """See BlobPlace."""
        directories = [self._manifests]
        if kind is BlobKind.CHUNK:
            directories = [f"{self._chunks}/{number:02x}" for number in range(256)]
        with disk_errors(f"cannot list {self.root}"):
            for directory in directories:
                yield from self._in(directory)

    def _in(self, directory: str) -> Iterator[Stored]:
        with os.scandir(directory) as entries:
            found = sorted(entry.name for entry in entries)
        hidden = self._not_yet()
        for name in found:
            digest, path = digest_in(name), f"{directory}/{name}"
            size = None if digest is None or path in hidden else _size(path)
            if digest is not None and size is not None:
                yield Stored(digest, size)

    def delete(self, kind: BlobKind, digests: Sequence[bytes]) -> None:
        """See BlobPlace."""
        paths = [self.path(kind, digest) for digest in digests]
        with self._publishing, disk_errors("what is not needed is not all deleted"):
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            parents = {Path(path).parent for path in paths}
            sync_all([one for one in parents if one.exists()], anchor=self.root)

    def sweep(self) -> None:
        """Nothing: what is unfinished goes with its stream, and at the next start."""

    def _flatten(self) -> None:
        """Bring chunks of an earlier version, `chunks/ab/cd/HEX`, to where they are now, once."""
        done = self.root / "flat"
        if done.exists():
            return
        for first in Path(self._chunks).iterdir():
            emptied = [one for one in first.iterdir() if len(one.name) < _HEX_DIGITS]
            for second in emptied:
                for chunk in second.iterdir():
                    chunk.rename(first / chunk.name)
            sync_all([first, *emptied], anchor=self.root)
            for second in emptied:
                second.rmdir()
        done.mkdir()

    def _not_yet(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self._appearing)

    def _appear(self, paths: Collection[str]) -> None:
        with self._lock:
            self._appearing.update(paths)

    def _disappear(self, files: Sequence[Named]) -> None:
        """Take names away again; one that cannot be taken away still does not count as stored."""
        for file in files:
            with contextlib.suppress(OSError):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file.path)
                with self._lock:
                    self._appearing.discard(file.path)

    def _name(self, files: Sequence[Named]) -> None:
        sync_all([file.temporary for file in files], anchor=self.root)
        for file in files:
            os.rename(file.temporary, file.path)
        sync_all(sorted({os.path.dirname(file.path) for file in files}), anchor=self.root)


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None
