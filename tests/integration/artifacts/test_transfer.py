"""Trees to a server and back."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from hatoba.artifacts.errors import BadManifest, DigestMismatch, TreeChanged
from hatoba.artifacts.manifest import CHUNK_BYTES, MIB, canonical_bytes, digest_of
from hatoba.artifacts.pack import PackedTree, pack_tree
from hatoba.artifacts.scan import Selection
from hatoba.artifacts.transfer import TransferOptions, download_tree, upload_tree
from hatoba.errors import NotFound, Unavailable
from hatoba.streams import open_stream
from hatoba.v1.artifact_pb2 import (
    ENTRY_TYPE_FILE,
    DownloadChunksRequest,
    DownloadChunksResponse,
    GetManifestRequest,
    Manifest,
    UploadChunksRequest,
)


class Told:
    """What a transfer says of its progress."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    @property
    def options(self) -> TransferOptions:
        return TransferOptions(progress=lambda done, total: self.steps.append((done, total)))


async def packed(root: Path, selection: Selection = Selection.CODE) -> PackedTree:
    return await asyncio.to_thread(pack_tree, root, selection)


async def test_a_tree_goes_up_and_comes_down_the_same(
    server: Any, source: Path, tmp_path: Path
) -> None:
    up, down = Told(), Told()
    ref = await upload_tree(server.stub, source, up.options)
    size = (source / "weights.bin").stat().st_size
    small = sum(path.stat().st_size for path in (source / "pkg").iterdir())
    assert (ref.total_bytes, ref.files) == (size + small, 22)
    assert up.steps[0] == (0, ref.total_bytes)
    assert up.steps[-1] == (ref.total_bytes, ref.total_bytes)
    assert await download_tree(server.stub, ref.digest, tmp_path / "copy", down.options) == ref
    assert down.steps[-1] == (ref.total_bytes, ref.total_bytes)
    assert (await packed(tmp_path / "copy")).ref == ref


async def test_a_known_tree_is_not_sent_again(server: Any, source: Path) -> None:
    first = await upload_tree(server.stub, source)
    server.servicer.entered.clear()
    (source / "new.py").write_text("1")
    tree, told = await packed(source), Told()
    await upload_tree(server.stub, tree, told.options)
    assert told.steps[-1] == (1, 1)
    server.servicer.entered.clear()
    assert await upload_tree(server.stub, tree) != first
    assert not server.servicer.entered.is_set()


