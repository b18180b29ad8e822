"""Models on a device's disk: whole trees by digest, of which only changed chunks are brought.

A chunk that a tree here has already is copied from there, once its bytes are what they are called;
the others come by way of the blob store, where what broke off is gone on with. A tree has its name
only when all of it is on the disk itself. Its files have no write bits, and are mounted read-only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import structlog
from google.protobuf.message import DecodeError

from hatoba.artifacts.errors import BadManifest, DigestMismatch, UnpackFailed
from hatoba.artifacts.manifest import (
    CHUNK_BYTES,
    FILE,
    SYMLINK,
    canonical_bytes,
    digest_of,
)
from hatoba.artifacts.unpack import Piece, Unpacking
from hatoba.v1 import artifact_pb2
from hatoba_worker.agent import elf
from hatoba_worker.agent.blobs import BlobStore, Full, Source, Unusable, Wrong, room
from hatoba_worker.agent.disk import replace, sync_file_system

log = structlog.get_logger(__name__)

_READ_ONLY = 0o555
_RUNS = 0o111
PROGRAMS_MOST = 20_000
"""A tree with more than so many is not looked at: what it is made for shows when it is tried."""
_MANIFEST = ".manifest"
_PARTIAL = ".partial-"


class Plan(NamedTuple):
    """What a tree costs: bytes that have to come, and bytes that it takes on the disk."""

    to_bring: int
    on_disk: int


class _Place(NamedTuple):
    """Where bytes lie: a file, an offset and a length."""

    path: str
    offset: int
    size: int


class DeviceTrees:
    """Trees below a directory of its own."""

    def __init__(self, root: Path, blobs: BlobStore) -> None:
        self._root = root
        self._blobs = blobs
        self._lock = asyncio.Lock()

    def prepare(self) -> None:
        """Make what is needed, and clear away what is not whole; blocks."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._root.iterdir():
            if _PARTIAL in path.name or path.suffix == ".new":
                _removed(path)

    def path(self, digest: str) -> Path:
        """Where a tree is, or will be. Raises ValueError for what is no digest."""
        return self._root / self._blobs.path(digest).name

    def has(self, digest: str) -> bool:
        """Whether a tree is here, whole; blocks."""
        return self.path(digest).is_dir() and self._manifest_path(digest).exists()

    def plan(self, manifest: artifact_pb2.Manifest) -> Plan:
        """What it would cost to have this tree; blocks."""
        here = self._index()
        chunks = {one.sha256: one.size for entry in manifest.entries for one in entry.chunks}
        missing = {
            sha: size
            for sha, size in chunks.items()
            if sha not in here and not self._blobs.has(_digest(sha))
        }
        total = sum(entry.size for entry in manifest.entries if entry.type == FILE)
        return Plan(sum(missing.values()), total)

    async def bring(self, digest: str, manifest: artifact_pb2.Manifest, source: Source) -> Path:
        """Have a tree here. Raises Gone, Cut, Wrong, Full, OSError; what came is kept, and a call
        after any of them goes on from there.
        """
        path = self.path(digest)
        async with self._lock:
            if not await asyncio.to_thread(self.has, digest):
                await asyncio.to_thread(self._require_sound, digest, manifest)
                await self._bring_chunks(manifest, source)
                await asyncio.to_thread(self._build, digest, manifest)
        return path

    def _require_sound(self, digest: str, manifest: artifact_pb2.Manifest) -> None:
        if digest_of(canonical_bytes(manifest)) != digest:
            raise Wrong(f"what comes as manifest {digest} is something else")
        if any(entry.HasField("external") for entry in manifest.entries):
            raise Wrong(f"{digest} has files that stay in a bucket, which a device cannot reach")
        needed = sum(self.plan(manifest))
        if needed > (free := room(self._root)):
            raise Full(needed, free)

    async def _bring_chunks(self, manifest: artifact_pb2.Manifest, source: Source) -> None:
        here = await asyncio.to_thread(self._index)
        chunks = {one.sha256: one.size for entry in manifest.entries for one in entry.chunks}
        for sha, size in chunks.items():
            known = here.get(sha)
            if known is None or not await asyncio.to_thread(_is_sound, known, sha):
                await self._blobs.fetch(_digest(sha), size, source)

    def _build(self, digest: str, manifest: artifact_pb2.Manifest) -> None:
        """Put the tree together from what is here; blocks."""
        here = self._index()
        unpacking = self._unpacking(digest, manifest)
        try:
            unpacking.begin()
            for position, chunk in enumerate(unpacking.wanted):
                data = self._chunk(chunk, here)
                unpacking.write([Piece(position, data, last=True)])
            unpacking.finish()
        except (UnpackFailed, DigestMismatch) as error:
            unpacking.discard()
            raise OSError(str(error)) from error
        _locked(self.path(digest))
        self._kept(digest, manifest)
        for chunk in unpacking.wanted:
            with contextlib.suppress(FileNotFoundError):
                self._blobs.path(_digest(chunk.sha256)).unlink()

    def _unpacking(self, digest: str, manifest: artifact_pb2.Manifest) -> Unpacking:
        _removed(self.path(digest))
        try:
            return Unpacking(manifest, self.path(digest))
        except BadManifest as error:
            raise Wrong(f"{digest} is no tree that can be written: {error}") from error

    def _chunk(self, chunk: artifact_pb2.Chunk, here: dict[bytes, _Place]) -> bytes:
        blob = self._blobs.path(_digest(chunk.sha256))
        if blob.exists():
            return blob.read_bytes()
        return _bytes_at(here[chunk.sha256])

    def _kept(self, digest: str, manifest: artifact_pb2.Manifest) -> None:
        """All of it is on the disk; from now on it counts as here."""
        sync_file_system(self._root)
        replace(self._manifest_path(digest), canonical_bytes(manifest))

    def require_for(self, machine: str, digest: str) -> None:
        """Raise Unusable where programs of a tree are made for machines other than this one alone;
        their first bytes are read. Blocks. Raises OSError.
        """
        root = self.path(digest)
        manifest = artifact_pb2.Manifest.FromString(self._manifest_path(digest).read_bytes())
        names = [one.path for one in manifest.entries if one.type == FILE and is_program(one)]
        if len(names) > PROGRAMS_MOST:
            return
        made = {name: elf.of_file(root / name) for name in names}
        if (foreign := elf.first_foreign(made, machine)) is not None:
            text = f"{foreign} of {digest} is made for {made[foreign]}, this device is {machine}"
            raise Unusable(text)

    # -- what is here ---------------------------------------------------------------------------

    def _manifest_path(self, digest: str) -> Path:
        return self.path(digest).with_name(f"{self.path(digest).name}{_MANIFEST}")

    def _stored(self) -> dict[str, artifact_pb2.Manifest]:
        """Manifests of trees by name; one that cannot be read stands for no tree."""
        found = {}
        for path in self._root.glob(f"*{_MANIFEST}"):
            name = path.name.removesuffix(_MANIFEST)
            data = path.read_bytes()
            if digest_of(data) == f"sha256:{name}" and (self._root / name).is_dir():
                found[name] = artifact_pb2.Manifest.FromString(data)
        return found

    def _index(self) -> dict[bytes, _Place]:
        """Where chunks lie in trees that are here."""
        found: dict[bytes, _Place] = {}
        for name, manifest in self._stored().items():
            for entry in manifest.entries:
                for number, chunk in enumerate(entry.chunks):
                    path = f"{self._root}/{name}/{entry.path}"
                    found[chunk.sha256] = _Place(path, number * CHUNK_BYTES, chunk.size)
        return found

    def check(self, digest: str) -> bool:
        """Whether a tree is what it is called, read again from the disk; one that is not is
        removed. Blocks.
        """
        good = False
        with contextlib.suppress(OSError, ValueError, DecodeError):
            data = self._manifest_path(digest).read_bytes()
            manifest = artifact_pb2.Manifest.FromString(data)
            good = digest_of(data) == digest and _is_tree(self.path(digest), manifest)
        if not good:
            log.warning("tree.spoiled", digest=digest)
            self._manifest_path(digest).unlink(missing_ok=True)
            _removed(self.path(digest))
        return good

    def collect(self, keep: Iterable[str]) -> None:
        """Remove trees that are not to be kept, but for what is being put together; blocks."""
        names = {self.path(digest).name for digest in keep}
        for path in list(self._root.iterdir()):
            if _PARTIAL not in path.name and path.name.removesuffix(_MANIFEST) not in names:
                _removed(path)


