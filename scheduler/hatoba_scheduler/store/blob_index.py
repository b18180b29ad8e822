"""What is remembered of stored chunks and manifests: leases and marks.

The files (or objects) are the truth about what is stored. The index only says what must not be
deleted for a while and what garbage collection has found unnamed: losing all of it would cost the
leases of the last hour, never a stored byte.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from hatoba_scheduler.domain.records import Micros


class BlobKind(enum.IntEnum):
    """What a digest is of."""

    CHUNK = 1
    MANIFEST = 2


class Judged(NamedTuple):
    """What becomes of unnamed blobs: those marked now, and those that may be deleted now."""

    marked: list[bytes]
    condemned: list[bytes]


class BlobIndex(Protocol):
    """Leases and marks, kept with the rest of the store. Digests are raw SHA-256."""

    async def lease(self, kind: BlobKind, digests: Sequence[bytes], until: Micros) -> None:
        """Keep blobs until then at least, stored or not, and take their marks away."""
        ...

    async def judge(
        self, kind: BlobKind, digests: Sequence[bytes], now: Micros, run: Micros, *, only_say: bool
    ) -> Judged:
        """Mark those of the unnamed blobs that have neither a lease nor a mark, with `run`.

        Condemned are those without a lease whose mark is older than `run`. `only_say` changes
        nothing.
        """
        ...

    async def forget(self, kind: BlobKind, digests: Sequence[bytes]) -> None:
        """Drop what is remembered of blobs that are deleted."""
        ...

    async def leased(self, kind: BlobKind, now: Micros) -> set[bytes]:
        """All that have a lease."""
        ...

    async def purge(self, now: Micros, marked_before: Micros) -> int:
        """Drop rows that say nothing any more: leases that passed, marks of long ago; how many."""
        ...


class RootSource(Protocol):
    """A part of the store that names manifests."""

    async def manifest_roots(self) -> set[str]:
        """Digests, `sha256:` and hex, of all manifests that it names."""
        ...


class Roots:
    """The union of several sources."""

    def __init__(self, sources: Iterable[RootSource]) -> None:
        self._sources = tuple(sources)

    async def manifest_roots(self) -> set[str]:
        """Digests of all manifests that any source names."""
        found: set[str] = set()
        for source in self._sources:
            found |= await source.manifest_roots()
        return found
