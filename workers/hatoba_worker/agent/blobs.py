"""Content by digest on a device's disk, brought in piece by piece over a link that breaks.

A blob has its name only once it is whole, checked and on the disk itself. What is on the way is a
file of its own that is gone on with after any cut: the bytes that were brought are not brought
again. A source says nothing that is believed: the digest decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Protocol

import structlog

from hatoba_worker.agent.budget import Pay, unlimited
from hatoba_worker.agent.disk import free_bytes, replace, sync_directory, write_all

log = structlog.get_logger(__name__)

PIECE = 256 << 10
SYNC_EVERY = 8 << 20
"""Bytes after which what came is put on the disk, so that a power cut costs no more."""
READ_SECONDS = 60.0
"""Seconds without a byte after which a link counts as dead."""
TIMES_WRONG = 3
"""So often a source may give other bytes than the digest says before that is its last word."""
SPARE = 32 << 20
"""Bytes of a disk that are left alone, for the journal and for others."""
_CLAIM = ".needs"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Gone(Exception):
    """The source has none of it, or refuses it: trying again does not help. Says why."""


class Cut(Exception):
    """The link broke, or the source has trouble: later it may work. Says why."""


class Wrong(Exception):
    """What the source gives is not what the digest says, each time."""


class Unusable(Exception):
    """It is not what can be run here; says what it is and what was looked for."""


class NoEngine(Unusable):
    """It is an image, and nothing here runs containers."""


class NotTaken(Unusable):
    """The container engine does not take it; says what the engine says."""


class Full(Exception):
    """The disk has no room for it; says how much is needed and how much there is."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(
            f"it needs {needed / 1e6:,.1f} MB of disk, and there are {max(free, 0) / 1e6:,.1f} MB"
            " beside what has to stay"
        )
        self.needed = needed
        self.free = free


