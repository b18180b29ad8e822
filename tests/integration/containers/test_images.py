"""Images: pulled from a real registry, recorded by digest, told apart when they cannot be had."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import AsyncIterator

import pytest
from container_house import ContainerHouse
from testbed_fixtures import fresh_name

from hatoba.v1 import runner_pb2


def kind(commit: runner_pb2.CommitAttemptRequest) -> str:
    """`IMAGE_MISSING` and the like."""
    return runner_pb2.ExitKind.Name(commit.kind).removeprefix("EXIT_KIND_")


@pytest.fixture
async def pushed(house: ContainerHouse, registry: str) -> AsyncIterator[str]:
    """An image that is in a registry, and not in the engine."""
    name = f"{registry}/{fresh_name('pulled')}:1"
    await house.docker("tag", house.image, name)
    await house.docker("push", "--quiet", name)
    await house.docker("rmi", name)
    yield name
    with contextlib.suppress(subprocess.CalledProcessError):
        await house.docker("rmi", name)


async def test_a_tag_is_pulled_once_for_all_and_recorded_by_digest(
    house: ContainerHouse, pushed: str
) -> None:
    names = [f"{house.a}-{number}" for number in range(3)]
    for name in names:
        house.contained(name, "exit 0", environment={"image": pushed})
    commits = [await house.commit(name) for name in names]
    (digest,) = {commit.usage.image for commit in commits}
    assert digest.startswith(f"{pushed.removesuffix(':1')}@sha256:")
    for name in names:
        await house.forgotten(name)
        build = house.server.log(name, "build").decode()
        assert "Digest: sha256:" in build
        assert f"{pushed} is {digest}" in build


async def test_a_digest_names_the_same_for_ever(house: ContainerHouse, pushed: str) -> None:
    house.contained(house.a, "exit 0", environment={"image": pushed})
    digest = (await house.commit(house.a)).usage.image
    again = f"{house.a}-again"
    house.contained(again, "exit 0", environment={"image": digest})
    assert (await house.commit(again)).usage.image == digest


@pytest.mark.parametrize("reference", ["no/such/thing:1", "no/such/thing"])
async def test_what_the_registry_does_not_have(
    house: ContainerHouse, registry: str, reference: str
) -> None:
    house.contained(house.a, "exit 0", environment={"image": f"{registry}/{reference}"})
    commit = await house.commit(house.a)
    assert kind(commit) == "IMAGE_MISSING"
    assert reference in commit.message
    await house.forgotten(house.a)


async def test_a_secret_for_a_registry_that_the_host_has_not(
    house: ContainerHouse, pushed: str, registry: str
) -> None:
    await house.stop_worker()
    house.settings |= {"registries": {registry: "registry-login"}}
    await house.start_worker()
    house.contained(house.a, "exit 0", environment={"image": pushed})
    assert kind(await house.commit(house.a)) == "SECRET_MISSING"
    house.secret("registry-login", "someone:canary-7140")
    again = f"{house.a}-again"
    house.contained(again, "exit 0", environment={"image": pushed})
    assert (await house.commit(again)).exit_code == 0
    await house.forgotten(again)
    assert b"canary-7140" not in house.server.log(again, "build")


async def test_an_image_for_another_machine(house: ContainerHouse) -> None:
    name = f"hatoba.test/{fresh_name('foreign')}:1"
    await asyncio.to_thread(_load, house.engine.host, name)
    try:
        house.run(house.a, "/program", environment={"image": name})
        commit = await house.commit(house.a)
        assert kind(commit) == "IMAGE_ARCHITECTURE", commit
        await house.forgotten(house.a)
        await house.nothing_left()
    finally:
        await house.docker("rmi", "-f", name)


def _load(engine: str, name: str) -> None:
    """Give the engine an image whose configuration says that it is for another machine."""
    layer = _tar({"program": b"nothing that runs here"})
    config = {
        "architecture": "loong64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {
        "layer.tar": layer,
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    command = ["docker", "--host", engine, "load"]
    subprocess.run(command, input=_tar(files), check=True, capture_output=True)


def _tar(files: dict[str, bytes]) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        for name, data in files.items():
            told = tarfile.TarInfo(name)
            told.mode, told.size = 0o755, len(data)
            tar.addfile(told, io.BytesIO(data))
    return body.getvalue()
