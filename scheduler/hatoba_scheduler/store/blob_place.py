"""Where chunks and manifests are kept: what a directory and an object store both do. It blocks.

What a stream brings is written to files first and gets its place once its digest was checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple, Protocol

from hatoba.artifacts.manifest import MIB, PIECE_BYTES
from hatoba.v1 import artifact_pb2
from hatoba_scheduler.errors import FieldViolation, InvalidArgument, NotFound, Reason, Resource
from hatoba_scheduler.store.blob_index import BlobKind
from hatoba_scheduler.store.disk import disk_errors
from hatoba_scheduler.store.errors import StorageFull

RESERVE_BYTES = 16 * MIB
# A stream's chunks get their places in groups of about so many, or so many bytes.
GROUP_CHUNKS = 4096
GROUP_BYTES = 64 * MIB
_GATHERED_PIECES = 4096
_HEX = re.compile("[0-9a-f]{64}")


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


class Stored(NamedTuple):
    """Something that is kept: its digest and its bytes."""

    digest: bytes
    size: int


class Spool:
    """Files that are being written. `reserve` bytes of the disk are left to others."""

    def __init__(self, root: Path, reserve: int = RESERVE_BYTES) -> None:
        self.root = root
        self._tmp = root / "tmp"
        self._reserve = reserve
        self._prefix = f"{self._tmp}/{secrets.token_hex(8)}-"
        self._numbers = itertools.count()

    def prepare(self) -> None:
        """Remove what an earlier process left unfinished. Raises OSError."""
        shutil.rmtree(self._tmp, ignore_errors=True)
        self._tmp.mkdir(mode=0o700, parents=True, exist_ok=True)

    def temporary(self) -> str:
        """A name for a new file that is not finished."""
        return f"{self._prefix}{next(self._numbers)}"

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


class Signed(NamedTuple):
    """Addresses that anybody may use until `expire_time`, in seconds since 1970."""

    urls: list[str]
    expire_time: float


class Direct(Protocol):
    """An object store that clients can go to themselves. Every method blocks."""

    def upload_urls(self, digests: Sequence[bytes]) -> Signed:
        """Where chunks may be put; they count once `confirm` accepted them."""
        ...

    def download_urls(self, digests: Sequence[bytes]) -> Signed:
        """Where chunks can be got."""
        ...

    def confirm(self, chunks: Sequence[artifact_pb2.Chunk]) -> list[bytes]:
        """Take in chunks that were put to their upload addresses; those that did not arrive.

        Raises InvalidArgument for one that is something else, which is deleted.
        """
        ...


class BlobPlace(Protocol):
    """Keeps chunks and manifests by their SHA-256. Any thread may call; every method blocks.

    Raises StorageFull, StorageFailed, and FailedPrecondition where an object store refuses us.
    """

    @property
    def spool(self) -> Spool:
        """Where unfinished files are."""
        ...

    @property
    def direct(self) -> Direct | None:
        """The same place, when clients can go to it themselves."""
        ...

    def prepare(self) -> None:
        """Make ready for use, once, before anything else."""
        ...

    def sizes(self, kind: BlobKind, digests: Sequence[bytes]) -> list[int | None]:
        """The size of each; None for one that is not stored, or not durably yet."""
        ...

    def publish(self, kind: BlobKind, files: Mapping[bytes, str]) -> None:
        """Keep finished files, by digest; durable when this returns, or none of them counts.

        The files are gone afterwards, also after an error.
        """
        ...

    def read(self, kind: BlobKind, digest: bytes) -> Iterator[bytes]:
        """Its bytes in pieces of at most 1 MiB. Raises NotFound."""
        ...

    def listed(self, kind: BlobKind) -> Iterator[Stored]:
        """All that are stored, those with the same first byte after one another."""
        ...

    def delete(self, kind: BlobKind, digests: Sequence[bytes]) -> None:
        """Delete those that are there; durable when this returns."""
        ...

    def sweep(self) -> None:
        """Delete what was sent and never finished, a day after it came."""
        ...


class Incoming:
    """The chunks that one stream brings. One thread at a time."""

    def __init__(self, place: BlobPlace) -> None:
        self._place = place
        self._spool = place.spool
        self._current: _Writing | None = None
        self._verified: dict[bytes, str] = {}
        self._verified_bytes = 0

    @property
    def verified(self) -> Set[bytes]:
        """Digests of what was checked and has no place yet."""
        return self._verified.keys()

    @property
    def due(self) -> bool:
        """Whether enough was checked to be given its place."""
        return len(self._verified) >= GROUP_CHUNKS or self._verified_bytes >= GROUP_BYTES

    def take(self, pieces: Iterable[Piece]) -> None:
        """Write pieces; a chunk that ends is checked. Raises InvalidArgument for a wrong digest."""
        pieces = list(pieces)
        self._spool.check_room(sum(len(piece.data) for piece in pieces))
        for piece in pieces:
            if self._current is None:
                self._current = _Writing(piece.sha256, self._name(piece.sha256))
            with disk_errors("what was sent is not kept"):
                self._current.write(piece.data)
            if piece.last:
                self._end(self._current)

    def detach(self) -> dict[bytes, str]:
        """What was checked and has no place yet, for somebody else to publish."""
        verified, self._verified, self._verified_bytes = self._verified, {}, 0
        return verified

    def discard(self) -> None:
        """Forget the chunk that was not finished, and all that has no place yet."""
        self._drop()
        unlink_all(self.detach().values())

    def _drop(self) -> None:
        if self._current is not None:
            self._current.discard()
            self._current = None

    def _name(self, sha256: bytes) -> str | None:
        """A file for the chunk; none when the stream brought it already."""
        return None if sha256 in self._verified else self._spool.temporary()

    def _end(self, current: _Writing) -> None:
        if current.sha.digest() != current.sha256:
            self._drop()
            raise _wrong_digest(current)
        self._current = None
        current.close()
        if current.temporary is not None:
            self._verified[current.sha256] = current.temporary
            self._verified_bytes += current.size


class _Writing:
    """A chunk that is coming in; one that the stream brought already is only hashed."""

    def __init__(self, sha256: bytes, temporary: str | None) -> None:
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
            with contextlib.suppress(OSError):
                os.unlink(self.temporary)


def unlink_all(paths: Iterable[str]) -> None:
    """Remove files that may be gone already."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def open_new(path: str) -> int:
    """A new file to write to. Raises StorageFull or StorageFailed."""
    with disk_errors("what was sent is not kept"):
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte. Raises OSError."""
    written = os.write(fd, data)
    if written == len(data):
        return
    view = memoryview(data)[written:]
    while view:
        view = view[os.write(fd, view) :]


def file_pieces(path: str) -> Iterator[bytes]:
    """A file's bytes, 1 MiB at a time. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while data := os.read(fd, PIECE_BYTES):
            yield data
    finally:
        os.close(fd)


