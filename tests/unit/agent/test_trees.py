"""Models as trees: only changed chunks move, a cut is gone on with, what rots is found."""

from __future__ import annotations

import asyncio
import os
import random
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hatoba.artifacts.manifest import CHUNK_BYTES, canonical_bytes, digest_of
from hatoba.artifacts.pack import PackedTree, pack_tree
from hatoba.artifacts.scan import Selection
from hatoba.v1 import artifact_pb2
from hatoba_worker.agent.blobs import BlobStore, Cut, Gone, Wrong
from hatoba_worker.agent.trees import DeviceTrees

FILES = 100
SIZE = 10_000


@dataclass
class Shop:
    """Has all chunks of the trees that were packed, and counts what it gives."""

    chunks: dict[str, bytes] = field(default_factory=dict)
    given: int = 0
    cut_after: int = 0

    async def read(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        if digest not in self.chunks:
            raise Gone(digest)
        for start in range(offset, len(self.chunks[digest]), 4_096):
            piece = self.chunks[digest][start : start + 4_096]
            if self.cut_after and self.given + len(piece) > self.cut_after:
                self.cut_after = 0
                raise Cut("the link broke")
            self.given += len(piece)
            yield piece

    def take(self, root: Path) -> tuple[str, artifact_pb2.Manifest]:
        packed: PackedTree = pack_tree(root, Selection.EVERYTHING)
        packed.load()
        for entry in packed.manifest.entries:
            if entry.chunks:
                data = (root / entry.path).read_bytes()
                for number, chunk in enumerate(entry.chunks):
                    start = number * CHUNK_BYTES
                    name = f"sha256:{chunk.sha256.hex()}"
                    self.chunks[name] = data[start : start + chunk.size]
        return packed.ref.digest, packed.manifest


@dataclass
class Disk:
    """A device's disk, a shop, and a model of many files."""

    trees: DeviceTrees
    blobs: BlobStore
    shop: Shop
    root: Path

    def model(self, name: str, changed: int = 0) -> tuple[str, artifact_pb2.Manifest]:
        root = self.root / name
        root.mkdir()
        for number in range(FILES):
            seed = 1_000 + number if number < changed else number
            (root / f"w{number:03d}").write_bytes(random.Random(seed).randbytes(SIZE))
        (root / "run.sh").write_bytes(b"#!/bin/sh\n")
        (root / "run.sh").chmod(0o755)
        (root / "latest").symlink_to("w000")
        return self.shop.take(root)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    blobs = BlobStore(tmp_path / "blobs")
    trees = DeviceTrees(tmp_path / "trees", blobs)
    blobs.prepare()
    trees.prepare()
    return Disk(trees, blobs, Shop(), tmp_path)


def same(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


async def test_a_tree_comes_whole_and_nobody_writes_to_it(disk: Disk) -> None:
    digest, manifest = await asyncio.to_thread(disk.model, "one")
    path = await disk.trees.bring(digest, manifest, disk.shop)
    assert await asyncio.to_thread(same, path, disk.root / "one")
    assert await asyncio.to_thread(disk.trees.has, digest)
    modes = {stat.S_IMODE((path / name).lstat().st_mode) for name in ("w001", "run.sh")}
    assert modes == {0o444, 0o555}
    assert await asyncio.to_thread(os.readlink, path / "latest") == "w000"
    given = disk.shop.given
    await disk.trees.bring(digest, manifest, disk.shop)
    assert disk.shop.given == given
    assert await asyncio.to_thread(os.listdir, disk.root / "blobs") == []


async def test_of_new_weights_only_what_changed_moves(disk: Disk) -> None:
    one, two = [await asyncio.to_thread(disk.model, *of) for of in (("one",), ("two", 10))]
    await disk.trees.bring(*one, disk.shop)
    disk.shop.given = 0
    plan = await asyncio.to_thread(disk.trees.plan, two[1])
    assert plan.to_bring == 10 * SIZE
    assert plan.on_disk == FILES * SIZE + len(b"#!/bin/sh\n")
    path = await disk.trees.bring(*two, disk.shop)
    assert disk.shop.given == 10 * SIZE
    assert await asyncio.to_thread(same, path, disk.root / "two")


async def test_of_a_large_file_only_its_changed_chunks_move(disk: Disk) -> None:
    data = random.Random(1).randbytes(2 * CHUNK_BYTES + 1_000)

    def made(name: str, content: bytes) -> tuple[str, artifact_pb2.Manifest]:
        (disk.root / name).mkdir()
        (disk.root / name / "weights").write_bytes(content)
        return disk.shop.take(disk.root / name)

    one = await asyncio.to_thread(made, "one", data)
    two = await asyncio.to_thread(made, "two", data[:-1_000] + bytes(1_000))
    await disk.trees.bring(*one, disk.shop)
    disk.shop.given = 0
    path = await disk.trees.bring(*two, disk.shop)
    assert disk.shop.given == 1_000
    assert await asyncio.to_thread(same, path, disk.root / "two")


async def test_a_cut_is_gone_on_with(disk: Disk) -> None:
    digest, manifest = await asyncio.to_thread(disk.model, "one")
    disk.shop.cut_after = 555_555
    with pytest.raises(Cut):
        await disk.trees.bring(digest, manifest, disk.shop)
    assert not await asyncio.to_thread(disk.trees.has, digest)
    other = DeviceTrees(disk.root / "trees", disk.blobs)
    await asyncio.to_thread(other.prepare)
    path = await other.bring(digest, manifest, disk.shop)
    assert await asyncio.to_thread(same, path, disk.root / "one")
    assert disk.shop.given == FILES * SIZE + len(b"#!/bin/sh\n")


async def test_what_rots_in_an_old_tree_is_brought_again(disk: Disk) -> None:
    one, two = [await asyncio.to_thread(disk.model, *of) for of in (("one",), ("two", 10))]
    path = await disk.trees.bring(*one, disk.shop)

    def rot() -> None:
        (path / "w050").chmod(0o600)
        (path / "w050").write_bytes(bytes(SIZE))

    await asyncio.to_thread(rot)
    disk.shop.given = 0
    path = await disk.trees.bring(*two, disk.shop)
    assert disk.shop.given == 11 * SIZE
    assert await asyncio.to_thread(same, path, disk.root / "two")


@pytest.mark.parametrize("harm", ["bytes", "size", "link", "gone", "manifest", "nonsense"])
async def test_a_tree_that_is_not_what_it_is_called_is_removed(disk: Disk, harm: str) -> None:
    digest, manifest = await asyncio.to_thread(disk.model, "one")
    path = await disk.trees.bring(digest, manifest, disk.shop)
    assert await asyncio.to_thread(disk.trees.check, digest)

    def damage() -> None:
        victim = path / "w003"
        victim.chmod(0o600)
        if harm == "bytes":
            victim.write_bytes(bytes(SIZE))
        elif harm == "size":
            victim.write_bytes(victim.read_bytes() + b"x")
        elif harm == "gone":
            victim.unlink()
        elif harm == "link":
            (path / "latest").unlink()
            (path / "latest").symlink_to("w001")
        else:
            nonsense = b"\xff damaged" if harm == "nonsense" else b""
            path.with_name(f"{path.name}.manifest").write_bytes(nonsense)

    await asyncio.to_thread(damage)
    assert not await asyncio.to_thread(disk.trees.check, digest)
    assert not await asyncio.to_thread(disk.trees.has, digest)
    again = await disk.trees.bring(digest, manifest, disk.shop)
    assert await asyncio.to_thread(same, again, disk.root / "one")


async def test_another_manifest_than_its_digest_says_is_refused(disk: Disk) -> None:
    _, manifest = await asyncio.to_thread(disk.model, "one")
    with pytest.raises(Wrong, match="something else"):
        await disk.trees.bring(f"sha256:{'0' * 64}", manifest, disk.shop)
    assert disk.shop.given == 0


async def test_what_stays_in_a_bucket_is_nothing_for_a_device(disk: Disk) -> None:
    manifest = artifact_pb2.Manifest()
    entry = manifest.entries.add(path="big", type=artifact_pb2.ENTRY_TYPE_FILE, size=5)
    entry.external.uri, entry.external.etag = "s3://bucket/big", "e"
    with pytest.raises(Wrong, match="stay in a bucket"):
        await disk.trees.bring(digest_of(canonical_bytes(manifest)), manifest, disk.shop)


async def test_a_collection_keeps_what_it_is_told_to(disk: Disk) -> None:
    one, two = [await asyncio.to_thread(disk.model, *of) for of in (("one",), ("two", 10))]
    for tree in (one, two):
        await disk.trees.bring(*tree, disk.shop)
    under_way = disk.root / "trees" / f"{'0' * 64}.partial-00"
    await asyncio.to_thread(under_way.mkdir)
    await asyncio.to_thread(disk.trees.collect, {two[0]})
    assert await asyncio.to_thread(under_way.is_dir)
    assert not await asyncio.to_thread(disk.trees.has, one[0])
    assert await asyncio.to_thread(disk.trees.check, two[0])