class Source(Protocol):
    """Where blobs come from."""

    def read(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of a blob from an offset on. Raises Gone, Cut.

        A source that cannot begin in the middle raises Cut for any other offset than 0, or brings
        what is before it once more, for which it gives empty pieces.
        """
        ...


class BlobStore:
    """Blobs below a directory of its own."""

    def __init__(self, root: Path, pay: Pay = unlimited) -> None:
        self._root = root
        self._pay = pay
        self._locks: dict[str, asyncio.Lock] = {}
        self.brought = 0
        """Bytes that came over the link since the start, good or not."""

    def prepare(self) -> None:
        """Make what is needed; blocks."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where a blob is, or will be. Raises ValueError for what is no digest."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"not a digest: {digest!r}")
        return self._root / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        """Whether a blob is here; blocks."""
        return self.path(digest).exists()

    def size(self, digest: str) -> int:
        """Bytes of a blob that are here, whole or not; blocks."""
        path = self.path(digest)
        for one in (path, _partial(path)):
            with contextlib.suppress(FileNotFoundError):
                return one.stat().st_size
        return 0

    async def fetch(self, digest: str, size: int, source: Source) -> Path:
        """Have a blob here, gone on with from where an earlier call was cut. Raises Gone, Cut,
        Wrong, Full, OSError.
        """
        path = self.path(digest)
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:
            if not await asyncio.to_thread(path.exists):
                await asyncio.to_thread(self._require_room, digest, size)
                await self._bring(digest, size, source)
        return path

    def _require_room(self, digest: str, size: int) -> None:
        needed = size - self.size(digest)
        if needed > (free := room(self._root)):
            raise Full(needed, free)

    async def _bring(self, digest: str, size: int, source: Source) -> None:
        path = self.path(digest)
        for _ in range(TIMES_WRONG):
            await self._append(digest, size, source)
            if await asyncio.to_thread(_finish, path, digest):
                return
            log.warning("blob.wrong", digest=digest)
        raise Wrong(f"what comes as {digest} is something else each time")

    async def _append(self, digest: str, size: int, source: Source) -> None:
        """Add what is missing to the file of what is on its way."""
        partial = _partial(self.path(digest))
        handle = await asyncio.to_thread(_opened, partial)
        try:
            offset = await asyncio.to_thread(os.lseek, handle, 0, os.SEEK_END)
            if offset > size:
                await asyncio.to_thread(os.ftruncate, handle, 0)
                offset = 0
            synced = offset
            async for piece in self._pieces(digest, size, offset, source):
                await asyncio.to_thread(write_all, handle, piece)
                offset += len(piece)
                if offset - synced >= SYNC_EVERY:
                    await asyncio.to_thread(os.fdatasync, handle)
                    synced = offset
        finally:
            await asyncio.to_thread(_closed, handle)

    async def _pieces(
        self, digest: str, size: int, offset: int, source: Source
    ) -> AsyncIterator[bytes]:
        """What comes, up to `size`, each piece paid for and none waited for for ever."""
        if offset >= size:
            return
        # Where nothing may come now, none is asked for.
        await self._pay(0)
        reader = source.read(digest, offset)
        try:
            while offset < size:
                try:
                    async with asyncio.timeout(READ_SECONDS):
                        piece = await anext(reader, None)
                except TimeoutError:
                    raise Cut(f"no byte came for {READ_SECONDS:g} s") from None
                if piece is None:
                    raise Cut(f"it ended after {offset} of {size} bytes")
                if not piece:
                    continue
                self.brought += len(piece)
                piece = piece[: size - offset]
                await self._pay(len(piece))
                offset += len(piece)
                yield piece
        finally:
            close = getattr(reader, "aclose", None)
            if close is not None:
                await close()

    # -- what is kept ---------------------------------------------------------------------------

    def claim(self, owner: str, digests: Iterable[str]) -> None:
        """An owner needs these from now on: what it needed before and nobody needs any more, which
        came whole or in part, is removed. On a full disk it is not remembered what is needed, and
        that stays until all is here. Blocks.
        """
        claim = self._root / f"{hashlib.sha256(owner.encode()).hexdigest()}{_CLAIM}"
        former, needed = _claimed(claim), set(digests)
        if needed == former:
            return
        others = (_claimed(one) for one in self._root.glob(f"*{_CLAIM}") if one != claim)
        for digest in former.difference(needed, *others):
            for path in (self.path(digest), _partial(self.path(digest))):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            replace(claim, "\n".join(sorted(needed)).encode())

    def check(self, digest: str) -> bool:
        """Whether a blob is what it is called, read again from its first byte to the last; one
        that is not is removed. Blocks.
        """
        path = self.path(digest)
        try:
            good = _digest_of(path) == digest
        except OSError:
            good = False
        if not good:
            path.unlink(missing_ok=True)
        return good

    def collect(self, keep: Iterable[str]) -> int:
        """Remove what is not to be kept, claimed or not, and return how many bytes that gave;
        blocks.
        """
        names = {self.path(digest).name for digest in keep}
        freed = 0
        for path in self._root.iterdir():
            if path.name.removesuffix(".part") not in names:
                with contextlib.suppress(FileNotFoundError):
                    freed += path.stat().st_size
                    path.unlink()
        return freed


def room(path: Path) -> int:
    """Bytes of the disk of a directory that may be taken; blocks."""
    return free_bytes(path) - SPARE


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _claimed(path: Path) -> set[str]:
    """Digests of a claim; of one that is damaged those that can be read."""
    try:
        told = path.read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError:
        return set()
    return {one for one in told if _DIGEST.fullmatch(one)}


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _closed(handle: int) -> None:
    try:
        os.fdatasync(handle)
    finally:
        os.close(handle)


def _finish(path: Path, digest: str) -> bool:
    """Give what is whole its name; what is something else is thrown away. Blocks."""
    partial = _partial(path)
    if _digest_of(partial) != digest:
        partial.unlink()
        return False
    partial.replace(path)
    sync_directory(path.parent)
    return True


def _digest_of(path: Path) -> str:
    """Read from the disk, and not from its cache where that can be told to the kernel."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := file.read(PIECE):
            found.update(piece)
    return f"sha256:{found.hexdigest()}"