def read_chunks(place: BlobPlace, digests: Sequence[bytes]) -> Iterator[list[Read]]:
    """The chunks' pieces of at most 1 MiB, about 1 MiB at a time. Raises NotFound."""
    gathered: list[Read] = []
    size = 0
    for position, sha256 in enumerate(digests):
        for data, last in _with_last(place.read(BlobKind.CHUNK, sha256)):
            gathered.append(Read(position, data, last))
            size += len(data)
            if size >= PIECE_BYTES or len(gathered) == _GATHERED_PIECES:
                yield gathered
                gathered, size = [], 0
    yield gathered


def _with_last(pieces: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    before = next(pieces, None)
    for piece in pieces:
        if before is not None:
            yield before, False
        before = piece
    if before is not None:
        yield before, True


def digest_in(name: str) -> bytes | None:
    """The digest that a file or object is named by; None: somebody else put it there."""
    return bytes.fromhex(name) if _HEX.fullmatch(name) else None


def not_stored(kind: BlobKind, digest: bytes) -> NotFound:
    """The error for something that is not stored."""
    what = kind.name.lower()
    name = digest.hex() if kind is BlobKind.CHUNK else f"sha256:{digest.hex()}"
    return NotFound(f"{what} {name} is not stored", resource=Resource(what, name))


def _wrong_digest(current: _Writing) -> InvalidArgument:
    return wrong_digest(current.sha256, current.sha.digest(), current.size)


def wrong_digest(named: bytes, found: bytes, size: int) -> InvalidArgument:
    """The error for bytes that are not those of the digest they were sent under."""
    wrong = FieldViolation(
        "sha256",
        f"must be the SHA-256 of the {size:,} bytes that were sent, {found.hex()}",
        "digest",
        named.hex(),
        "read the file again: it may have changed",
    )
    return InvalidArgument(
        f"sha256: {wrong.text()}",
        reason=Reason.DIGEST_MISMATCH,
        field_violations=[wrong],
        metadata={"sha256": named.hex()},
    )
