"""Fixtures for the real components of tools/testbed: brought up when missing, left up.

A test names the fixture; where this machine cannot have the component it is skipped, with the
reason. Several test runs share one testbed: names of what a test makes there are its own
(`fresh_name`), and a test that must break a component takes a testbed of its own
(`own_testbed`).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bed_build
import pytest
from bed_archives import BUSYBOX
from bed_place import default_directory
from testbed_kubernetes import Kubernetes

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "testbed" / "testbed.py"
UNAVAILABLE = 3


@dataclass(frozen=True)
class DockerEngine:
    """A Docker engine; `gateway` is where its containers find servers of this machine."""

    socket: str
    gateway: str
    busybox: str

    @property
    def host(self) -> str:
        """Its address as clients take it."""
        return f"unix://{self.socket}"

    def docker(self, *arguments: str) -> str:
        """What the engine's command-line client prints; CalledProcessError when it fails."""
        command = ["docker", "--host", self.host, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class AwsEmulator:
    """An emulator of AWS: where it answers, and what a client sends as credentials."""

    endpoint: str
    credentials: dict[str, str]


@dataclass(frozen=True)
class Testbed:
    """One testbed by its directory."""

    __test__ = False

    directory: Path

    def up(self, *components: str) -> None:
        """Bring these up where they are not; skips the test where they cannot be."""
        done = self._do("up", *components)
        if done.returncode == UNAVAILABLE:
            pytest.skip(done.stderr.strip())
        if done.returncode:
            pytest.fail(f"testbed up {' '.join(components)}: {done.stderr}", pytrace=False)

    def act(self, action: str, *names: str) -> None:
        """`stop` or `start` processes of Kubernetes' control plane."""
        done = self._do(action, *names)
        assert done.returncode == 0, done.stderr

    def down(self, *components: str) -> None:
        """End these, or everything."""
        assert self._do("down", *components).returncode == 0

    def facts(self, component: str) -> dict[str, Any]:
        """What the testbed says of a component, once it is up."""
        self.up(component)
        state = json.loads((self.directory / "state.json").read_text())
        return dict(state["components"][component])

    def docker_engine(self) -> DockerEngine:
        """Its Docker engine."""
        facts = self.facts("docker")
        return DockerEngine(facts["socket"], facts["gateway"], facts["busybox"])

    def aws(self, component: str) -> AwsEmulator:
        """Its `moto` or `ministack`."""
        facts = self.facts(component)
        return AwsEmulator(facts["endpoint"], facts["credentials"])

    def kubernetes(self, directory: Path) -> Kubernetes:
        """Its Kubernetes; what tests write about it goes to `directory`."""
        self.up("kubernetes")
        facts, network = self.facts("control-plane"), self.facts("network")
        return Kubernetes(
            self,
            Path(facts["programs"]),
            facts["kubeconfig"],
            facts["server"],
            facts["authority"],
            network["gateway"],
            BUSYBOX,
            directory,
        )

    def _do(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, SCRIPT, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "HATOBA_TESTBED": str(self.directory)},
        )


@contextlib.contextmanager
def own_testbed(directory: Path) -> Iterator[Testbed]:
    """A testbed that nobody else uses, in an empty directory; gone at the end."""
    bed = Testbed(directory)
    try:
        yield bed
    finally:
        bed.down()


@pytest.fixture
def bed_place() -> Iterator[Path]:
    """A directory for a testbed of a test's own: its path is short, as those of sockets are."""
    with tempfile.TemporaryDirectory(prefix="hatoba-bed-") as made:
        yield Path(made, "bed")


def fresh_name(prefix: str) -> str:
    """A name that no other test uses, of `[a-z0-9-]`."""
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="session")
def testbed() -> Testbed:
    """The testbed that everybody on this machine shares."""
    return Testbed(default_directory())


@pytest.fixture(scope="session")
def docker_engine(testbed: Testbed) -> DockerEngine:
    """The testbed's Docker engine; its socket is its own."""
    return testbed.docker_engine()


@pytest.fixture(scope="session")
def busybox_image(docker_engine: DockerEngine) -> str:
    """A small image, in the testbed's Docker engine."""
    return docker_engine.busybox


@pytest.fixture(scope="session")
def moto(testbed: Testbed) -> AwsEmulator:
    """AWS Batch, S3 and logs; Batch runs its jobs in the testbed's Docker engine."""
    return testbed.aws("moto")


@pytest.fixture(scope="session")
def ministack(testbed: Testbed) -> AwsEmulator:
    """ECS; its tasks run in the testbed's Docker engine."""
    return testbed.aws("ministack")


@pytest.fixture(scope="session")
def registry(testbed: Testbed) -> str:
    """`host:port` of a registry of images, plain HTTP, that engine and nodes may pull from."""
    return str(testbed.facts("registry")["address"])


@pytest.fixture(scope="session")
def kubernetes(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Kubernetes:
    """A cluster with one real node, four GPUs and RuntimeClass nvidia."""
    return testbed.kubernetes(tmp_path_factory.mktemp("kubernetes"))


@pytest.fixture(scope="session")
def cluster_dns(testbed: Testbed, full_round: bool) -> str:
    """The address of the cluster's DNS, by which pods find each other."""
    if not full_round and not bed_build.has_coredns():
        pytest.skip("CoreDNS takes minutes to build: make long, or testbed.py up dns, does it once")
    return str(testbed.facts("dns")["address"])


@pytest.fixture(scope="session")
def runtime_image(testbed: Testbed) -> str:
    """The runtime image of the sources as they are, in the engine and in the registry."""
    return str(testbed.facts("images")["runtime"])
