"""What tests of `k8s-gpu` share: the way through a proxy, and commands that count their starts."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from listening import listening

from hatoba.v1 import job_pb2
from hatoba_plugins.conformance import Command

SCRIPTS = {
    Command.SUCCEEDS: "exit 0",
    Command.FAILS: "exit 3",
    Command.RUNS: "exec sleep 1000",
    Command.IGNORES_STOP: "while :; do sleep 1; done",
    Command.PRINTS: "echo hello from the kit",
}


class StartCounter:
    """Commands say here that they have started, before they do anything else."""

    def __init__(self) -> None:
        self.starts: Counter[str] = Counter()
        self.host, self.port = "", 0
        self._news = asyncio.Condition()

    @classmethod
    @asynccontextmanager
    async def running(cls, host: str) -> AsyncIterator[StartCounter]:
        """One that listens where pods reach it."""
        counter = cls()
        async with listening(counter._heard, host) as (counter.host, counter.port):
            yield counter

    async def _heard(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.readline()).decode().strip()
        async with self._news:
            self.starts[name] += 1
            self._news.notify_all()

    async def until_started(self, name: str) -> None:
        """Return when a command of this name has said so."""
        async with self._news:
            await self._news.wait_for(lambda: self.starts[name] > 0)

    def says(self, name: str) -> str:
        """What a shell script says it with."""
        return f"echo {shlex.quote(name)} | nc {self.host} {self.port}"


def kit_command(kind: Command, name: str, image: str, counter: StartCounter) -> job_pb2.JobSpec:
    """A shell script that says that it started, and then does it."""
    before = "trap '' TERM; " if kind is Command.IGNORES_STOP else ""
    script = f"{before}{counter.says(name)}; {SCRIPTS[kind]}"
    spec = job_pb2.JobSpec(name="conformance", command=["sh", "-c", script])
    spec.environment.image = image
    return spec


def through(proxy: str, kubeconfig: str) -> str:
    """A kubeconfig like this one, whose cluster is behind a proxy; its path."""
    path = Path(kubeconfig)
    config: dict[str, Any] = json.loads(path.read_text())
    config["clusters"][0]["cluster"] = {"server": proxy}
    made = path.with_suffix(".proxy.kubeconfig")
    made.write_text(json.dumps(config))
    made.chmod(0o600)
    return str(made)


def authority_of(kubeconfig: str) -> str:
    """PEM of the authority that a kubeconfig trusts."""
    import base64

    config = json.loads(Path(kubeconfig).read_text())
    return base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
