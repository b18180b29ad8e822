"""What every store must do with datasets and code, as a pytest suite like `StoreConformance`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hatoba_scheduler.domain.datasets import (
    CodeVersionRecord,
    DatasetRecord,
    DatasetVersionRecord,
    HeadItem,
    NewDatasetVersion,
    Origins,
)
from hatoba_scheduler.domain.records import ManifestRef
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey, Stale, Store
from hatoba_scheduler.store.conformance import Clock, OpenStore
from hatoba_scheduler.store.datasets import Appended, DatasetKey, Frozen, InUse, Kept, KeptCode
from hatoba_scheduler.store.samples import submission

A, B, C, D = (ManifestRef(f"sha256:{letter * 64}", 3, 1) for letter in "abcd")
FACES = DatasetKey("default", "faces")
NEW = NewDatasetVersion("default", "faces", A, None, 3, 1_000, "ann")
CODE = CodeVersionRecord("default", "train", 0, A, "https://x", "c" * 40, False, None, 5, "ann")


def key(name: str = "r1", body: bytes = b"b") -> RequestKey:
    """A request's key."""
    return RequestKey("default", "CreateDatasetVersion", name, body * 32)


def item(id: str, size: int = 0) -> HeadItem:
    """An item with or without a file."""
    return HeadItem(
        id, id, '{"label":3}', "", "e" * 64 if size else "", size, C.digest * bool(size)
    )


async def append(store: Store, *items: HeadItem, request: RequestKey | None = None) -> object:
    """Append to the head of FACES."""
    return await store.datasets.append(FACES, Appended(items, "ann", 2_000), request)


