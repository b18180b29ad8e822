"""A device with the agent as it is shipped and a container engine; and images that it may run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent_house import AgentHouse
from bed_images import AMD64
from testbed_fixtures import DockerEngine, fresh_name

from hatoba.v1 import worker_pb2
from hatoba_worker.agent.engines import DeviceEngine
from hatoba_worker.agent.registry import MANIFESTS, Reference
from hatoba_worker.agent.settings import RegistryAccess, Settings

PYTHON = AMD64.base
"""An image with Python 3 and nothing else."""
GUARD = "usr/lib/python3/dist-packages/guard.pth"
WHOLE = "opt/whole"
"""A file without which no Python starts in an image of a shop."""
_GUARD = f"import os; open('/{WHOLE}').read() == 'whole' or os._exit(9)\n"


class ImageShop:
    """Makes images of Python and a few files, which are in the registry alone. Calls block."""

    def __init__(self, engine: DockerEngine, registry: str) -> None:
        self.engine = engine
        self.registry = registry

    def image(self, files: Mapping[str, bytes]) -> str:
        """One with these files, by its digest."""
        tag = f"{self.registry}/hatoba/edge:{fresh_name('t')}"
        with tempfile.TemporaryDirectory() as context:
            root = Path(context, "files")
            for name, data in {GUARD: _GUARD.encode(), WHOLE: b"whole", **files}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(data)
            Path(context, "Dockerfile").write_text(f"FROM {PYTHON}\nCOPY files /\n")
            command = ["docker", "--host", self.engine.host, "build", "--quiet", "--tag", tag]
            plain = {**os.environ, "DOCKER_BUILDKIT": "0"}
            subprocess.run([*command, context], check=True, capture_output=True, env=plain)
        return self._moved(tag)

    def pushed(self, image: str) -> str:
        """One that is in the engine, by its digest."""
        tag = f"{self.registry}/hatoba/edge:{fresh_name('t')}"
        self.engine.docker("tag", image, tag)
        return self._moved(tag)

    def _moved(self, tag: str) -> str:
        """Push it; the engine forgets what it was called."""
        self.engine.docker("push", "--quiet", tag)
        told = self.engine.docker("inspect", "--format", '{{join .RepoDigests "\\n"}}', tag)
        self.engine.docker("rmi", tag)
        return next(one for one in told.split() if one.startswith(f"{self.registry}/hatoba/edge@"))

    def size(self, image: str) -> int:
        """Bytes of its configuration and its layers."""
        return sum(one["size"] for one in self._parts(image))

    def layer(self, image: str) -> int:
        """Bytes of its last layer."""
        return int(self._parts(image)[-1]["size"])

    def _parts(self, image: str) -> list[dict[str, Any]]:
        found = Reference.parse(image)
        request = urllib.request.Request(
            f"http://{found.host}/v2/{found.name}/manifests/{found.digest}",
            headers={"Accept": ", ".join(MANIFESTS)},
        )
        with urllib.request.urlopen(request) as reply:
            told = json.load(reply)
        return [told["config"], *told["layers"]]


class Loaded:
    """What a device has in its engine. Calls block."""

    def __init__(self, engine: DockerEngine, data: Path) -> None:
        self.engine = engine
        self.device = DeviceEngine.of(data, engine.socket, {})

    def containers(self, *more: str) -> list[str]:
        """Ids of its containers, whatever became of them."""
        label = f"label=hatoba.dev/host={self.device.book.key}"
        return self.engine.docker("ps", "--quiet", "--no-trunc", "--filter", label, *more).split()

    def inspect(self, name: str) -> dict[str, Any]:
        """All that the engine has of a container or an image."""
        found: list[dict[str, Any]] = json.loads(self.engine.docker("inspect", name))
        return found[0]

    def has(self, image: str) -> bool:
        """Whether an image is there that it brought in."""
        tag = self.device.book.tag(image)
        return bool(self.engine.docker("image", "ls", "--quiet", tag).strip())

    def file(self, image: str, path: str) -> Path:
        """A file of an image's last layer, on the engine's disk."""
        told = self.inspect(self.device.book.tag(image))
        return Path(told["GraphDriver"]["Data"]["UpperDir"], path)

    def clear(self) -> None:
        """Leave nothing there."""
        for name in self.containers("--all"):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.engine.docker("rm", "--force", "--volumes", name)
        for known in self.device.book.all():
            with contextlib.suppress(subprocess.CalledProcessError):
                self.engine.docker("rmi", "--force", self.device.book.tag(known.reference))


class ContainedHouse(AgentHouse):
    """`registry` is the one of the shop, reached at `at`."""

    def __init__(self, root: Path, engine: DockerEngine, registry: str, at: str = "") -> None:
        super().__init__(root)
        self.engine = Loaded(engine, self.data)
        self._registry = registry
        self._at = at

    async def enroll(self) -> None:
        """Make it a device of the site, with an engine and a way to the registry."""
        await super().enroll()
        await asyncio.to_thread(self._set)

    def _set(self) -> None:
        known = Settings.load(self.data)
        assert known is not None
        access = RegistryAccess(at=self._at, plain=True)
        engine, registries = self.engine.engine.socket, {self._registry: access}
        replace(known, engine=engine, registries=registries).save(self.data)

    def contained(self, image: str, revision: int, bias: int, **env: str) -> worker_pb2.ReplicaSpec:
        """A model that adds `bias` and runs in an image; blocks."""
        spec = self.spec(revision, bias, **env)
        spec.serving.ClearField("environment")
        spec.serving.environment.image = image
        spec.architecture = "amd64"
        return spec
