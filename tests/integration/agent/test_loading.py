"""An image that came part by part is loaded by a real engine, and runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pushed_images import Pushed
from testbed_fixtures import DockerEngine, fresh_name

from hatoba_worker.agent.archive import archive
from hatoba_worker.agent.blobs import BlobStore
from hatoba_worker.agent.registry import Platform, Reference, Registry, opened
from hatoba_worker.executors.containers.engine import EngineRefused, connected


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


async def test_it_is_loaded_whole_and_runs(
    pushed: Pushed, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    store = BlobStore(tmp_path / "blobs")
    await asyncio.to_thread(store.prepare)
    tag = f"hatoba.test/{fresh_name('loaded')}:1"
    async with opened() as session, connected(docker_engine.socket) as engine:
        source = Registry(session, Reference.parse(pushed.reference), plain=True)
        manifest = await source.manifest(Platform((await engine.facts()).arch))
        blobs = {
            one.digest: await store.fetch(one.digest, one.size, source) for one in manifest.blobs
        }
        try:
            await engine.load(pieces(archive(manifest, blobs, tag)))
            assert (await engine.image(tag))["Id"] == manifest.config.digest
            run = ("run", "--rm", "--network=none", tag, "echo", "it runs")
            assert await asyncio.to_thread(docker_engine.docker, *run) == "it runs\n"
        finally:
            await asyncio.to_thread(docker_engine.docker, "rmi", "-f", tag)


async def test_what_is_cut_off_is_not_loaded(
    pushed: Pushed, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    store = BlobStore(tmp_path / "blobs")
    await asyncio.to_thread(store.prepare)
    tag = f"hatoba.test/{fresh_name('cut')}:1"
    async with opened() as session, connected(docker_engine.socket) as engine:
        source = Registry(session, Reference.parse(pushed.reference), plain=True)
        manifest = await source.manifest(Platform((await engine.facts()).arch))
        blobs = {
            one.digest: await store.fetch(one.digest, one.size, source) for one in manifest.blobs
        }
        data = b"".join(await asyncio.to_thread(list, archive(manifest, blobs, tag)))

        async def half() -> AsyncIterator[bytes]:
            yield data[: len(data) // 2]

        with pytest.raises(EngineRefused):
            await engine.load(half())
        with pytest.raises(EngineRefused) as caught:
            await engine.image(tag)
        assert caught.value.status == 404
