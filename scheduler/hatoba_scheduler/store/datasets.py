"""The part of the store that keeps datasets, their heads, and code versions.

Mutating calls return after the commit. Those that take a `request` remember it in the same
transaction: a repeat is a Duplicate that names what was made, another body a Mismatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from hatoba_scheduler.domain.datasets import (
    CodeVersionRecord,
    DatasetRecord,
    DatasetVersionRecord,
    HeadItem,
    NewDatasetVersion,
)
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey, Stale

EVERY_BATCH = (1 << 62) - 1


class Kept(NamedTuple):
    """A version that is stored; `unchanged` when it was there before."""

    record: DatasetVersionRecord
    unchanged: bool


class KeptCode(NamedTuple):
    """A version of code that is stored; `unchanged` when it was there before."""

    record: CodeVersionRecord
    unchanged: bool


class Frozen(NamedTuple):
    """What a commit takes: head items of batches up to `batch`, and the newest version's number."""

    batch: int
    latest: int
    items: int


class InUse(NamedTuple):
    """Nothing was removed: these use it."""

    users: tuple[str, ...]


class DatasetKey(NamedTuple):
    """A dataset, or with `version` one version of it; 0 is the newest."""

    project: str
    dataset: str
    version: int = 0


class Appended(NamedTuple):
    """Items for a head, by whom and when."""

    items: Sequence[HeadItem]
    by: str
    time: Micros


class DatasetStore(Protocol):
    """Datasets, heads, code. See the module."""

    async def create_version(self, new: NewDatasetVersion) -> DatasetVersionRecord:
        """Number and store a version, and the dataset with its first one.

        Content that equals the newest version's, and a job that made a version of this dataset
        before, make no other: that one is returned.
        """
        ...

    async def put_version(
        self, new: NewDatasetVersion, request: RequestKey | None = None, frozen: int = 0
    ) -> Kept | Duplicate | Mismatch | Stale:
        """As `create_version`; in the same step head items of batches up to `frozen` go.

        Stale when `new.expected` is not the newest version's number.
        """
        ...

    async def dataset(self, key: DatasetKey) -> DatasetRecord | None:
        """One dataset."""
        ...

    async def datasets(self, project: str, after: str, limit: int) -> list[DatasetRecord]:
        """Datasets of a project by name, above the name `after`."""
        ...

    async def version(self, key: DatasetKey) -> DatasetVersionRecord | None:
        """One version."""
        ...

    async def versions(self, key: DatasetKey, below: int, limit: int) -> list[DatasetVersionRecord]:
        """Versions of a dataset, newest first, below the number `below`."""
        ...

    async def delete_version(
        self, key: DatasetKey, request: RequestKey | None
    ) -> DatasetVersionRecord | InUse | Duplicate | Mismatch | None:
        """Remove a version that nothing uses; None when there is none. Its number is not given
        again.
        """
        ...

    async def append(
        self, key: DatasetKey, added: Appended, request: RequestKey | None
    ) -> int | Duplicate | Mismatch:
        """Add items to a head, making the dataset when it is not there; how many it has now. An id
        that the open head has is replaced where it stands.
        """
        ...

    async def head(
        self, key: DatasetKey, after: int, limit: int, batch: int = EVERY_BATCH
    ) -> list[HeadItem]:
        """Items of a head in order, above the position `after`, of batches up to `batch`."""
        ...

    async def freeze(self, key: DatasetKey) -> Frozen | None:
        """Close the open head: what is appended from now on goes to the next. None when there is no
        such dataset.
        """
        ...

    async def put_code(
        self, code: CodeVersionRecord, request: RequestKey | None = None
    ) -> KeptCode | Duplicate | Mismatch:
        """Number and store code (its `version` is not read); the same content and source again is
        the same version.
        """
        ...

    async def code_version(self, project: str, code: str, version: int) -> CodeVersionRecord | None:
        """One version of code; 0 is the newest."""
        ...

    async def code_versions(
        self, project: str, code: str, below: tuple[Micros, str, int] | None, limit: int
    ) -> list[CodeVersionRecord]:
        """Versions of one name, or of all (empty), newest first by (time, name, number)."""
        ...

    async def manifest_roots(self) -> set[str]:
        """Digests of all manifests that versions, heads and code name."""
        ...
