"""The chunk store on a disk: durable before it counts, nothing half, and a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hatoba.artifacts.transfer import upload_tree
from hatoba.errors import Exhausted
from hatoba.v1.artifact_pb2 import Manifest
from hatoba_scheduler.errors import NotFound
from hatoba_scheduler.store import blob_files, disk
from hatoba_scheduler.store.blob_index import BlobKind
from hatoba_scheduler.store.blobs import ChunkStore, Piece
from hatoba_scheduler.store.errors import StorageFailed, StorageFull

A, B = b"alpha", b"beta"


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def put(store: ChunkStore, *contents: bytes) -> None:
    async with store.upload() as upload:
        for content in contents:
            await upload.add(Piece(sha(content), content, last=True))
        await upload.commit()


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


async def test_chunks_and_manifests_outlive_the_process(tmp_path: Path, opening: Any) -> None:
    async with opening(tmp_path) as house:
        store = house.chunks
        await put(store, A, B)
        ref = await store.put_manifest(Manifest())
    name = sha(A).hex()
    assert (tmp_path / "chunks" / name[:2] / name).read_bytes() == A
    async with opening(tmp_path) as house:
        store = house.chunks
        assert await store.missing([sha(A), sha(b"x"), sha(B), sha(b"x")]) == [sha(b"x")]
        assert await store.manifest(ref.digest) == Manifest()


async def test_chunks_of_an_earlier_version_are_found_where_they_are_now(
    tmp_path: Path, opening: Any
) -> None:
    name = sha(A).hex()
    old = tmp_path / "chunks" / name[:2] / name[2:4]
    old.mkdir(parents=True)
    (old / name).write_bytes(A)
    for _ in range(2):
        async with opening(tmp_path) as house:
            assert await house.chunks.missing([sha(A), sha(B)]) == [sha(B)]
    assert files(tmp_path) == [name]
    assert not old.exists()


async def test_what_an_earlier_process_left_unfinished_is_removed(
    tmp_path: Path, opening: Any
) -> None:
    async with opening(tmp_path):
        (tmp_path / "tmp" / "half").write_bytes(b"half")
    async with opening(tmp_path):
        assert files(tmp_path) == []


class Disk:
    """Stands in for `sync_all`: notes what is synced, and fails at the nth time."""

    def __init__(self, fail_at: int) -> None:
        self.fail_at = fail_at
        self.synced: list[list[Path]] = []

    def __call__(self, paths: Any, *, anchor: Path) -> None:
        self.synced.append(list(paths))
        if len(self.synced) == self.fail_at:
            raise OSError(errno.EIO, "broken")


@pytest.mark.parametrize("fail_at", [1, 2])
async def test_a_chunk_that_did_not_reach_the_disk_does_not_count(
    tmp_path: Path, opening: Any, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    async with opening(tmp_path) as house:
        store = house.chunks
        broken = Disk(fail_at)
        monkeypatch.setattr(blob_files, "sync_all", broken)
        with pytest.raises(StorageFailed):
            await put(store, A, B)
        assert await store.missing([sha(A), sha(B)]) == [sha(A), sha(B)]
        assert files(tmp_path) == []
        await put(store, A)
        assert await store.missing([sha(A)]) == []


async def test_content_is_synced_before_the_name_and_both_before_the_answer(
    tmp_path: Path, opening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[str], list[str]]] = []

    def sync_all(paths: Any, *, anchor: Path) -> None:
        seen.append((list(paths), files(tmp_path / "chunks")))

    async with opening(tmp_path) as house:
        store = house.chunks
        monkeypatch.setattr(blob_files, "sync_all", sync_all)
        await put(store, A)
    name = sha(A).hex()
    (contents, before), (directories, after) = seen
    assert [Path(path).parent.name for path in contents] == ["tmp"]
    assert before == []
    assert after == [name]
    assert directories == [str(tmp_path / "chunks" / name[:2])]


async def test_a_chunk_counts_only_once_its_name_is_on_the_disk(
    tmp_path: Path, opening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opening(tmp_path) as house:
        store = house.chunks
        counted: list[int | None] = []

        def sync_all(paths: Any, *, anchor: Path) -> None:
            counted.extend(store.place.sizes(BlobKind.CHUNK, [sha(A)]))

        monkeypatch.setattr(blob_files, "sync_all", sync_all)
        await put(store, A)
        assert counted == [None, None]
        assert await store.missing([sha(A)]) == []


async def test_the_same_chunk_by_many_streams_at_once_is_one(tmp_path: Path, opening: Any) -> None:
    async with opening(tmp_path) as house:
        store = house.chunks
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(put(store, A, B), name="put")
        assert files(tmp_path) == sorted([sha(A).hex(), sha(B).hex()])


async def test_many_chunks_are_synced_together(tmp_path: Path, opening: Any) -> None:
    contents = [b"%d" % number for number in range(600)]
    async with opening(tmp_path) as house:
        store = house.chunks
        await put(store, *contents)
        assert await store.missing(map(sha, contents)) == []
        read = [
            piece.data async for pieces in store.read([*map(sha, contents)]) for piece in pieces
        ]
    assert read == contents


def test_files_are_synced_one_by_one_where_syncfs_cannot_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_HAS_SYNCFS", False)
    synced: list[Path] = []
    monkeypatch.setattr(disk, "sync", synced.append)
    paths = [tmp_path / str(number) for number in range(20)]
    disk.sync_all(paths, anchor=tmp_path)
    assert synced == paths


@pytest.mark.parametrize(
    ("release", "reports"),
    [("5.7.19", False), ("4.19.0-21-amd64", False), ("5.8.0", True), ("6.18.44-fc", True)],
)
def test_syncfs_is_trusted_from_the_kernel_on_that_reports_errors(
    release: str, reports: bool
) -> None:
    assert disk._reports_errors(release) is reports


async def test_a_damaged_manifest_is_not_handed_out(tmp_path: Path, opening: Any) -> None:
    async with opening(tmp_path) as house:
        store = house.chunks
        ref = await store.put_manifest(Manifest())
        (tmp_path / "manifests" / ref.digest.removeprefix("sha256:")).write_bytes(b"\n\x00")
        with pytest.raises(StorageFailed, match="damaged"):
            await store.manifest(ref.digest)


async def test_a_missing_chunk_is_told_before_the_first_piece(tmp_path: Path, opening: Any) -> None:
    async with opening(tmp_path) as house:
        store = house.chunks
        await put(store, A)
        pieces = store.read([sha(A), sha(B)])
        with pytest.raises(NotFound, match=sha(B).hex()):
            await anext(pieces)


async def test_the_reserve_is_left_to_others(tmp_path: Path, opening: Any) -> None:
    async with opening(tmp_path, reserve_bytes=1 << 60) as house:
        store = house.chunks
        with pytest.raises(StorageFull, match="reserved"):
            await put(store, A)
        with pytest.raises(StorageFull):
            await store.put_manifest(Manifest())
    assert files(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("reserve_bytes", [0, 1 << 20])
async def test_a_full_disk_refuses_uploads_and_goes_on_serving(
    small_disk: Path, tmp_path: Path, serving: Any, reserve_bytes: int
) -> None:
    small, big = tmp_path / "small-tree", tmp_path / "big-tree"
    for root in (small, big):
        root.mkdir()
    (small / "a").write_bytes(A)
    (big / "b").write_bytes(os.urandom(6 << 20))
    async with serving(
        small_disk / "blobs", reserve_bytes=reserve_bytes, state=tmp_path / "state"
    ) as server:
        first = await upload_tree(server.stub, small)
        with pytest.raises(Exhausted) as caught:
            await upload_tree(server.stub, big)
        assert caught.value.reason == "STORE_FULL"
        assert sha(A).hex() in server.files()
        assert len(server.files()) == 2
        (big / "b").write_bytes(b"small enough")
        second = await upload_tree(server.stub, big)
        assert await server.store.ref(second.digest) == second
        assert await server.store.ref(first.digest) == first


async def test_an_upload_that_is_cancelled_leaves_no_temporary_file(
    tmp_path: Path, opening: Any
) -> None:
    async with opening(tmp_path) as house:
        store = house.chunks
        begun = asyncio.Event()

        async def upload() -> None:
            async with store.upload() as stream:
                await stream.add(Piece(sha(A), A, last=True))
                await stream.add(Piece(sha(B), bytes(1 << 20), last=False))
                begun.set()
                await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(upload(), name="upload")
            await begun.wait()
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert files(tmp_path) == [sha(A).hex()]
        assert await store.missing([sha(A), sha(B)]) == [sha(B)]
