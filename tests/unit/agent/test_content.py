"""What a release is made of comes together, is looked at together, and goes together."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from device_site import DeviceSite

from hatoba.v1 import artifact_pb2, worker_pb2
from hatoba_worker.agent.blobs import BlobStore, Cut, NoEngine, Unusable
from hatoba_worker.agent.content import ModelContent
from hatoba_worker.agent.slots import Release
from hatoba_worker.agent.trees import DeviceTrees

NAME = "default.adder"
AMD64, ARM64 = 62, 183
A, B = (f"r.example/adder@sha256:{mark * 64}" for mark in "ab")


@dataclass
class Engine:
    """An engine with images, some of which can never be there."""

    refused: set[str] = field(default_factory=set)
    here: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    asked: list[tuple[str, int]] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    away: bool = False

    def prepare(self) -> None:
        """Nothing is needed."""

    async def require(self, reference: str, architecture: str) -> None:
        if reference in self.refused:
            raise Unusable(f"{reference} is for {architecture}")

    async def fetch(self, reference: str, beside: int) -> None:
        self.asked.append((reference, beside))
        if self.away:
            raise Cut("the registry is away")
        self.here.add(reference)

    async def check(self, reference: str) -> bool:
        return reference in self.here - self.damaged

    async def collect(self, keep: Collection[str]) -> None:
        self.kept = set(keep)


class Shop:
    """The other end of the link; it counts what is asked of it."""

    def __init__(self, site: DeviceSite) -> None:
        self.site = site
        self.asked = 0

    async def manifest(self, digest: str) -> artifact_pb2.Manifest:
        self.asked += 1
        return artifact_pb2.Manifest.FromString(self.site.manifests[digest])

    async def read(self, digest: str, offset: int):  # type: ignore[no-untyped-def]
        self.asked += 1
        yield self.site.chunks[bytes.fromhex(digest[7:])][offset:]


class Device:
    """A device's disk, its engine and its link."""

    def __init__(self, root: Path) -> None:
        self.site = DeviceSite(root)
        self.data = root / "device"
        self.data.mkdir()
        self.engine, self.shop = Engine(), Shop(self.site)
        blobs = BlobStore(self.data / "blobs")
        self.trees = DeviceTrees(self.data / "trees", blobs)
        self.content = ModelContent(
            self.data / "specs", self.trees, blobs, self.shop, self.engine, "arm64"
        )
        self.content.prepare()

    async def offered(self, revision: int, image: str) -> Release:
        spec = worker_pb2.ReplicaSpec(revision=revision, architecture="arm64")
        spec.model.CopyFrom(
            await asyncio.to_thread(self.site.store, f"m{revision}", {"w": bytes([revision]) * 99})
        )
        spec.serving.environment.image = image
        return Release(revision, 0, await self.content.offer(spec))

    async def offered_files(self, image: str = "", **files: int) -> Release:
        """A model with libraries that are made for these machines."""
        made = {f"{name}.so": _program(machine) for name, machine in files.items()}
        spec = worker_pb2.ReplicaSpec(revision=9)
        spec.model.CopyFrom(await asyncio.to_thread(self.site.store, "files", made))
        spec.serving.environment.image = image
        return Release(9, 0, await self.content.offer(spec))

    def tree_count(self) -> int:
        return sum(path.is_dir() for path in (self.data / "trees").iterdir())


def _program(machine: int) -> bytes:
    """The beginning of a program of 64 bits."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine) + bytes(44)


@pytest.fixture
async def device(tmp_path: Path) -> Device:
    return await asyncio.to_thread(Device, tmp_path)


async def test_an_image_that_can_never_be_here_is_refused_before_anything_comes(
    device: Device,
) -> None:
    device.engine.refused = {A}
    with pytest.raises(Unusable, match="is for arm64"):
        await device.content.fetch(NAME, await device.offered(1, A))
    assert (device.shop.asked, device.engine.asked) == (0, [])


async def test_an_image_hears_what_room_the_model_takes(device: Device) -> None:
    release = await device.offered(1, A)
    await device.content.fetch(NAME, release)
    # The chunk on its way, and the file.
    assert device.engine.asked == [(A, 2 * 99)]
    assert await device.content.check(NAME, release)
    await device.content.fetch(NAME, await device.offered(2, A))
    assert device.tree_count() == 2


async def test_a_model_waits_for_its_image(device: Device) -> None:
    device.engine.away = True
    release = await device.offered(1, A)
    with pytest.raises(Cut):
        await device.content.fetch(NAME, release)
    assert device.tree_count() == 0


async def test_a_damaged_image_is_a_damaged_release(device: Device) -> None:
    release = await device.offered(1, A)
    await device.content.fetch(NAME, release)
    device.engine.damaged = {A}
    assert not await device.content.check(NAME, release)


async def test_images_of_what_is_kept_stay(device: Device) -> None:
    releases = [await device.offered(1, A), await device.offered(2, B)]
    for release in releases:
        await device.content.fetch(NAME, release)
    await device.content.collect({NAME: frozenset(releases)})
    assert device.engine.kept == {A, B}
    await device.content.collect({NAME: frozenset(releases[1:])})
    assert device.engine.kept == {B}
    assert device.tree_count() == 1


async def test_nothing_goes_while_it_cannot_be_read_what_is_kept(device: Device) -> None:
    releases = [await device.offered(1, A), await device.offered(2, B)]
    for release in releases:
        await device.content.fetch(NAME, release)
    file = device.data / "specs" / releases[0].digest[7:]
    await asyncio.to_thread(file.write_bytes, b"damaged")
    await device.content.collect({NAME: frozenset(releases[:1])})
    assert device.engine.kept == set()
    assert device.tree_count() == 2


async def test_a_device_without_an_engine_says_so(device: Device) -> None:
    blobs = BlobStore(device.data / "blobs")
    bare = ModelContent(device.data / "specs", device.trees, blobs, device.shop)
    with pytest.raises(NoEngine, match="this device has no container engine"):
        await bare.fetch(NAME, await device.offered(1, A))
    assert device.shop.asked == 0


async def test_a_library_for_another_machine_is_refused_with_its_name(device: Device) -> None:
    with pytest.raises(Unusable, match=r"bad\.so of sha256:.* is made for amd64, .* is arm64"):
        await device.content.fetch(NAME, await device.offered_files(good=ARM64, bad=AMD64))


async def test_libraries_of_this_machine_come(device: Device) -> None:
    await device.content.fetch(NAME, await device.offered_files(one=ARM64, two=ARM64))
    assert await asyncio.to_thread(device.tree_count) == 1


async def test_what_an_image_runs_is_the_images_affair(device: Device) -> None:
    await device.content.fetch(NAME, await device.offered_files(A, bad=AMD64))
    assert await asyncio.to_thread(device.tree_count) == 1