class DatasetStoreConformance:
    """Every sentence of `DatasetStore`, as a test."""

    @pytest.fixture
    def clock(self) -> Clock:
        """The clock of `store`."""
        return Clock()

    @pytest.fixture
    async def store(
        self, open_store: OpenStore, tmp_path: Path, clock: Clock
    ) -> AsyncIterator[Store]:
        """An empty store."""
        found = await open_store(tmp_path, clock)
        yield found
        await found.close()

    async def test_a_version_is_stored_whole(self, store: Store) -> None:
        """What is read is what was written, with its number."""
        origins = Origins("jobs/p-1", "projects/default/jobs/p-1", "m", ("d1", "d2"))
        new = replace(
            NEW,
            items=B,
            splits=(("train", 2), ("test", 1)),
            item_labels=(("größer", 3),),
            message="words",
            by_reference=True,
            labels=(("team", "vision"),),
            origins=origins,
        )
        made = await store.datasets.create_version(new)
        assert made == DatasetVersionRecord(
            "default",
            "faces",
            1,
            A,
            B,
            3,
            1_000,
            "ann",
            new.splits,
            new.item_labels,
            "words",
            True,
            new.labels,
            origins,
        )
        assert await store.datasets.version(FACES) == made
        assert await store.datasets.version(FACES._replace(version=1)) == made
        assert await store.datasets.version(FACES._replace(version=2)) is None
        assert await store.datasets.dataset(FACES) == DatasetRecord(
            "default", "faces", 1, 1, 0, 0, 1_000, "ann", 1_000
        )

    async def test_the_same_content_again_is_the_same_version(self, store: Store) -> None:
        """Only of the newest, and of files and items both."""
        first = await store.datasets.create_version(NEW)
        again = replace(NEW, message="other words")
        assert await store.datasets.put_version(again) == Kept(first, True)
        assert (await store.datasets.create_version(replace(NEW, items=B))).version == 2
        assert (await store.datasets.create_version(replace(NEW, manifest=B))).version == 3
        assert (await store.datasets.create_version(NEW)).version == 4

    async def test_a_job_makes_one_version_of_a_dataset(self, store: Store) -> None:
        """Asked again, with whatever content, it is the one that it made."""
        new = replace(NEW, origins=Origins(job="projects/default/jobs/p-1"))
        first = await store.datasets.create_version(new)
        await store.datasets.create_version(replace(NEW, manifest=B))
        assert await store.datasets.create_version(replace(new, manifest=C)) == first
        other = await store.datasets.create_version(replace(new, dataset="other"))
        assert other.dataset == "other"

    async def test_a_request_is_carried_out_once(self, store: Store) -> None:
        """Its repeat is a Duplicate, another body a Mismatch; for versions, heads and code."""
        made = await store.datasets.put_version(NEW, key())
        assert isinstance(made, Kept)
        again = replace(NEW, manifest=B)
        assert await store.datasets.put_version(again, key()) == Duplicate(made.record.resource)
        met = await store.datasets.put_version(again, key(body=b"c"))
        assert isinstance(met, Mismatch)
        assert await append(store, item("a"), request=key("r2")) == 1
        assert isinstance(await append(store, item("b"), request=key("r2")), Duplicate)
        code = await store.datasets.put_code(CODE, key("r3"))
        assert isinstance(code, KeptCode)
        other = replace(CODE, manifest=B)
        assert await store.datasets.put_code(other, key("r3")) == Duplicate(code.record.resource)
        assert [one.version for one in await store.datasets.versions(FACES, 99, 9)] == [1]

    async def test_a_version_over_another_newest_is_stale(self, store: Store) -> None:
        """Nothing is written, no head item goes."""
        await append(store, item("a"))
        frozen = await store.datasets.freeze(FACES)
        assert frozen == Frozen(1, 0, 1)
        await store.datasets.create_version(NEW)
        late = replace(NEW, manifest=B).over(0)
        assert await store.datasets.put_version(late, None, frozen.batch) is Stale.STALE
        assert [one.id for one in await store.datasets.head(FACES, 0, 9)] == ["a"]
        kept = await store.datasets.put_version(late.over(1), None, frozen.batch)
        assert isinstance(kept, Kept)
        assert await store.datasets.head(FACES, 0, 9) == []

    async def test_calls_at_once_give_each_its_number(self, store: Store) -> None:
        """No number is given twice, none is left out."""
        news = [replace(NEW, manifest=ManifestRef(f"sha256:{n:064x}")) for n in range(20)]
        made = await asyncio.gather(*(store.datasets.create_version(new) for new in news))
        assert sorted(one.version for one in made) == list(range(1, 21))

    async def test_a_removed_number_is_not_given_again(self, store: Store) -> None:
        """And the newest that is kept is the latest."""
        await store.datasets.create_version(NEW)
        second = await store.datasets.create_version(replace(NEW, manifest=B))
        gone = FACES._replace(version=2)
        assert await store.datasets.delete_version(gone, key()) == second
        assert await store.datasets.delete_version(gone, key()) == Duplicate(second.resource)
        assert await store.datasets.delete_version(gone, None) is None
        dataset = await store.datasets.dataset(FACES)
        assert dataset is not None
        assert (dataset.latest, dataset.versions) == (1, 1)
        assert (await store.datasets.create_version(replace(NEW, manifest=C))).version == 3

    async def test_what_a_live_job_reads_is_not_removed(self, store: Store) -> None:
        """The users are named."""
        version = await store.datasets.create_version(NEW)
        await store.submit([replace(submission(), reads=(version.resource,))])
        found = await store.datasets.delete_version(FACES._replace(version=1), None)
        assert found == InUse(("jobs/train-1",))
        assert await store.datasets.version(FACES) == version

    async def test_an_append_replaces_where_the_item_stands(self, store: Store) -> None:
        """Counts and bytes follow."""
        assert await append(store, item("a", 5), item("b"), item("a", 7)) == 2
        assert await append(store, item("c", 1), item("a", 2)) == 3
        found = await store.datasets.head(FACES, 0, 9)
        assert [(one.id, one.size) for one in found] == [("a", 2), ("b", 0), ("c", 1)]
        dataset = await store.datasets.dataset(FACES)
        assert dataset is not None
        assert (dataset.head_items, dataset.head_bytes, dataset.latest) == (3, 3, 0)
        (first,) = await store.datasets.head(FACES, 0, 1)
        assert (first.attributes, first.manifest) == ('{"label":3}', C.digest)
        rest = await store.datasets.head(FACES, first.position, 9)
        assert [one.id for one in rest] == ["b", "c"]

    async def test_what_comes_after_a_freeze_is_not_frozen(self, store: Store) -> None:
        """A commit takes what was there, also what an earlier one left behind."""
        assert await store.datasets.freeze(FACES) is None
        await append(store, item("a", 1))
        assert await store.datasets.freeze(FACES) == Frozen(1, 0, 1)
        await append(store, item("a", 4), item("b"))
        frozen = await store.datasets.freeze(FACES)
        assert frozen == Frozen(2, 0, 3)
        await append(store, item("c", 2))
        taken = await store.datasets.head(FACES, 0, 9, frozen.batch)
        assert [(one.id, one.size) for one in taken] == [("a", 1), ("a", 4), ("b", 0)]
        await store.datasets.put_version(NEW, None, frozen.batch)
        assert [one.id for one in await store.datasets.head(FACES, 0, 9)] == ["c"]
        dataset = await store.datasets.dataset(FACES)
        assert dataset is not None
        assert (dataset.head_items, dataset.head_bytes) == (1, 2)

    async def test_lists_have_pages(self, store: Store) -> None:
        """Datasets by name, versions newest first, of one project."""
        for name in ("b", "a", "c"):
            await store.datasets.create_version(replace(NEW, dataset=name))
        await store.datasets.create_version(replace(NEW, project="lab"))
        found = await store.datasets.datasets("default", "", 2)
        assert [one.name for one in found] == ["a", "b"]
        assert [one.name for one in await store.datasets.datasets("default", "b", 9)] == ["c"]
        for manifest in (B, C, D):
            await store.datasets.create_version(replace(NEW, dataset="a", manifest=manifest))
        versions = await store.datasets.versions(DatasetKey("default", "a"), 4, 2)
        assert [one.version for one in versions] == [3, 2]

    async def test_code_is_kept_by_content_and_source(self, store: Store) -> None:
        """Whoever brings the same again gets the same, however much came between."""
        first = await store.datasets.put_code(CODE)
        assert isinstance(first, KeptCode)
        assert (first.record.version, first.unchanged) == (1, False)
        for change in ({"manifest": B}, {"git_commit": "d" * 40}, {"dirty": True}, {"patch": C}):
            await store.datasets.put_code(replace(CODE, **change))
        again = await store.datasets.put_code(replace(CODE, create_time=9, created_by="bob"))
        assert again == KeptCode(first.record, True)
        newest = await store.datasets.code_version("default", "train", 0)
        assert newest is not None
        assert (newest.version, newest.patch) == (5, ManifestRef(C.digest, 3, 1))
        other = await store.datasets.put_code(replace(CODE, code="eval", create_time=9))
        assert isinstance(other, KeptCode)
        page = await store.datasets.code_versions("default", "", None, 2)
        assert [(one.code, one.version) for one in page] == [("eval", 1), ("train", 5)]
        last = (page[-1].create_time, page[-1].code, page[-1].version)
        rest = await store.datasets.code_versions("default", "", last, 9)
        assert [one.version for one in rest] == [4, 3, 2, 1]
        assert await store.datasets.code_versions("default", "eval", None, 9) == [other.record]

    async def test_every_named_manifest_is_a_root(self, store: Store) -> None:
        """Versions, items, heads, code and patches; nothing that was removed."""
        await store.datasets.create_version(replace(NEW, manifest=A, items=B))
        await append(store, item("a", 1))
        await store.datasets.put_code(replace(CODE, manifest=D, patch=ManifestRef("sha256:p")))
        named = {one.digest for one in (A, B, C, D)} | {"sha256:p"}
        assert await store.datasets.manifest_roots() == named
        await store.datasets.delete_version(FACES._replace(version=1), None)
        assert await store.datasets.manifest_roots() == named - {A.digest, B.digest}

    async def test_all_of_it_is_there_after_a_restart(
        self, store: Store, open_store: OpenStore, tmp_path: Path, clock: Clock
    ) -> None:
        """Durable when told so."""
        made = await store.datasets.create_version(NEW)
        await append(store, item("a", 1))
        await store.close()
        again = await open_store(tmp_path, clock)
        try:
            assert await again.datasets.version(FACES) == made
            assert [one.id for one in await again.datasets.head(FACES, 0, 9)] == ["a"]
        finally:
            await again.close()