async def test_an_empty_tree_is_a_tree(server: Any, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    ref = await upload_tree(server.stub, tmp_path / "void")
    assert (ref.total_bytes, ref.files) == (0, 0)
    await download_tree(server.stub, ref.digest, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


async def test_a_broken_upload_goes_on_with_the_missing_chunks(
    serving: Any, source: Path, tmp_path: Path
) -> None:
    tree = await packed(source)
    digests = list(tree.sources)
    async with serving(tmp_path / "blobs") as server:
        async with open_stream(server.stub.UploadChunks()) as call:
            for sha256 in digests[:10]:
                data = await asyncio.to_thread(read, tree, sha256)
                await call.write(UploadChunksRequest(sha256=sha256, data=data, last=True))
            await call.done_writing()
            await call
        server.servicer.entered.clear()
        server.servicer.left.clear()
        async with open_stream(server.stub.UploadChunks()) as call:
            await call.write(UploadChunksRequest(sha256=digests[10], data=b"beg"))
            await server.servicer.entered.wait()
        await server.servicer.left.wait()
    async with serving(tmp_path / "blobs") as server:
        told = Told()
        ref = await upload_tree(server.stub, tree, told.options)
        expected = sum(tree.sources[sha256].size for sha256 in digests[10:])
        assert told.steps[-1] == (expected, expected)
        await download_tree(server.stub, ref.digest, tmp_path / "copy")
        assert (await packed(tmp_path / "copy")).ref == ref


def read(tree: PackedTree, sha256: bytes) -> bytes:
    source = tree.sources[sha256]
    with open(source.path, "rb") as file:
        file.seek(source.offset)
        return file.read(source.size)


@pytest.mark.parametrize("change", ["other bytes", "shorter", "gone"])
async def test_a_file_that_changed_after_packing_is_named(
    server: Any, source: Path, change: str
) -> None:
    tree = await packed(source)
    path = source / "weights.bin"
    if change == "gone":
        path.unlink()
    else:
        size = path.stat().st_size if change == "other bytes" else 10
        path.write_bytes(b"!" * size)
    with pytest.raises(TreeChanged) as caught:
        await upload_tree(server.stub, tree)
    assert caught.value.path == str(path)
    ref = await upload_tree(server.stub, source)
    assert ref.digest != tree.ref.digest


async def test_a_server_that_is_gone_is_told(serving: Any, source: Path, tmp_path: Path) -> None:
    async with serving(tmp_path / "blobs") as server:
        stub = server.stub
        ref = await upload_tree(stub, source)
        with pytest.raises(NotFound):
            await download_tree(stub, "sha256:" + "0" * 64, tmp_path / "copy")
        quick = TransferOptions(call_seconds=0.5)
        server.servicer.entered.clear()
        await server.stop()
        with pytest.raises(Unavailable):
            await upload_tree(stub, source, quick)
        with pytest.raises(Unavailable):
            await download_tree(stub, ref.digest, tmp_path / "copy", quick)
    assert not (tmp_path / "copy").exists()


async def test_a_cancelled_download_leaves_nothing(
    server: Any, source: Path, tmp_path: Path
) -> None:
    ref = await upload_tree(server.stub, source)
    begun = asyncio.Event()
    work = tmp_path / "work"

    def progress(done: int, total: int) -> None:
        if done:
            begun.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(
            download_tree(
                server.stub, ref.digest, work / "copy", TransferOptions(progress=progress)
            ),
            name="download",
        )
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert list(work.iterdir()) == []


async def test_memory_stays_small_whatever_the_size(server: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(4 * CHUNK_BYTES))
    tracemalloc.start()
    try:
        ref = await upload_tree(server.stub, source)
        await download_tree(server.stub, ref.digest, tmp_path / "copy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Client and server in one process, each with a few pieces of 1 MiB; straight to a bucket and
    # from it go a few whole chunks at once.
    assert peak < (48 if server.settings.url else 20) * MIB
    assert (tmp_path / "copy" / "big").read_bytes() == (source / "big").read_bytes()


# -- a server that lies -------------------------------------------------------------------------


class Liar:
    """A stub whose server sends this manifest and these pieces, whatever is asked."""

    def __init__(self, manifest: Manifest, pieces: list[DownloadChunksResponse]) -> None:
        self._manifest = manifest
        self._pieces = pieces

    async def GetManifest(self, request: GetManifestRequest, **options: Any) -> Manifest:
        return self._manifest

    def DownloadChunks(self, request: DownloadChunksRequest, **options: Any) -> Any:
        return LyingStream(iter(self._pieces))


@dataclasses.dataclass
class LyingStream:
    pieces: Any
    cancelled: bool = False

    def __aiter__(self) -> LyingStream:
        return self

    async def __anext__(self) -> DownloadChunksResponse:
        try:
            piece: DownloadChunksResponse = next(self.pieces)
        except StopIteration:
            raise StopAsyncIteration from None
        return piece

    def cancel(self) -> bool:
        self.cancelled = True
        return True


def one_file(path: str, data: bytes) -> tuple[Manifest, str]:
    manifest = Manifest()
    entry = manifest.entries.add(path=path, type=ENTRY_TYPE_FILE, mode=0o644, size=len(data))
    entry.chunks.add(sha256=hashlib.sha256(data).digest(), size=len(data))
    return manifest, digest_of(canonical_bytes(manifest))


async def test_a_manifest_of_another_digest_is_not_believed(tmp_path: Path) -> None:
    manifest, _ = one_file("a", b"alpha")
    stub: Any = Liar(manifest, [])
    with pytest.raises(DigestMismatch):
        await download_tree(stub, "sha256:" + "0" * 64, tmp_path / "copy")


async def test_a_malicious_manifest_is_not_unpacked(tmp_path: Path) -> None:
    manifest, digest = one_file("../evil", b"alpha")
    stub: Any = Liar(manifest, [DownloadChunksResponse(data=b"alpha", last=True)])
    with pytest.raises(BadManifest):
        await download_tree(stub, digest, tmp_path / "copy")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "pieces",
    [
        [DownloadChunksResponse(data=b"other", last=True)],
        [DownloadChunksResponse(data=b"alpha and more", last=True)],
        [DownloadChunksResponse(position=7, data=b"alpha", last=True)],
        [DownloadChunksResponse(data=b"alp")],
        [],
    ],
)
async def test_content_of_another_digest_is_not_kept(
    tmp_path: Path, pieces: list[DownloadChunksResponse]
) -> None:
    manifest, digest = one_file("a", b"alpha")
    stub: Any = Liar(manifest, pieces)
    with pytest.raises(DigestMismatch):
        await download_tree(stub, digest, tmp_path / "copy")
    assert os.listdir(tmp_path) == []
