"""The store as a whole: copies of it, what is wrong with it, and whether it came out of a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.store.problems import Execute, StoreProblem


class Copied(NamedTuple):
    """A copy of the store: bytes, position of its newest event, manifests that it names."""

    size_bytes: int
    last_event: int
    roots: frozenset[str]


class BackupRecord(NamedTuple):
    """A copy that is remembered; `manifests` is how many are kept for it."""

    id: str
    create_time: Micros
    path: str
    size_bytes: int
    last_event: int
    manifests: int


class BackupStore(Protocol):
    """See the module."""

    async def copy_to(self, target: Path, stopped: Callable[[], bool]) -> Copied:
        """Write a consistent copy into a new file, while the store is used; durable at the end.

        Given up once `stopped` says so, which any thread asks. Raises StorageFull and
        StorageFailed; then the file may be there in part.
        """
        ...

    async def keep(self, backup: BackupRecord, roots: Iterable[str]) -> None:
        """Remember a copy, and keep what it names from collection."""
        ...

    async def all(self) -> list[BackupRecord]:
        """Those that are remembered, newest first."""
        ...

    async def forget(self, backup_id: str) -> None:
        """Keep nothing for it any more; twice is once."""
        ...

    async def manifest_roots(self) -> set[str]:
        """Digests of all manifests that remembered copies name."""
        ...

    async def adopted(self) -> None:
        """The store is served like any other from now on."""
        ...

    async def probe(self) -> None:
        """Write what changes nothing. Raises StorageFull or StorageFailed while the disk fails."""
        ...

    async def check(self, now: Micros) -> list[StoreProblem]:
        """What is wrong with the store at one moment."""
        ...

    async def execute(self, mend: Execute) -> None:
        """Mend what is not a job's."""
        ...
