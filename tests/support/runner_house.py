"""A container for tests, as far as a runner sees one: an environment, a directory, processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner_desk import FENCE, LAUNCH_CREDENTIAL, RunnerDesk
from server_process import clean_environment, runs
from waiting import PATIENCE, until

from hatoba.v1 import runner_pb2
from hatoba_worker.keeper import procfs

PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Container:
    """One run of `hatoba-entrypoint COMMAND`; what it writes is kept."""

    process: asyncio.subprocess.Process
    out: Path
    err: Path

    async def code(self) -> int:
        """Its exit code, waited for."""
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def stdout(self) -> str:
        """What it wrote to stdout."""
        return self.out.read_text()

    def stderr(self) -> str:
        """What it wrote to stderr."""
        return self.err.read_text()


@dataclass
class RunnerHouse:
    """Containers on one machine, and the server they know."""

    root: Path
    desk: RunnerDesk = field(default_factory=RunnerDesk)
    containers: list[Container] = field(default_factory=list)
    port: int = 0
    """Where the server is reached; 0: where it listens."""

    def environ(self, attempt: str, **more: str) -> dict[str, str]:
        """What a platform gives the runner of an attempt."""
        return {
            **clean_environment(),
            "HATOBA_SERVER": f"grpc://127.0.0.1:{self.port or self.desk.port}",
            "HATOBA_ATTEMPT": attempt,
            "HATOBA_FENCE": str(FENCE),
            "HATOBA_CREDENTIAL": LAUNCH_CREDENTIAL,
            "HATOBA_RUNNER_DIR": str(self.root / attempt),
            **more,
        }

    async def run(self, attempt: str, *, below: Sequence[str] = (), **more: str) -> Container:
        """Start a runner for an attempt, below another command if told."""
        return await self.start(("run",), self.environ(attempt, **more), below=below)

    async def start(
        self, arguments: Sequence[str], environ: dict[str, str], *, below: Sequence[str] = ()
    ) -> Container:
        """Start `hatoba-entrypoint ARGUMENTS` in an environment."""
        number = len(self.containers)
        out, err = self.root / f"{number}.out", self.root / f"{number}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *below,
                *(sys.executable, "-m", "hatoba_worker.entrypoint", *arguments),
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        container = Container(process, out, err)
        self.containers.append(container)
        return container

    async def commit(self, attempt: str) -> runner_pb2.CommitAttemptRequest:
        """How an attempt ended, waited for."""
        found: runner_pb2.CommitAttemptRequest = await self.desk.heard.wait("commit", attempt)
        return found

    def left(self, attempt: str) -> list[str]:
        """Processes that still have something of an attempt's in their environment."""
        directory = str(self.root / attempt)
        return [
            procfs.command(each.pid)
            for each in procfs.everyone().values()
            if not each.dead
            and each.pid != os.getpid()
            and any(directory in value for value in procfs.environment(each.pid).values())
        ]

    async def close(self) -> None:
        """End what still runs; raises AssertionError when something outlives that."""
        for container in self.containers:
            if container.process.returncode is None:
                container.signal(signal.SIGTERM)
        for container in self.containers:
            await container.code()
        await self.desk.stop()
        names = list(self.desk.launches)
        await until(lambda: not any(self.left(name) for name in names))


@dataclass
class Pod:
    """A pod whose containers share their processes: two of ours, and the user's."""

    house: RunnerHouse
    attempt: str

    @property
    def shared(self) -> Path:
        """The volume of all containers."""
        return self.house.root / self.attempt / "shared"

    @property
    def private(self) -> Path:
        """The volume of our two containers."""
        return self.house.root / self.attempt / "private"

    @property
    def home(self) -> Path:
        """The attempt's directory."""
        return self.shared / "attempt"

    def environ(self, **more: str) -> dict[str, str]:
        """What init container and sidecar have."""
        volumes = {"HATOBA_SHARED_DIR": str(self.shared), "HATOBA_RUNNER_DIR": str(self.private)}
        return self.house.environ(self.attempt, **volumes, **more)

    async def init(self, **more: str) -> Container:
        """Start the init container."""
        self.shared.mkdir(parents=True, exist_ok=True)
        return await self.house.start(("pod-init",), self.environ(**more))

    async def sidecar(self, **more: str) -> Container:
        """Start the sidecar, and wait until its startup probe would be answered, or it ended."""
        marker = self.private / "ready"
        marker.unlink(missing_ok=True)
        container = await self.house.start(("pod-sidecar",), self.environ(**more))
        await until(lambda: marker.exists() or not runs(container.process.pid))
        return container

    def user_environ(self, **more: str) -> dict[str, str]:
        """What a manifest gives the user's container."""
        home = str(self.home)
        return {
            **clean_environment(),
            "HATOBA_ATTEMPT": self.attempt,
            "HATOBA_JOB": "projects/default/jobs/test-1",
            "HATOBA_DIR": home,
            "HATOBA_SPOOL": f"{home}/spool.jsonl",
            "HATOBA_PARAMS": f"{home}/params.json",
            "HATOBA_INPUTS": f"{home}/inputs",
            "HATOBA_OUTPUTS": f"{home}/outputs",
            "HATOBA_CHECKPOINTS": f"{home}/checkpoints",
            "HATOBA_RESTORE": f"{home}/restore/latest",
            "PYTHONPATH": str(self.shared / "lib"),
            **more,
        }

    async def user(
        self, *command: str, uid: int | None = None, **more: str
    ) -> asyncio.subprocess.Process:
        """Start the user's container, as another user if told."""
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=self.home / "work",
            env=self.user_environ(**more),
            stdin=asyncio.subprocess.DEVNULL,
            user=uid,
            start_new_session=True,
        )

    def tell_exit(self, kind: runner_pb2.ExitKind.ValueType, **fields: Any) -> None:
        """What the backend saw of the user's container."""
        self.house.desk.exits[self.attempt] = runner_pb2.AwaitExitResponse(
            attempt=self.attempt, known=runner_pb2.EXIT_KNOWN_ENDED, kind=kind, **fields
        )
