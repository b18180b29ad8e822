"""Images from a real registry, for one platform, over a link that is cut."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from bearer_registry import BearerRegistry, bearer_registry
from counting_link import counting_link
from cut_network import CutNetwork
from locked_registry import locked_registry
from pushed_images import Pushed, Pusher, digest_of
from testbed_fixtures import fresh_name

from hatoba_worker.agent.blobs import BlobStore, Cut, Gone, Unusable
from hatoba_worker.agent.registry import (
    Login,
    Manifest,
    Platform,
    Reference,
    Registry,
    opened,
    require_platform,
)

ARM, AMD = Platform("arm64", "v8"), Platform("amd64")
BIG = random.Random(7).randbytes(80_000_000)


@dataclass
class Shop:
    """A registry, a session, and a name in it."""

    session: aiohttp.ClientSession
    pusher: Pusher

    def registry(self, pushed: Pushed, host: str = "", login: Login | None = None) -> Registry:
        reference = Reference.parse(pushed.reference)
        reference = reference._replace(host=host or reference.host)
        return Registry(self.session, reference, plain=True, login=login)


@pytest.fixture
async def shop(registry: str) -> AsyncIterator[Shop]:
    async with opened() as session:
        yield Shop(session, Pusher(session, registry, fresh_name("edge")))


@pytest.fixture
async def store(tmp_path: Path) -> BlobStore:
    made = BlobStore(tmp_path / "blobs")
    await asyncio.to_thread(made.prepare)
    return made


async def brought(store: BlobStore, source: Registry, manifest: Manifest) -> None:
    """All parts, asked for again after each cut."""
    for part in manifest.blobs:
        while True:
            try:
                await store.fetch(part.digest, part.size, source)
                break
            except Cut:
                continue


async def test_the_image_for_the_platform_is_taken(shop: Shop, store: BlobStore) -> None:
    arm = await shop.pusher.image({"main": b"arm"}, "arm64")
    amd = await shop.pusher.image({"main": b"amd"}, "amd64")
    index = await shop.pusher.index((amd, "amd64", ""), (arm, "arm64", "v8"))
    source = shop.registry(index)
    manifest = await source.manifest(ARM)
    assert manifest.digest == arm.digest
    await brought(store, source, manifest)
    config = await asyncio.to_thread(store.path(manifest.config.digest).read_bytes)
    assert require_platform(config, ARM)["config"]["Entrypoint"] == ["/main"]
    assert store.brought == manifest.size


async def test_an_index_without_the_platform_names_what_there_is(shop: Shop) -> None:
    amd = await shop.pusher.image({"main": b"amd"}, "amd64")
    old = await shop.pusher.image({"main": b"old"}, "arm")
    index = await shop.pusher.index((amd, "amd64", ""), (old, "arm", "v7"))
    with pytest.raises(Unusable) as caught:
        await shop.registry(index).manifest(ARM)
    assert str(caught.value) == "the image is there for amd64, arm/v7, this device is arm64/v8"


async def test_a_manifest_that_lies_about_its_platform_is_found_out(
    shop: Shop, store: BlobStore
) -> None:
    amd = await shop.pusher.image({"main": b"amd"}, "amd64")
    lie = await shop.pusher.index((amd, "arm64", ""))
    source = shop.registry(lie)
    manifest = await source.manifest(ARM)
    path = await store.fetch(manifest.config.digest, manifest.config.size, source)
    with pytest.raises(Unusable, match="the image is for amd64, this device is arm64/v8"):
        require_platform(await asyncio.to_thread(path.read_bytes), ARM)


@pytest.mark.parametrize(
    ("device", "image", "does"),
    [
        (Platform("arm64"), Platform("arm64", "v8"), True),
        (Platform("arm64", "v8"), Platform("arm", "v7"), False),
        (Platform("arm", "v7"), Platform("arm", "v6"), True),
        (Platform("arm", "v6"), Platform("arm", "v7"), False),
        (AMD, Platform("amd64", "v3"), True),
        (Platform("amd64", "v2"), Platform("amd64", "v3"), False),
    ],
)
def test_what_a_device_runs(device: Platform, image: Platform, does: bool) -> None:
    assert device.runs(image) is does


async def test_a_link_that_is_cut_at_each_tenth_brings_hardly_more(
    shop: Shop, store: BlobStore
) -> None:
    image = await shop.pusher.image({"main": BIG}, "amd64")
    host, _, port = image.host.partition(":")
    async with counting_link(host, int(port)) as network:
        source = shop.registry(image, f"127.0.0.1:{network.port}")
        manifest = await source.manifest(AMD)
        network.cut_at = [manifest.size * tenth // 10 for tenth in range(1, 10)]
        await brought(store, source, manifest)
        assert network.cut_at == []
        assert network.carried <= 1.05 * manifest.size
    assert await asyncio.to_thread(store.check, manifest.layers[0].digest)


async def test_what_the_registry_has_not_is_said_once(shop: Shop, store: BlobStore) -> None:
    image = await shop.pusher.image({"main": b"x"}, "amd64")
    source = shop.registry(image)
    with pytest.raises(Gone, match="has no sha256:0000"):
        await store.fetch(f"sha256:{'0' * 64}", 10, source)
    lost = Reference.parse(f"{image.host}/{image.name}@sha256:{'0' * 64}")
    with pytest.raises(Gone):
        await Registry(shop.session, lost, plain=True).manifest(AMD)


async def test_a_registry_that_is_away_is_a_cut(shop: Shop) -> None:
    network = CutNetwork(1)
    await network.mend()
    await network.cut()
    away = Reference(f"127.0.0.1:{network.port}", "edge", f"sha256:{'0' * 64}")
    with pytest.raises(Cut):
        await Registry(shop.session, away, plain=True).manifest(AMD)


async def test_a_registry_that_wants_to_know_who_one_is(shop: Shop) -> None:
    image = await shop.pusher.image({"main": b"x"}, "amd64")
    async with locked_registry("127.0.0.1", image.host, "dev:secret") as host:
        with pytest.raises(Gone, match="log in to it"):
            await shop.registry(image, host).manifest(AMD)
        with pytest.raises(Gone, match="log in to it"):
            await shop.registry(image, host, Login("dev", "wrong")).manifest(AMD)
        known = shop.registry(image, host, Login("dev", "secret"))
        assert (await known.manifest(AMD)).digest == image.digest


async def test_tokens_that_end_thrice_in_a_blob_and_links_that_break_bring_hardly_more(
    store: BlobStore,
) -> None:
    """The link at every tenth; each token is good for a quarter."""
    layer = BIG[: 20 << 20]
    made = BearerRegistry(login="dev:secret", lasts=len(layer) // 4)
    async with (
        bearer_registry(made) as there,
        counting_link("127.0.0.1", there.port) as network,
        opened() as session,
    ):
        reference = there.image(layer, "amd64")
        at = f"127.0.0.1:{network.port}"
        login = Login("dev", "secret")
        source = Registry(session, reference, at=at, plain=True, login=login)
        manifest = await source.manifest(AMD)
        network.cut_at = [manifest.size * tenth // 10 for tenth in range(1, 10)]
        await brought(store, source, manifest)
        assert network.cut_at == []
        assert there.tokens >= 4
        assert network.carried <= 1.05 * manifest.size
    assert await asyncio.to_thread(store.check, manifest.layers[0].digest)


@pytest.mark.parametrize("called", ["token", "access_token"])
async def test_a_token_that_whoever_asks_gets(called: str) -> None:
    async with bearer_registry(BearerRegistry(called=called)) as there, opened() as session:
        source = Registry(session, there.image(b"layer", "amd64"), plain=True)
        for _ in range(2):
            assert (await source.manifest(AMD)).layers[0].size == len(b"layer")
        assert there.tokens == 1


async def test_a_service_of_tokens_that_knows_nobody_or_says_nonsense() -> None:
    async with bearer_registry(BearerRegistry(login="dev:secret")) as there, opened() as session:
        reference = there.image(b"layer", "amd64")
        for login in (None, Login("dev", "wrong")):
            with pytest.raises(Gone, match="log in to it"):
                await Registry(session, reference, plain=True, login=login).manifest(AMD)
    async with bearer_registry(BearerRegistry(called="other")) as there, opened() as session:
        with pytest.raises(Cut, match="gives no token"):
            await Registry(session, there.image(b"layer", "amd64"), plain=True).manifest(AMD)


@pytest.mark.parametrize("text", ["edge:1", "host/edge:1", "host/edge@sha256:12", ""])
def test_only_a_digest_names_an_image(text: str) -> None:
    with pytest.raises(Unusable, match="names no image by digest"):
        Reference.parse(text)


GOOD = {"digest": f"sha256:{'1' * 64}", "size": 1}
HUGE = {"digest": f"sha256:{'1' * 64}", "size": 1 << 40}
LESS = {"digest": f"sha256:{'1' * 64}", "size": -1}
PATH = {"digest": "sha256:../../x", "size": 1}


@pytest.mark.parametrize(
    "told",
    [
        [],
        5,
        {},
        {"manifests": 5},
        {"manifests": [5]},
        {"manifests": [{}]},
        {"manifests": [{"platform": {"architecture": "amd64"}}]},
        {"manifests": [{"platform": 5, "digest": "x"}]},
        {"layers": 5, "config": PATH},
        {"layers": [], "config": PATH},
        {"layers": [], "config": LESS},
        {"layers": [], "config": HUGE},
        {"layers": [PATH], "config": GOOD},
        {"layers": [5], "config": GOOD},
    ],
)
async def test_nonsense_is_no_image(told: object) -> None:
    data = json.dumps(told).encode()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=data)

    app = web.Application()
    app.router.add_get("/v2/edge/manifests/{digest}", answer)
    async with TestServer(app) as server, opened() as session:
        reference = Reference(f"127.0.0.1:{server.port}", "edge", digest_of(data))
        with pytest.raises(Unusable):
            await Registry(session, reference, plain=True).manifest(AMD)


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"\xff",
        b"[]",
        b"5",
        b"{}",
        b'{"architecture": "amd64", "config": 5}',
        b'{"architecture": "amd64", "rootfs": []}x',
        b'{"architecture": "amd64", "rootfs": [1]}',
    ],
)
def test_nonsense_is_no_configuration(config: bytes) -> None:
    with pytest.raises(Unusable):
        require_platform(config, AMD)
