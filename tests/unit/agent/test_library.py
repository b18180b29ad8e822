"""Models and code by the link: gone on with after cuts, and every trouble by its name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from pathlib import Path

import grpc
import grpc.aio
import pytest
from device_site import DEVICE, DeviceSite
from waiting import eventually

from hatoba_worker.agent.blobs import BlobStore, Cut, Gone, Wrong
from hatoba_worker.agent.library import ServerLibrary, Way
from hatoba_worker.agent.trees import DeviceTrees

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

CLAIM = (("authorization", f"Bearer dc_{DEVICE}"),)
SIZE = 40_000
MISSING = f"sha256:{'0' * 64}"


class Shelf:
    """A server's library, over a channel that may be closed."""

    def __init__(self, site: DeviceSite, channel: grpc.aio.Channel) -> None:
        self.site = site
        self.way: Way | None = Way(channel, CLAIM)
        self.library = ServerLibrary(lambda: self.way)

    async def read(self, digest: str, offset: int = 0) -> bytes:
        async with aclosing(self.library.read(digest, offset)) as pieces:  # type: ignore[type-var]
            return b"".join([piece async for piece in pieces])


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    site = await asyncio.to_thread(DeviceSite, tmp_path)
    await site.plain()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{site.port}") as channel:
        yield Shelf(site, channel)
    await site.stop()


@pytest.fixture
def data() -> bytes:
    return bytes(number * number % 251 for number in range(SIZE))


async def test_a_chunk_comes_from_any_offset_on(shelf: Shelf, data: bytes) -> None:
    digest = shelf.site.chunk(data)
    for offset in (0, 1, 4_096, 10_000, SIZE - 1, SIZE):
        assert await shelf.read(digest, offset) == data[offset:]


async def test_a_chunk_that_breaks_off_again_and_again_comes_whole(
    shelf: Shelf, data: bytes, tmp_path: Path
) -> None:
    digest = shelf.site.chunk(data)
    blobs = BlobStore(tmp_path / "blobs")
    await asyncio.to_thread(blobs.prepare)
    for tenth in range(1, 10):
        shelf.site.breaks_after = SIZE * tenth // 10
        with pytest.raises(Cut):
            await blobs.fetch(digest, SIZE, shelf.library)
    shelf.site.breaks_after = 0
    path = await blobs.fetch(digest, SIZE, shelf.library)
    assert await asyncio.to_thread(path.read_bytes) == data
    assert blobs.brought == SIZE


async def test_a_whole_tree_comes(shelf: Shelf, tmp_path: Path) -> None:
    files = {"a.txt": b"a" * 10_000, "b.txt": b"b"}
    ref = await asyncio.to_thread(shelf.site.store, "model", files)
    blobs = BlobStore(tmp_path / "blobs")
    trees = DeviceTrees(tmp_path / "device", blobs)
    await asyncio.to_thread(blobs.prepare)
    await asyncio.to_thread(trees.prepare)
    manifest = await shelf.library.manifest(ref.digest)
    root = await trees.bring(ref.digest, manifest, shelf.library)
    found = {
        path.name: await asyncio.to_thread(path.read_bytes)
        for path in (root / "a.txt", root / "b.txt")
    }
    assert found == files


async def test_what_the_server_does_not_have_is_gone(shelf: Shelf) -> None:
    with pytest.raises(Gone, match="NOT_FOUND"):
        await shelf.read(MISSING)
    with pytest.raises(Gone, match="is not stored"):
        await shelf.library.manifest(MISSING)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
    ],
)
async def test_what_may_pass_is_a_cut(shelf: Shelf, data: bytes, code: grpc.StatusCode) -> None:
    digest = shelf.site.chunk(data)
    shelf.site.trouble = code
    with pytest.raises(Cut, match=code.name):
        await shelf.read(digest)
    with pytest.raises(Cut, match=code.name):
        await shelf.library.manifest(digest)


async def test_another_manifest_than_was_asked_for_is_wrong(shelf: Shelf) -> None:
    ref = await asyncio.to_thread(shelf.site.store, "model", {"a.txt": b"a"})
    shelf.site.manifests[MISSING] = shelf.site.manifests[ref.digest]
    with pytest.raises(Wrong, match="something else"):
        await shelf.library.manifest(MISSING)


async def test_without_a_link_it_is_a_cut_at_once(shelf: Shelf) -> None:
    shelf.way = None
    with pytest.raises(Cut, match="not connected"):
        await shelf.read(MISSING)
    with pytest.raises(Cut, match="not connected"):
        await shelf.library.manifest(MISSING)


async def test_a_link_that_is_closed_in_the_middle_is_a_cut(shelf: Shelf, data: bytes) -> None:
    digest = shelf.site.chunk(data)
    shelf.site.flows.clear()
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_outcome(shelf.read(digest)))
        await shelf.site.news.until(lambda: shelf.site.sent)
        assert shelf.way is not None
        shelf.way.close()
    assert isinstance(reading.result(), Cut)


async def _outcome(work: Awaitable[bytes]) -> Cut | bytes:
    try:
        return await work
    except Cut as cut:
        return cut


async def test_who_stops_reading_ends_the_call(shelf: Shelf) -> None:
    digest = shelf.site.chunk(b"x" * (8 << 20))
    pieces = shelf.library.read(digest, 0)
    await anext(pieces)
    assert shelf.site.downloads == 1
    await pieces.aclose()  # type: ignore[attr-defined]

    async def over() -> bool:
        return shelf.site.downloads == 0

    await eventually(over)
    assert shelf.site.sent < 8 << 20
