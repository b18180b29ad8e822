"""A host for tests whose worker drives a real Docker engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

from testbed_fixtures import DockerEngine, fresh_name
from waiting import until
from worker_house import House

from hatoba_worker.executors.containers.choosing import key_of


class ContainerHouse(House):
    """One host of tests, and what it has in the engine."""

    def __init__(self, root: Path, engine: DockerEngine) -> None:
        super().__init__(root)
        self.engine = engine
        self.a = fresh_name("a")
        """Name of an attempt that no other test has in the engine."""
        self.image = engine.busybox
        self.settings |= {"engine": engine.socket}

    def contained(self, attempt: str, script: str, **fields: Any) -> None:
        """Launch a shell script in a container."""
        environment = fields.pop("environment", {"image": self.image})
        self.shell(attempt, script, environment=environment, **fields)

    async def docker(self, *arguments: str) -> str:
        """Ask the engine by its own command-line client."""
        return await asyncio.to_thread(self.engine.docker, *arguments)

    async def inspect(self, name: str) -> dict[str, Any]:
        """All that the engine has of a container."""
        found: list[dict[str, Any]] = json.loads(await self.docker("inspect", name))
        return found[0]

    async def containers(self) -> list[str]:
        """Names of this host's containers, whatever became of them."""
        return await asyncio.to_thread(self._containers)

    def _containers(self) -> list[str]:
        label = f"label=hatoba.dev/host={key_of('host-1', self.data)}"
        listed = self.engine.docker("ps", "-a", "--filter", label, "--format", "{{.Names}}")
        return sorted(listed.split())

    async def nothing_left(self) -> None:
        """Wait until the engine has nothing of this host any more."""
        await until(lambda: not self._containers())

    async def clear(self) -> None:
        """Remove what a test left."""
        for name in await self.containers():
            # It may be on its way out already.
            with contextlib.suppress(subprocess.CalledProcessError):
                await self.docker("rm", "-f", "-v", name)
        await self.nothing_left()
