"""Deletes chunks and manifests that nothing names: first marked, gone at a later run.

A run may be cut at any point. Manifests go first, and only then the chunks that no stored manifest
names: one that is stored is always complete. What is named or leased between the look and the
deletion is not deleted: see `ChunkStore`.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.errors import Aborted, HatobaError, NotFound
from hatoba_scheduler.store.blob_index import BlobKind, RootSource
from hatoba_scheduler.store.blobs import ChunkStore, Stored

log = structlog.get_logger(__name__)

EVERY = 3600.0
RUN_SHARE = 0.5
"""Of a lease: roots and names that were read longer ago are not relied on."""
MARKS_KEPT: Micros = 7 * 24 * 3600 * 1_000_000
_PREFIX = 8
_THIN_FROM = 16_384


@dataclass(slots=True)
class Collected:
    """What a run found and did: counts of chunks and manifests, and bytes."""

    stored: int = 0
    live: int = 0
    marked: int = 0
    deleted: int = 0
    deleted_bytes: int = 0


class Garbage:
    """Garbage collection over one store of chunks. `roots` says which manifests are named."""

    def __init__(self, chunks: ChunkStore, roots: RootSource, clock: Clock) -> None:
        self._chunks = chunks
        self._roots = roots
        self._clock = clock
        self._running = asyncio.Lock()

    async def run_forever(self) -> None:
        """Collect once an hour, the first time after an hour; ends by cancellation.

        Whoever was about to name something when the server went away has that hour.
        """
        while True:
            await self._clock.sleep(EVERY)
            try:
                collected = await self.collect()
            except HatobaError as error:
                log.warning("garbage.failed", error=error.message)
            except Exception:
                # What is not collected costs room; it is no reason to end the server.
                log.exception("garbage.failed")
            else:
                log.info("garbage.collected", **_fields(collected))

    async def collect(self, *, only_say: bool = False) -> Collected:
        """One run; a run that is under way is waited for. `only_say` changes nothing."""
        async with self._running:
            run = _Run(self._chunks, self._clock, only_say=only_say)
            live = await self._roots.manifest_roots()
            for digest in await run.manifests(live):
                await run.name_chunks(digest)
            await run.chunks()
            if not only_say:
                await self._chunks.tidy(run.began - MARKS_KEPT)
            return run.collected


class _Run:
    def __init__(self, chunks: ChunkStore, clock: Clock, *, only_say: bool) -> None:
        self.collected = Collected()
        self._chunks = chunks
        self._clock = clock
        self._only_say = only_say
        self._named = _Named()
        self.began: Micros = round(clock.time() * 1e6)

    async def manifests(self, roots: set[str]) -> list[str]:
        """Delete manifests that nothing names; all that are left.

        One that comes later has leased its chunks for longer than a run lasts.
        """
        leased = await self._chunks.leased_manifests()
        left: list[str] = []
        async with aclosing(self._chunks.stored(BlobKind.MANIFEST)) as batches:
            async for stored in batches:
                unnamed = [
                    one for one in stored if _name(one) not in roots and one.digest not in leased
                ]
                gone = await self._judge(BlobKind.MANIFEST, stored, unnamed)
                left += [_name(one) for one in stored if one.digest not in gone]
        return left

    async def name_chunks(self, digest: str) -> None:
        """Remember the chunks of a stored manifest."""
        try:
            async for entries in self._chunks.entries(digest):
                for entry in entries:
                    for chunk in entry.chunks:
                        self._named.add(chunk.sha256)
        except NotFound:
            log.info("garbage.manifest_gone", digest=digest)

    async def chunks(self) -> None:
        """Delete chunks that no stored manifest names."""
        async with aclosing(self._chunks.stored(BlobKind.CHUNK)) as batches:
            async for stored in batches:
                unnamed = [one for one in stored if not self._named.has(one.digest)]
                await self._judge(BlobKind.CHUNK, stored, unnamed)

    async def _judge(
        self, kind: BlobKind, stored: Sequence[Stored], unnamed: Sequence[Stored]
    ) -> set[bytes]:
        """Mark or delete those that are unnamed; digests of the deleted."""
        done = self.collected
        done.stored += len(stored)
        done.live += len(stored) - len(unnamed)
        if not unnamed:
            return set()
        self._check_age()
        sizes = {one.digest: one.size for one in unnamed}
        judged = await self._chunks.judge(kind, list(sizes), self.began, only_say=self._only_say)
        gone = set(judged.condemned)
        done.marked += len(judged.marked)
        done.deleted += len(gone)
        done.deleted_bytes += sum(sizes[digest] for digest in gone)
        return gone

    def _check_age(self) -> None:
        longest = RUN_SHARE * self._chunks.lease_seconds
        if self._clock.time() * 1e6 - self.began > longest * 1e6:
            raise Aborted(
                f"garbage collection took longer than {longest:,.0f} s and stopped; "
                "what is left goes at the next run"
            )


class _Named:
    """Digests of chunks, by their first 8 bytes: two that share them are both kept."""

    def __init__(self) -> None:
        self._by_first = [array("Q") for _ in range(256)]
        self._thin_at = [_THIN_FROM] * 256
        self._looking = -1
        self._seen: frozenset[int] = frozenset()

    def add(self, sha256: bytes) -> None:
        """Remember one."""
        first = sha256[0]
        held = self._by_first[first]
        held.append(_prefix(sha256))
        if len(held) >= self._thin_at[first]:
            self._by_first[first] = held = array("Q", set(held))
            self._thin_at[first] = max(_THIN_FROM, 2 * len(held))

    def has(self, sha256: bytes) -> bool:
        """Whether it was added; quick for those with the same first byte one after another."""
        first = sha256[0]
        if self._looking != first:
            self._looking, self._seen = first, frozenset(self._by_first[first])
        return _prefix(sha256) in self._seen


def _prefix(sha256: bytes) -> int:
    return int.from_bytes(sha256[:_PREFIX])


def _name(stored: Stored) -> str:
    return f"sha256:{stored.digest.hex()}"


def _fields(collected: Collected) -> dict[str, int]:
    return {name: getattr(collected, name) for name in Collected.__slots__}
