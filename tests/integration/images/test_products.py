"""The images of deploy/images, built from the sources as they are, run; for arm64 by QEMU."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from doubler import HANDLER
from testbed_fixtures import DockerEngine, Testbed, fresh_name
from waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
TARGETS = ("runtime", "router", "worker", "server")
SETTINGS = {
    "model_dir": "/opt/model",
    "code_dir": "/opt/model",
    "handler": "serve:Doubler",
    "host": "0.0.0.0",
    "port": 8080,
}


@dataclass(frozen=True)
class Images:
    """All of them for one architecture; `machine` is what their programs say that they run on."""

    architecture: str
    machine: str
    names: dict[str, str]
    patience: float

    def __getitem__(self, target: str) -> str:
        return self.names[target]


UNDER_EMULATION = [pytest.mark.slow, pytest.mark.timeout(3600)]
ARCHITECTURES = ["amd64", pytest.param("arm64", marks=UNDER_EMULATION)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def images(testbed: Testbed, request: pytest.FixtureRequest) -> Images:
    if request.param == "arm64":
        return Images("arm64", "aarch64", request.getfixturevalue("arm64_images"), patience=600)
    return Images("amd64", "x86_64", testbed.facts("all-images"), patience=60)


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_nobodys_root_and_says_what_it_is(
    docker_engine: DockerEngine, images: Images, target: str
) -> None:
    (about,) = json.loads(docker_engine.docker("image", "inspect", images[target]))
    assert about["Architecture"] == images.architecture
    assert about["Config"]["User"] == "10001:10001"
    labels = about["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == f"hatoba-{target}"
    assert labels["org.opencontainers.image.version"]


@pytest.mark.parametrize("target", TARGETS)
def test_its_programs_are_its_architectures_own_and_nobodys_root(
    docker_engine: DockerEngine, images: Images, target: str
) -> None:
    says = ["-c", "import os, platform; print(platform.machine(), os.getuid())"]
    python = ["--entrypoint", "python", images[target], *says]
    assert docker_engine.docker("run", "--rm", *python) == f"{images.machine} 10001\n"


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
    images: Images,
    target: str,
    command: list[str],
    told: str,
) -> None:
    confined = ["--read-only", "--cap-drop=ALL", "--network=none"]
    assert told in docker_engine.docker("run", "--rm", *confined, images[target], *command)


def test_the_server_serves_from_its_volume_with_every_backend(
    docker_engine: DockerEngine, images: Images
) -> None:
    name = fresh_name("server")
    ready = ["--ready-file", "/data/ready"]
    docker_engine.docker("run", "--detach", "--name", name, images["server"], *ready)
    try:
        deadline = time.monotonic() + images.patience
        while not docker_engine.docker("exec", name, "find", "/data", "-name", "ready"):
            assert time.monotonic() < deadline, docker_engine.docker("logs", name)
            time.sleep(0.5)
        listed = docker_engine.docker("exec", name, "hatoba", "backends", "list", "-o", "json")
        assert "hosts" in listed
        needed = "import aiodocker, kubernetes_asyncio, aioboto3"
        docker_engine.docker("exec", name, "python", "-c", needed)
    finally:
        docker_engine.docker("rm", "--force", "--volumes", name)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a model's code and what its server is told; everybody may read it."""
    (tmp_path / "serve.py").write_text(HANDLER)
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    tmp_path.chmod(0o755)
    return tmp_path


async def test_the_runtime_serves_a_model(
    docker_engine: DockerEngine, images: Images, model: Path
) -> None:
    name, place = fresh_name("model"), ["--volume", f"{model}:/opt/model:ro", "--publish=8080"]
    serve = ["python", "-m", "hatoba_worker.serving", "serve", "--config=/opt/model/settings.json"]
    docker_engine.docker("run", "--detach", "--name", name, *place, images["runtime"], *serve)
    try:
        server = "http://" + docker_engine.docker("port", name, "8080").strip()
        await until(lambda: answer(f"{server}/healthz"), images.patience)
        await until(lambda: answer(f"{server}/readyz"), images.patience)
        assert json.loads(answer(f"{server}/predict", b'{"value": 3}')) == {"value": 6}
    finally:
        docker_engine.docker("rm", "--force", name)


def answer(url: str, question: bytes | None = None) -> bytes:
    """What is answered with 200; nothing while there is no such answer."""
    asked = urllib.request.Request(url, question, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return bytes(reply.read())
    except (urllib.error.URLError, ConnectionError):
        return b""