def is_program(entry: artifact_pb2.ManifestEntry) -> bool:
    """Whether a file looks as if it were run or loaded here: by its name or its right to be. A
    program for another machine that is mere data, such as firmware, does not.
    """
    return elf.is_library(entry.path) or bool(entry.mode & _RUNS)


def _digest(sha: bytes) -> str:
    return f"sha256:{sha.hex()}"


def _bytes_at(place: _Place) -> bytes:
    handle = os.open(place.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.pread(handle, place.size, place.offset)
    finally:
        os.close(handle)


def _is_sound(place: _Place, sha: bytes) -> bool:
    try:
        return hashlib.sha256(_bytes_at(place)).digest() == sha
    except OSError:
        return False


def _is_tree(root: Path, manifest: artifact_pb2.Manifest) -> bool:
    for entry in manifest.entries:
        path = root / entry.path
        if entry.type == SYMLINK:
            if os.readlink(path) != entry.target:
                return False
        elif entry.type == FILE:
            if path.lstat().st_size != entry.size or not _has_chunks(path, entry):
                return False
        elif not path.is_dir():
            return False
    return True


def _has_chunks(path: Path, entry: artifact_pb2.ManifestEntry) -> bool:
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return all(
            hashlib.sha256(file.read(chunk.size)).digest() == chunk.sha256 for chunk in entry.chunks
        )


def _locked(root: Path) -> None:
    """Take the right to write from every file."""
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                os.chmod(path, os.lstat(path).st_mode & _READ_ONLY)


def _removed(path: Path) -> None:
    """Remove a tree or a file; a tree first loses its name."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f"{path.name}{_PARTIAL}gone")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
