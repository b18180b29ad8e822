"""The images of deploy/images, built from the sources as they are, run."""

from __future__ import annotations

import json
import time

import pytest
from testbed_fixtures import DockerEngine, Testbed, fresh_name

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
TARGETS = ("runtime", "router", "worker", "server")
PATIENCE = 60.0


@pytest.fixture(scope="module")
def images(testbed: Testbed) -> dict[str, str]:
    facts = testbed.facts("all-images")
    return {target: facts[target] for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_nobodys_root_and_says_what_it_is(
    docker_engine: DockerEngine, images: dict[str, str], target: str
) -> None:
    (about,) = json.loads(docker_engine.docker("image", "inspect", images[target]))
    assert about["Config"]["User"] == "10001:10001"
    labels = about["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == f"hatoba-{target}"
    assert labels["org.opencontainers.image.version"]


@pytest.mark.parametrize(
    ("target", "command", "told"),
    [
        ("runtime", ["hatoba-entrypoint", "--help"], "pod-sidecar"),
        ("router", ["--help"], "hatoba-router"),
        ("worker", ["--help"], "--server"),
        ("server", ["--help"], "--listen"),
    ],
    ids=TARGETS,
)
def test_its_program_starts_on_a_file_system_that_is_read_only(
    docker_engine: DockerEngine,
    images: dict[str, str],
    target: str,
    command: list[str],
    told: str,
) -> None:
    confined = ["--read-only", "--cap-drop=ALL", "--network=none"]
    assert told in docker_engine.docker("run", "--rm", *confined, images[target], *command)


def test_the_server_serves_from_its_volume_with_every_backend(
    docker_engine: DockerEngine, images: dict[str, str]
) -> None:
    name = fresh_name("server")
    ready = ["--ready-file", "/data/ready"]
    docker_engine.docker("run", "--detach", "--name", name, images["server"], *ready)
    try:
        deadline = time.monotonic() + PATIENCE
        while not docker_engine.docker("exec", name, "find", "/data", "-name", "ready"):
            assert time.monotonic() < deadline, docker_engine.docker("logs", name)
            time.sleep(0.5)
        listed = docker_engine.docker("exec", name, "hatoba", "backends", "list", "-o", "json")
        assert "hosts" in listed
        needed = "import aiodocker, kubernetes_asyncio, aioboto3"
        docker_engine.docker("exec", name, "python", "-c", needed)
    finally:
        docker_engine.docker("rm", "--force", "--volumes", name)
