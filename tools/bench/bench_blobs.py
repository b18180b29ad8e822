"""Trees to the server and back, against a plain copy of a file that is hashed on the way."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from bench_house import NULL, server
from bench_idle import memory, reset_peak
from bench_report import Figure, Measured

from hatoba.artifacts.pack import pack_tree
from hatoba.artifacts.scan import Selection
from hatoba.artifacts.scan_cache import RACY_NS, ScanCache
from hatoba.artifacts.transfer import TransferOptions, download_tree, upload_tree
from hatoba.v1 import artifact_pb2_grpc, common_pb2

MIB = 1 << 20
BIG_BYTES = 1 << 30
SHARE = 0.5
GROWTH_MIB = 64.0

SMALL_FILES = 100_000
FOLDER_FILES = 1_000
SMALL_BYTES = 1_500
PLAIN_FILES = 10_000
PUSHED = 5_000.0
AGAIN = 10.0


@dataclass(frozen=True, slots=True)
class Remote:
    """A server's calls for trees, and its process."""

    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub
    options: TransferOptions
    pid: int


@asynccontextmanager
async def _remote(work: Path) -> AsyncIterator[Remote]:
    async with (
        server(work, config=NULL) as house,
        grpc.aio.insecure_channel(house.address) as channel,
    ):
        options = TransferOptions((("authorization", f"Bearer {house.token()}"),))
        yield Remote(artifact_pb2_grpc.ArtifactServiceStub(channel), options, house.pid)


# -- one big file ---------------------------------------------------------------------------------


async def big_file(work: Path) -> list[Figure]:
    """1 GiB up, packing included, and down, and what it adds to the memory of either side.

    The floor reads the same file, hashes it and writes it durably, in one loop; the better of two.
    """
    tree = work / "tree"
    tree.mkdir()
    await asyncio.to_thread(_random_file, tree / "weights.bin")
    floors = [await asyncio.to_thread(_copy, tree / "weights.bin", work / "before")]
    async with _remote(work) as remote:
        await _warm(remote, work)
        up = await _grown(remote, lambda: _up(remote, tree))
        ref = await _up(remote, tree)
        fetched = work / "fetched"
        down = await _grown(
            remote, lambda: download_tree(remote.stub, ref.digest, fetched, remote.options)
        )
    floors.append(await asyncio.to_thread(_copy, tree / "weights.bin", work / "after"))
    floor = max(floors)
    return [
        Measured("upload_1gib", up.rate, "MiB/s", floor).share_of_floor(SHARE),
        Measured("download_1gib", down.rate, "MiB/s", floor).share_of_floor(SHARE),
        Measured("transfer_rss_server", max(up.server, down.server), "MiB").at_most(GROWTH_MIB),
        Measured("transfer_rss_client", max(up.client, down.client), "MiB").at_most(GROWTH_MIB),
    ]


@dataclass(frozen=True, slots=True)
class Grown:
    """A rate in MiB/s, and by how many MiB the peaks of both processes rose."""

    rate: float
    server: float
    client: float


async def _grown(remote: Remote, move: Callable[[], Awaitable[object]]) -> Grown:
    pids = (remote.pid, os.getpid())
    before = [memory(pid, "VmRSS") for pid in pids]
    for pid in pids:
        reset_peak(pid)
    began = time.perf_counter()
    await move()
    seconds = time.perf_counter() - began
    grown = [(memory(pid, "VmHWM") - rss) / MIB for pid, rss in zip(pids, before, strict=True)]
    return Grown(BIG_BYTES / MIB / seconds, *grown)


async def _warm(remote: Remote, work: Path) -> None:
    """Have both sides load what they need, so that it is not counted as growth."""
    tree = work / "warm"
    tree.mkdir()
    (tree / "a").write_bytes(os.urandom(MIB))
    ref = await _up(remote, tree)
    await download_tree(remote.stub, ref.digest, work / "warm-fetched", remote.options)


async def _up(remote: Remote, tree: Path) -> common_pb2.ManifestRef:
    packed = await asyncio.to_thread(pack_tree, tree, Selection.EVERYTHING)
    return await upload_tree(remote.stub, packed, remote.options)


def _random_file(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(BIG_BYTES // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())


def _copy(source: Path, target: Path) -> float:
    """The rate in MiB/s."""
    sha = hashlib.sha256()
    began = time.perf_counter()
    with source.open("rb") as read, target.open("wb") as written:
        while data := read.read(MIB):
            sha.update(data)
            written.write(data)
        written.flush()
        os.fsync(written.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return BIG_BYTES / MIB / seconds


# -- many small files -----------------------------------------------------------------------------


async def small_files(work: Path) -> list[Figure]:
    """A folder of 100,000 small files pushed, and pushed again as it is.

    The floor writes small files, one after the other, and brings them to the disk at the end.
    """
    tree, cache = work / "tree", ScanCache(work / "scans.db")
    await asyncio.to_thread(_small_tree, tree)
    floor = await asyncio.to_thread(_plain_rate, work / "plain")
    # What was written just now would not be taken for unchanged.
    await asyncio.sleep(1.5 * RACY_NS / 1e9)
    async with _remote(work) as remote:
        first = await _push(remote, tree, cache)
        again = min([await _push(remote, tree, cache) for _ in range(3)])
    return [
        Measured("push_small_files", SMALL_FILES / first, "files/s", floor).at_least(PUSHED),
        Measured("push_again", first / again, "x faster").at_least(AGAIN),
    ]


async def _push(remote: Remote, tree: Path, cache: ScanCache) -> float:
    """Seconds from the look at the folder until all of it is stored."""
    began = time.perf_counter()
    packed = await asyncio.to_thread(lambda: pack_tree(tree, Selection.EVERYTHING, cache=cache))
    ref = await upload_tree(remote.stub, packed, remote.options)
    if ref.files != SMALL_FILES:
        raise RuntimeError(f"{ref.files} files were stored")
    return time.perf_counter() - began


def _small_tree(root: Path) -> None:
    for folder in range(SMALL_FILES // FOLDER_FILES):
        place = root / f"class-{folder:03}"
        place.mkdir(parents=True)
        for number in range(FOLDER_FILES):
            _write_small(place / f"item-{number:04}.bin")


def _write_small(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(os.urandom(SMALL_BYTES))


def _plain_rate(root: Path) -> float:
    root.mkdir()
    began = time.perf_counter()
    for number in range(PLAIN_FILES):
        _write_small(root / str(number))
    os.sync()
    return PLAIN_FILES / (time.perf_counter() - began)
