"""An image that came part by part is loaded by a real engine, and runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pushed_images import Pushed
from testbed_fixtures import DockerEngine, fresh_name

from hatoba_worker.agent.archive import archive
from hatoba_worker.agent.blobs import BlobStore
from hatoba_worker.agent.registry import Manifest, Platform, Reference, Registry, opened
from hatoba_worker.executors.containers.engine import Engine, EngineRefused, connected


async def pieces(made: Iterator[bytes]) -> AsyncIterator[bytes]:
    """What is read from the disk, without holding up the loop."""
    while piece := await asyncio.to_thread(next, made, b""):
        yield piece


@pytest.fixture
def pushed(docker_engine: DockerEngine, registry: str) -> Pushed:
    """A real image, in the registry alone."""
    name = fresh_name("edge")
    tag = f"{registry}/{name}:1"
    docker_engine.docker("tag", docker_engine.busybox, tag)
    docker_engine.docker("push", "--quiet", tag)
    told = docker_engine.docker("inspect", "--format", '{{join .RepoDigests "\\n"}}', tag)
    digest = next(one for one in told.split() if one.startswith(f"{registry}/{name}@"))
    docker_engine.docker("rmi", tag)
    return Pushed(registry, name, digest.partition("@")[2], 0, "")


@dataclass
class Brought:
    """An image whose parts are on the disk, the engine, and a name for it there."""

    manifest: Manifest
    blobs: dict[str, Path]
    engine: Engine
    tag: str

    def archive(self) -> Iterator[bytes]:
        """As the engine loads it; blocks."""
        return archive(self.manifest, self.blobs, self.tag)


@pytest.fixture
async def brought(
    pushed: Pushed, docker_engine: DockerEngine, tmp_path: Path
) -> AsyncIterator[Brought]:
    store = BlobStore(tmp_path / "blobs")
    await asyncio.to_thread(store.prepare)
    async with opened() as session, connected(docker_engine.socket) as engine:
        source = Registry(session, Reference.parse(pushed.reference), plain=True)
        manifest = await source.manifest(Platform((await engine.facts()).arch))
        blobs = {
            one.digest: await store.fetch(one.digest, one.size, source) for one in manifest.blobs
        }
        yield Brought(manifest, blobs, engine, f"hatoba.test/{fresh_name('loaded')}:1")


async def test_it_is_loaded_whole_and_runs(brought: Brought, docker_engine: DockerEngine) -> None:
    tag = brought.tag
    try:
        await brought.engine.load(pieces(brought.archive()))
        assert (await brought.engine.image(tag))["Id"] == brought.manifest.config.digest
        run = ("run", "--rm", "--network=none", tag, "echo", "it runs")
        assert await asyncio.to_thread(docker_engine.docker, *run) == "it runs\n"
    finally:
        await asyncio.to_thread(docker_engine.docker, "rmi", "-f", tag)


async def test_what_is_cut_off_is_not_loaded(brought: Brought) -> None:
    data = b"".join(await asyncio.to_thread(list, brought.archive()))

    async def half() -> AsyncIterator[bytes]:
        yield data[: len(data) // 2]

    with pytest.raises(EngineRefused):
        await brought.engine.load(half())
    with pytest.raises(EngineRefused) as caught:
        await brought.engine.image(brought.tag)
    assert caught.value.status == 404
