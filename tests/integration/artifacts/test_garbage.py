"""What nothing names goes, at the second look; what anybody names or is about to name stays."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from hatoba.v1.artifact_pb2 import ENTRY_TYPE_FILE, Manifest
from hatoba_scheduler.config import BlobsConfig
from hatoba_scheduler.control.garbage import RUN_SHARE, Collected
from hatoba_scheduler.errors import Aborted, FailedPrecondition, NotFound
from hatoba_scheduler.store.blob_index import BlobKind
from hatoba_scheduler.store.blobs import LEASE_SECONDS, Piece
from hatoba_scheduler.store.buckets import Bucket
from hatoba_scheduler.store.errors import StorageFailed

A, B, C = b"alpha", b"beta", b"gamma"
LEASED = LEASE_SECONDS * 7 / 6


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def tree(**contents: bytes) -> Manifest:
    manifest = Manifest()
    for path, data in sorted(contents.items()):
        entry = manifest.entries.add(path=path, type=ENTRY_TYPE_FILE, size=len(data))
        entry.chunks.add(sha256=sha(data), size=len(data))
    return manifest


async def put(house: Any, *contents: bytes) -> None:
    async with house.chunks.upload() as upload:
        for content in contents:
            await upload.add(Piece(sha(content), content, last=True))
        await upload.commit()


async def stored(house: Any, *contents: bytes) -> list[bytes]:
    """Which of these are there, without a lease for them."""
    sizes = await house.chunks.on_thread(
        house.chunks.place.sizes, BlobKind.CHUNK, [sha(content) for content in contents]
    )
    return [content for content, size in zip(contents, sizes, strict=True) if size is not None]


async def pass_time(house: Any, seconds: float = LEASED + 1) -> None:
    await house.clock.advance(seconds)


@pytest.fixture
async def house(tmp_path: Path, place: BlobsConfig, opening: Any) -> AsyncIterator[Any]:
    async with opening(tmp_path / "blobs", place) as made:
        yield made


async def test_what_nothing_names_is_marked_and_then_deleted(house: Any) -> None:
    await put(house, A, B)
    kept = await house.chunks.put_manifest(tree(a=A))
    gone = await house.chunks.put_manifest(tree(b=B))
    house.roots.add(kept.digest)
    await pass_time(house)
    assert await house.garbage.collect() == Collected(4, 3, 1, 0, 0)
    await pass_time(house)
    second = await house.garbage.collect()
    assert (second.deleted, second.marked) == (1, 1), "the tree, and its chunk is marked"
    await pass_time(house)
    third = await house.garbage.collect()
    assert (third.deleted, third.deleted_bytes, third.live) == (1, len(B), 2)
    assert await stored(house, A, B) == [A]
    with pytest.raises(NotFound):
        await house.chunks.ref(gone.digest)
    assert await house.chunks.ref(kept.digest) == kept


async def test_a_dry_run_changes_nothing(house: Any) -> None:
    await put(house, A)
    await pass_time(house)
    for _ in range(3):
        assert await house.garbage.collect(only_say=True) == Collected(1, 0, 1, 0, 0)
        await pass_time(house)
    assert await stored(house, A) == [A]


async def test_whoever_asked_for_a_chunk_has_an_hour_to_name_it(house: Any) -> None:
    await put(house, A)
    await pass_time(house)
    await house.garbage.collect()
    assert await house.chunks.missing([sha(A)]) == []
    await pass_time(house, 3_600)
    for _ in range(3):
        assert (await house.garbage.collect()).deleted == 0
    await house.chunks.put_manifest(tree(a=A))
    assert await stored(house, A) == [A]


@pytest.mark.parametrize("how", ["upload", "find", "name"])
async def test_a_marked_chunk_comes_back_to_life(house: Any, how: str) -> None:
    await put(house, A)
    await pass_time(house)
    assert (await house.garbage.collect()).marked == 1
    if how == "upload":
        await put(house, A)
    elif how == "find":
        await house.chunks.missing([sha(A)])
    else:
        await house.chunks.put_manifest(tree(a=A))
    assert (await house.garbage.collect()).deleted == 0
    await pass_time(house)
    assert (await house.garbage.collect()).deleted == 0, "it has to be found unnamed again first"
    assert await stored(house, A) == [A]


async def test_a_tree_lives_as_long_as_its_lease_and_its_chunks_as_long_as_the_tree(
    house: Any,
) -> None:
    await put(house, A)
    ref = await house.chunks.put_manifest(tree(a=A))
    for _ in range(4):
        await pass_time(house, 3_000)
        assert (await house.garbage.collect()).marked == 0
        await house.chunks.ref(ref.digest)
    for _ in range(3):
        await pass_time(house)
        await house.garbage.collect()
    assert await stored(house, A) == []


async def test_a_name_that_a_job_holds_keeps_a_tree(house: Any, tmp_path: Path) -> None:
    await put(house, A)
    ref = await house.chunks.put_manifest(tree(a=A))
    await pass_time(house)
    await house.garbage.collect()
    house.roots.add(ref.digest)
    await house.garbage.collect()
    house.roots.clear()
    assert await house.chunks.ref(ref.digest) == ref
    assert await stored(house, A) == [A]


async def test_a_damaged_tree_stops_the_run_instead_of_losing_what_it_named(
    tmp_path: Path, opening: Any
) -> None:
    async with opening(tmp_path / "blobs") as house:
        await put(house, A)
        ref = await house.chunks.put_manifest(tree(a=A))
        house.roots.add(ref.digest)
        await pass_time(house)
        path = tmp_path / "blobs" / "manifests" / ref.digest.removeprefix("sha256:")
        path.write_bytes(b"")
        for _ in range(3):
            with pytest.raises(StorageFailed, match="damaged"):
                await house.garbage.collect()
        assert await stored(house, A) == [A]


async def test_what_somebody_else_put_there_is_left_alone(
    house: Any, tmp_path: Path, place: BlobsConfig
) -> None:
    await put(house, A)
    strays = ["chunks/ab/README", f"manifests/{'G' * 64}"]
    for key in strays:
        if place.url:
            await asyncio.to_thread(obstore.put, Bucket(place).store, key, b"theirs")
        else:
            (tmp_path / "blobs" / key).write_bytes(b"theirs")
    await pass_time(house)
    await house.garbage.collect()
    await pass_time(house)
    assert (await house.garbage.collect()).deleted == 1
    for key in strays:
        if place.url:
            found = await asyncio.to_thread(obstore.head, Bucket(place).store, key)
            assert found["size"] == 6
        else:
            assert (tmp_path / "blobs" / key).read_bytes() == b"theirs"


async def test_a_run_that_takes_too_long_stops(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(house, A)
    await pass_time(house)
    roots = house.manifest_roots

    async def slow_roots() -> set[str]:
        await pass_time(house, RUN_SHARE * LEASE_SECONDS + 1)
        found: set[str] = await roots()
        return found

    monkeypatch.setattr(house, "manifest_roots", slow_roots)
    with pytest.raises(Aborted, match="took longer"):
        await house.garbage.collect()
    assert await stored(house, A) == [A]


async def test_the_loop_collects_by_itself_every_hour(house: Any) -> None:
    await put(house, A)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(house.garbage.run_forever(), name="garbage")
        for hour in range(1, 5):
            await pass_time(house, 3_601)
            await house.garbage.collect(only_say=True)
            assert (await stored(house, A) == [A]) == (hour < 3)
        task.cancel()


async def test_uploads_and_collection_at_once_leave_every_tree_complete(house: Any) -> None:
    """Chunks of the same few contents are named, dropped, marked and deleted all the time."""
    contents = [bytes([number]) * 100 for number in range(6)]
    done = asyncio.Event()

    async def collect() -> None:
        while not done.is_set():
            await pass_time(house)
            await house.garbage.collect()

    async def name(first: int) -> None:
        for number in range(12):
            mine = contents[(first + number) % len(contents)]
            wanted = tree(a=mine, b=contents[number % len(contents)])
            try:
                await put(house, *[mine, contents[number % len(contents)]])
                ref = await house.chunks.put_manifest(wanted)
            except FailedPrecondition:
                # A lease may pass between two calls: an hour is a moment here.
                continue
            house.roots.add(ref.digest)
            try:
                await house.chunks.ref(ref.digest)
            except NotFound:
                house.roots.discard(ref.digest)
                continue
            if number % 2:
                house.roots.discard(ref.digest)

    async with asyncio.TaskGroup() as group:
        group.create_task(collect(), name="collect")
        async with asyncio.TaskGroup() as names:
            for first in range(4):
                names.create_task(name(first), name=f"name-{first}")
        done.set()
    for digest in house.roots:
        manifest = await house.chunks.manifest(digest)
        wanted = [chunk.sha256 for entry in manifest.entries for chunk in entry.chunks]
        assert await house.chunks.missing(wanted) == []
