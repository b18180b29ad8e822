"""Trees by content: a bounded cache on this host, and copies of them for attempts.

Files of the cache are shared by hard links where they are only read. They have no write bits, and
all of them the same modification time: whoever writes through a link, as root or after a chmod,
changes that. Every file is looked at before it is shared or copied; a tree with a changed one is
thrown away and fetched anew. (A read-only bind mount would need rights that workers lack.)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import structlog

from hatoba.v1 import common_pb2
from hatoba_worker.transfers import TransferFailed, Transfers

LIMIT = 20 << 30
STAMP = 946_684_800_000_000_000
"""The modification time of cached files, in nanoseconds: the beginning of the year 2000."""
_FICLONE = 0x40049409
_COPY = 8 << 20
_WRITE_BITS = 0o222
_DIGEST = re.compile(r"[0-9a-f]{64}")
Place = Callable[[str, str], None]
log = structlog.get_logger(__name__)


class Spoiled(Exception):
    """A cached file is not as it was fetched."""


class TreeCache:
    """Downloaded trees, each once. The least recently used go when all are over `limit` bytes."""

    def __init__(self, root: Path, transfers: Transfers, limit: int = LIMIT) -> None:
        self._root = root
        self._transfers = transfers
        self._limit = limit
        self._locks: dict[str, asyncio.Lock] = {}
        self._pins: dict[str, int] = {}

    async def copy(self, ref: common_pb2.ManifestRef, target: Path) -> None:
        """Put a writable copy of a tree into `target`; raises TransferFailed, OSError."""
        await self._place(ref, target, clone)

    async def link(self, ref: common_pb2.ManifestRef, target: Path) -> None:
        """Put a tree into `target` whose files are the cache's own, read-only."""
        await self._place(ref, target, os.link)

    async def _place(self, ref: common_pb2.ManifestRef, target: Path, place: Place) -> None:
        digest = ref.digest.removeprefix("sha256:")
        self._pins[digest] = self._pins.get(digest, 0) + 1
        try:
            await self._replicate(ref, digest, target, place)
        except Spoiled as error:
            log.warning("cache.spoiled", tree=digest, file=str(error))
            await self._again(ref, digest, target, place)
        finally:
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]
                self._locks.pop(digest, None)

    async def _replicate(
        self, ref: common_pb2.ManifestRef, digest: str, target: Path, place: Place
    ) -> None:
        tree = await self._have(ref, digest)
        await asyncio.to_thread(_replicate_sound, tree, target, place)

    async def _again(
        self, ref: common_pb2.ManifestRef, digest: str, target: Path, place: Place
    ) -> None:
        try:
            await self._replicate(ref, digest, target, place)
        except Spoiled as error:
            raise TransferFailed(f"{error} is changed as soon as it is fetched") from error

    async def _have(self, ref: common_pb2.ManifestRef, digest: str) -> Path:
        tree = self._root / digest
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:
            if not await asyncio.to_thread(_touch, tree):
                await self._fetch(ref, tree)
        return tree

    async def _fetch(self, ref: common_pb2.ManifestRef, tree: Path) -> None:
        partial = tree.with_name(f".{tree.name}.{os.getpid()}")
        await asyncio.to_thread(_clear, partial)
        try:
            await self._transfers.download(ref, partial)
            await asyncio.to_thread(_publish, partial, tree)
        finally:
            await asyncio.to_thread(_clear, partial)
        pinned = frozenset(self._pins)
        await asyncio.to_thread(shrink, self._root, self._limit, pinned)


def replicate(tree: Path, target: Path, place: Place) -> None:
    """Rebuild `tree` in `target`, each file by `place(source, destination)`; blocks."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.scandir(tree) as entries:
        for entry in entries:
            destination = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), destination)
            elif entry.is_dir():
                replicate(Path(entry.path), Path(destination), place)
            else:
                place(entry.path, destination)


def _replicate_sound(tree: Path, target: Path, place: Place) -> None:
    """Replicate a tree that is as it was fetched; another is thrown away, and `target` with it.

    Raises Spoiled, also when somebody else threw it away meanwhile.
    """
    # While it is open nothing else gets its number, by which it is told from one fetched since.
    try:
        opened = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Spoiled(str(tree)) from error
    try:
        replicate(tree, target, _checked(place))
        if not _is_still(tree, opened):
            # A directory that is emptied while it is listed ends early, without an error.
            raise FileNotFoundError(tree)
    except Spoiled:
        _throw_away(tree, opened)
        _clear(target)
        raise
    except FileNotFoundError as error:
        if _is_still(tree, opened):
            raise
        _clear(target)
        raise Spoiled(str(tree)) from error
    finally:
        os.close(opened)


def _is_still(tree: Path, opened: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(tree).st_ino == os.fstat(opened).st_ino
    return False


def _checked(place: Place) -> Place:
    """`place` for files that are as they were fetched; raises Spoiled for others."""

    def checked(source: str, destination: str) -> None:
        status = os.lstat(source)
        if status.st_mtime_ns != STAMP:
            raise Spoiled(source)
        if status.st_mode & _WRITE_BITS:
            os.chmod(source, stat.S_IMODE(status.st_mode) & ~_WRITE_BITS)
        place(source, destination)

    return checked


def clone(source: str, destination: str) -> None:
    """Copy a file with its mode, made writable; shares its blocks where the file system can."""
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(reader)
        mode = stat.S_IMODE(status.st_mode) | stat.S_IWUSR
        writer = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            _fill(reader, writer, status.st_size)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _fill(reader: int, writer: int, size: int) -> None:
    if not size:
        return
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
            raise
        while os.copy_file_range(reader, writer, _COPY):
            pass


def tidy(root: Path) -> None:
    """Remove what a dead worker had not fetched to its end; blocks."""
    for path in root.iterdir():
        if not _DIGEST.fullmatch(path.name):
            _clear(path)


def shrink(root: Path, limit: int, pinned: frozenset[str]) -> None:
    """Remove the least recently used trees below `root` until they take `limit` bytes; blocks."""
    trees = [path for path in root.iterdir() if _DIGEST.fullmatch(path.name)]
    found = [(path.stat().st_mtime, _bytes_below(path), path) for path in trees]
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        if path.name not in pinned:
            _clear(path)
            total -= size


def _bytes_below(root: Path) -> int:
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_size
    return total


def _touch(tree: Path) -> bool:
    try:
        os.utime(tree, (time.time(), time.time()))
    except FileNotFoundError:
        return False
    return True


def _publish(partial: Path, tree: Path) -> None:
    """Make the files read-only, stamp them, and give the complete tree its name."""
    for directory, _, names in os.walk(partial):
        for name in names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                os.chmod(path, stat.S_IMODE(status.st_mode) & 0o555 | stat.S_IRUSR)
                os.utime(path, ns=(STAMP, STAMP))
    os.rename(partial, tree)


def _throw_away(tree: Path, opened: int) -> None:
    """Others may be reading the tree: it gets another name first."""
    if not _is_still(tree, opened):
        return
    doomed = tree.with_name(f".{tree.name}.{uuid.uuid4().hex}.spoiled")
    with contextlib.suppress(FileNotFoundError):
        os.rename(tree, doomed)
    _clear(doomed)


def _clear(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
