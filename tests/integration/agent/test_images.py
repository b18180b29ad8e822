"""Images come into a real engine from a real registry, part by part, and are looked at again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from contained_house import WHOLE, ImageShop, Loaded
from counting_link import CountingLink
from pushed_images import Pushed, Pusher
from tampering_registry import tampering_registry
from testbed_fixtures import DockerEngine, fresh_name

from hatoba_worker.agent.blobs import BlobStore, Cut, Full, NoEngine, NotTaken, Unusable, Wrong
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.engines import DeviceEngine, Known
from hatoba_worker.agent.images import DeviceImages, Silent
from hatoba_worker.agent.registries import Registries
from hatoba_worker.agent.registry import Platform, opened
from hatoba_worker.agent.settings import RegistryAccess

pytestmark = pytest.mark.timeout(240)

AMD = Platform("amd64")
SMALL = random.Random(7).randbytes(3_000_000)


@dataclass
class Device:
    """Its engine, and how it reaches the registry."""

    data: Path
    loaded: Loaded
    access: RegistryAccess
    platform: Platform = AMD
    engine: DeviceEngine = field(init=False)

    def __post_init__(self) -> None:
        self.engine = self.loaded.device

    @property
    def images(self) -> DeviceImages:
        """As an agent has them that was started just now."""
        clock = FloorClock(self.data / "clock", 0.0, time.time, time.monotonic)
        registries = Registries(lambda: {"*": self.access}, clock)
        store = BlobStore(self.data / "layers")
        return DeviceImages(self.data, store, self.engine, registries, self.platform)

    def left(self) -> list[str]:
        """Names of blobs, whole or not."""
        return [path.name for path in (self.data / "layers").iterdir()]


@pytest.fixture
async def device(
    tmp_path: Path, docker_engine: DockerEngine, link: CountingLink
) -> AsyncIterator[Device]:
    loaded = Loaded(docker_engine, tmp_path)
    made = Device(tmp_path, loaded, RegistryAccess(at=f"127.0.0.1:{link.port}"))
    await asyncio.to_thread(made.images.prepare)
    yield made
    await asyncio.to_thread(loaded.clear)


@asynccontextmanager
async def pusher(registry: str) -> AsyncIterator[Pusher]:
    async with opened() as session:
        yield Pusher(session, registry, fresh_name("edge"))


@pytest.fixture
async def foreign(registry: str) -> Pushed:
    """An image for another machine."""
    async with pusher(registry) as made:
        return await made.image({"main": SMALL}, "arm64")


async def made(shop: ImageShop, **files: bytes) -> str:
    return await asyncio.to_thread(shop.image, files)


async def until_here(images: DeviceImages, image: str) -> None:
    """Fetch it, again after each cut."""
    while True:
        try:
            await images.fetch(image, 0)
            return
        except Cut:
            continue


async def test_an_image_comes_once_and_its_blobs_go(
    device: Device, shop: ImageShop, link: CountingLink
) -> None:
    image = await made(shop, data=SMALL)
    await device.images.fetch(image, 0)
    assert await asyncio.to_thread(device.loaded.has, image)
    assert device.left() == []
    size = await asyncio.to_thread(shop.size, image)
    assert size < link.carried < 1.01 * size
    carried = link.carried
    await device.images.fetch(image, 0)
    assert link.carried == carried
    assert await device.images.check(image)


async def test_a_link_that_is_cut_in_the_middle_brings_hardly_more(
    device: Device, shop: ImageShop, link: CountingLink
) -> None:
    image = await made(shop, data=SMALL)
    size = await asyncio.to_thread(shop.size, image)
    link.cut_at = [size // 3, size // 2, size - 1_000_000]
    await until_here(device.images, image)
    assert link.cut_at == []
    assert link.carried <= 1.05 * size
    assert await asyncio.to_thread(device.loaded.has, image)


async def test_of_another_image_only_other_layers_come(
    device: Device, shop: ImageShop, link: CountingLink
) -> None:
    await device.images.fetch(await made(shop, data=b"1"), 0)
    before = link.carried
    image = await made(shop, data=SMALL)
    await device.images.fetch(image, 0)
    layer = await asyncio.to_thread(shop.layer, image)
    assert link.carried - before <= 1.05 * layer
    assert await device.images.check(image)


async def test_another_architecture_is_refused_before_any_layer(
    device: Device, foreign: Pushed, link: CountingLink
) -> None:
    with pytest.raises(Unusable, match="the image is for arm64, this device is amd64"):
        await device.images.fetch(foreign.reference, 0)
    assert link.carried < 10_000
    with pytest.raises(Unusable, match="the image is for arm64, this device is amd64"):
        await device.images.require(foreign.reference, "arm64")


async def test_what_is_not_what_its_digest_says_never_gets_to_the_engine(
    device: Device, registry: str
) -> None:
    async with pusher(registry) as push:
        image = (await push.image({"main": SMALL}, "amd64")).reference
    async with tampering_registry(registry, 1_000_000) as at:
        device.access = RegistryAccess(at=at)
        with pytest.raises(Wrong):
            await device.images.fetch(image, 0)
    assert not await asyncio.to_thread(device.loaded.has, image)


async def test_a_program_for_another_machine_never_gets_to_the_engine(
    device: Device, registry: str
) -> None:
    arm = b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + b"\xb7\x00" + bytes(44)
    async with pusher(registry) as push:
        pushed = await push.image({"usr/bin/python3": arm, "main": b"#!/bin/sh"}, "amd64")
    with pytest.raises(Unusable, match="python3 in the image is made for arm64"):
        await device.images.fetch(pushed.reference, 0)
    assert not await asyncio.to_thread(device.loaded.has, pushed.reference)
    assert device.left() == []


async def test_what_the_engine_does_not_take_is_said(device: Device, registry: str) -> None:
    async with pusher(registry) as push:
        pushed = await push.image({"main": b"x"}, "amd64", unpacked=f"sha256:{'0' * 64}")
    with pytest.raises(NotTaken, match="does not take the image"):
        await device.images.fetch(pushed.reference, 0)


async def test_a_disk_that_is_too_small_is_said_with_figures_before_any_layer(
    device: Device, shop: ImageShop, link: CountingLink
) -> None:
    image = await made(shop, data=SMALL)
    with pytest.raises(Full) as caught:
        await device.images.fetch(image, 1 << 50)
    assert link.carried < 20_000
    size = await asyncio.to_thread(shop.size, image)
    # What comes, the engine's copy of that, and all of it unpacked: 124 MB are Python's.
    assert caught.value.needed - (1 << 50) > 2 * size + 100_000_000


async def test_what_is_damaged_on_the_engines_disk_is_found_and_brought_anew(
    device: Device, shop: ImageShop, link: CountingLink
) -> None:
    image = await made(shop, data=SMALL)
    await device.images.fetch(image, 0)
    file = await asyncio.to_thread(device.loaded.file, image, WHOLE)
    await asyncio.to_thread(file.write_bytes, b"")
    assert not await device.images.check(image)
    assert not await asyncio.to_thread(device.loaded.has, image)
    before = link.carried
    await device.images.fetch(image, 0)
    assert link.carried > before
    assert await device.images.check(image)


async def test_an_image_that_somebody_took_away_is_not_there(
    device: Device, shop: ImageShop
) -> None:
    image = await made(shop, data=b"1")
    assert not await device.images.check(image)
    await device.images.fetch(image, 0)
    await asyncio.to_thread(device.loaded.clear)
    assert not await device.images.check(image)


async def test_only_what_is_kept_stays(device: Device, shop: ImageShop, link: CountingLink) -> None:
    kept, gone, half = [await made(shop, data=name) for name in (b"1", b"2", SMALL)]
    for image in (kept, gone):
        await device.images.fetch(image, 0)
    link.cut_at = [link.carried + 1_000_000]
    with pytest.raises(Cut):
        await device.images.fetch(half, 0)
    await device.images.collect({kept, half})
    there = [await asyncio.to_thread(device.loaded.has, image) for image in (kept, gone)]
    assert there == [True, False]
    assert device.left() != []
    await device.images.collect({kept})
    assert device.left() == []
    assert await device.images.check(kept)


async def test_one_that_was_pulled_needs_no_registry_and_stays_whose_it_is(
    device: Device, shop: ImageShop, docker_engine: DockerEngine, link: CountingLink
) -> None:
    image = await made(shop, data=b"1")
    await asyncio.to_thread(docker_engine.docker, "pull", "--quiet", image)
    try:
        await device.images.fetch(image, 0)
        assert link.carried == 0
        assert await device.images.check(image)
        await device.images.collect(())
        assert (await asyncio.to_thread(device.loaded.inspect, image))["Id"]
    finally:
        await asyncio.to_thread(docker_engine.docker, "rmi", "--force", image)


async def test_without_an_engine_it_is_refused(device: Device, tmp_path: Path) -> None:
    image = f"registry.example/edge@sha256:{'0' * 64}"
    device.engine = DeviceEngine.of(tmp_path, "none", {})
    with pytest.raises(NoEngine, match="this device has no container engine"):
        await device.images.require(image, "amd64")
    device.engine = DeviceEngine.of(tmp_path, "", {"DOCKER_HOST": f"unix://{tmp_path}/no.sock"})
    with pytest.raises(NoEngine):
        await device.images.require(image, "amd64")


async def test_an_engine_that_is_away_is_waited_for(device: Device, tmp_path: Path) -> None:
    image = f"registry.example/edge@sha256:{'0' * 64}"
    device.engine = DeviceEngine.of(tmp_path, f"{tmp_path}/no.sock", {})
    await device.images.require(image, "amd64")
    with pytest.raises(Cut, match="the container engine does not answer"):
        await device.images.fetch(image, 0)
    await asyncio.to_thread(device.engine.book.keep, Known(image, "sha256:1", ()))
    with pytest.raises(Silent, match="the container engine does not answer"):
        await device.images.check(image)
    await device.images.collect(())
    assert await asyncio.to_thread(device.engine.book.all)
