"""Takes backups, lists them and lets go of them.

A backup is a directory: `hatoba.db` (jobs, events, queues, tokens as hashes, models, datasets,
webhooks with their keys), `hatoba.toml` when there is one, `backup.json`, and `blobs/` when it is
to stand by itself. Not in it: logs, traces, token files, TLS keys, secrets, and what hosts keep.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import structlog

from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.errors import AlreadyExists, InvalidArgument, NotFound
from hatoba_scheduler.store.backups import BackupRecord
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.blob_files import BlobFiles
from hatoba_scheduler.store.blob_index import BlobKind
from hatoba_scheduler.store.blobs import ChunkStore
from hatoba_scheduler.store.disk import disk_errors, sync
from hatoba_scheduler.store.errors import StorageFailed
from hatoba_scheduler.whole import whole

log = structlog.get_logger(__name__)

DATABASE = "hatoba.db"
CONFIG = "hatoba.toml"
NOTE = "backup.json"
BLOBS = "blobs"
FOLDER = "backups"
"""Below the data directory, where those go that are given no other place."""
PARTIAL = ".part"
CHUNKS_AT_ONCE = 32


class Backups:
    """Backups of one running server, one at a time."""

    def __init__(
        self, store: Store, chunks: ChunkStore, data: Path, now: Callable[[], Micros], version: str
    ) -> None:
        self._store = store
        self._chunks = chunks
        self._data = data
        self._now = now
        self._version = version
        self._one = asyncio.Lock()
        self._stopped = False

    def stop(self) -> None:
        """The server ends: a copy under way is given up."""
        self._stopped = True

    async def recover(self) -> None:
        """Clear away what a server left that was killed while it took one."""
        for record in await self.all():
            if await asyncio.to_thread(_was_broken_off, Path(record.path)):
                log.warning("backup.broken_off", id=record.id, path=record.path)
                await self._store.backups.forget(record.id)
        await asyncio.to_thread(_remove_partial, self._data / FOLDER)

    async def create(self, path: str = "", *, with_blobs: bool = False) -> BackupRecord:
        """Take one. `path` is a directory that does not exist; empty: below the data directory.

        Raises InvalidArgument, AlreadyExists, StorageFull and StorageFailed; then nothing is left.
        """
        return await whole(self._create(path, with_blobs))

    async def _create(self, path: str, with_blobs: bool) -> BackupRecord:
        backup_id = _new_id(self._now())
        place = Path(path) if path else self._data / FOLDER / backup_id
        record = BackupRecord(backup_id, self._now(), str(place), 0, 0, 0)
        async with self._one:
            await asyncio.to_thread(_check_place, place, own=not path)
            partial = _partial(place)
            try:
                return await self._write(record, partial, with_blobs)
            except BaseException:
                await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
                raise

    async def _write(self, record: BackupRecord, partial: Path, with_blobs: bool) -> BackupRecord:
        await asyncio.to_thread(_make, partial)
        copied = await self._store.backups.copy_to(partial / DATABASE, lambda: self._stopped)
        record = record._replace(
            size_bytes=copied.size_bytes,
            last_event=copied.last_event,
            manifests=len(copied.roots),
        )
        await self._store.backups.keep(record, copied.roots)
        try:
            if with_blobs:
                await self._copy_blobs(sorted(copied.roots), partial / BLOBS)
            await asyncio.to_thread(self._finish, record, partial)
        except BaseException:
            await self._store.backups.forget(record.id)
            raise
        log.info("backup.taken", id=record.id, path=record.path, bytes=record.size_bytes)
        return record

    def _finish(self, record: BackupRecord, partial: Path) -> None:
        with disk_errors(f"the backup could not be written to {partial}"):
            config = self._data / CONFIG
            if config.exists():
                shutil.copyfile(config, partial / CONFIG)
            note = {
                **record._asdict(),
                "version": self._version,
                "cluster_id": self._store.identity.cluster_id,
                "store_epoch": self._store.identity.store_epoch,
            }
            (partial / NOTE).write_text(json.dumps(note, indent=1) + "\n")
            for file in (CONFIG, NOTE):
                if (partial / file).exists():
                    sync(partial / file)
            sync(partial)
            partial.rename(record.path)
            sync(Path(record.path).parent)

    async def _copy_blobs(self, digests: Sequence[str], target: Path) -> None:
        """Everything that these manifests name, into a directory of the form of our own."""
        place = BlobFiles(target)
        await asyncio.to_thread(place.prepare)
        for digest in digests:
            try:
                await self._copy_manifest(digest, place)
            except NotFound:
                # Named by what was never complete: an output that was lost before it came.
                log.warning("backup.manifest_missing", digest=digest)

    async def _copy_manifest(self, digest: str, place: BlobFiles) -> None:
        wanted: dict[bytes, None] = {}
        async for entries in self._chunks.entries(digest):
            for entry in entries:
                wanted |= dict.fromkeys(chunk.sha256 for chunk in entry.chunks)
                while len(wanted) >= CHUNKS_AT_ONCE:
                    await self._copy_chunks(
                        [wanted.popitem()[0] for _ in range(CHUNKS_AT_ONCE)], place
                    )
        await self._copy_chunks(list(wanted), place)
        async with aclosing(self._chunks.manifest_pieces(digest)) as pieces:
            # An empty tree's manifest has no pieces, and is a file all the same.
            name = place.spool.temporary()
            await asyncio.to_thread(_append, name, b"")
            async for piece in pieces:
                await asyncio.to_thread(_append, name, piece)
        sha256 = bytes.fromhex(digest.removeprefix("sha256:"))
        await asyncio.to_thread(place.publish, BlobKind.MANIFEST, {sha256: name})

    async def _copy_chunks(self, digests: Sequence[bytes], place: BlobFiles) -> None:
        sizes = await asyncio.to_thread(place.sizes, BlobKind.CHUNK, digests)
        missing = [one for one, size in zip(digests, sizes, strict=True) if size is None]
        if not missing:
            return
        files = {digest: place.spool.temporary() for digest in missing}
        async with aclosing(self._chunks.read(missing)) as batches:
            async for batch in batches:
                for read in batch:
                    await asyncio.to_thread(_append, files[missing[read.position]], read.data)
        await asyncio.to_thread(place.publish, BlobKind.CHUNK, files)

    async def all(self) -> list[BackupRecord]:
        """Those that are remembered, newest first."""
        return await self._store.backups.all()

    async def delete(self, name: str) -> None:
        """Let go of one, and remove its directory; twice is once."""
        backup_id = name.removeprefix("backups/")
        async with self._one:
            found = [one for one in await self.all() if one.id == backup_id]
            for record in found:
                await asyncio.to_thread(_remove, record)
            await self._store.backups.forget(backup_id)


def _partial(place: Path) -> Path:
    """Where a backup is while it is not complete."""
    return place.with_name(f".{place.name}{PARTIAL}")


def _was_broken_off(place: Path) -> bool:
    """Whether it was never completed; then nothing of it is left. One that is away is another."""
    partial = _partial(place)
    if place.exists() or not partial.is_dir():
        return False
    shutil.rmtree(partial, ignore_errors=True)
    return True


def _remove_partial(folder: Path) -> None:
    for partial in folder.glob(f".*{PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)


def _new_id(now: Micros) -> str:
    stamp = time.strftime("%Y%m%dt%H%M%Sz", time.gmtime(now / 1e6))
    return f"{stamp}-{secrets.token_hex(2)}"


def _check_place(place: Path, *, own: bool) -> None:
    if not place.is_absolute():
        raise InvalidArgument.field(
            "path",
            "must be absolute on the server's machine",
            value=str(place),
            remedy=f"write for example /var/backups/{place.name}",
        )
    if own:
        with disk_errors(f"cannot make {place.parent}"):
            place.parent.mkdir(mode=0o700, exist_ok=True)
    if place.exists():
        raise AlreadyExists(f"{place} exists; name a directory that does not")
    if not place.parent.is_dir():
        raise InvalidArgument.field(
            "path", f"{place.parent} is no directory of the server's machine", value=str(place)
        )


def _make(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_errors(f"cannot make {partial}"):
            partial.mkdir(mode=0o700)
    except StorageFailed as error:
        raise InvalidArgument.field(
            "path",
            f"no directory can be made in {partial.parent}: {error.__cause__}",
            value=str(partial.parent),
            remedy="name a directory in one that the server may write to",
        ) from error


def _append(name: str, data: bytes) -> None:
    with disk_errors("the backup could not be written"), open(name, "ab") as file:
        file.write(data)


def _remove(record: BackupRecord) -> None:
    """Remove a backup's directory, when it is the one that was written."""
    place = Path(record.path)
    try:
        note = json.loads((place / NOTE).read_text())
    except (OSError, ValueError):
        return
    if note.get("id") == record.id:
        shutil.rmtree(place, ignore_errors=True)
