"""A host for tests: a data directory with a keeper, workers one after another, and their server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from scripted_server import TOKEN, ScriptedServer
from server_process import runs
from waiting import PATIENCE, until

from hatoba.v1 import worker_pb2
from hatoba_worker.config import Config
from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.client import KeeperClient, KeeperGone
from hatoba_worker.keeper.family import KEEPER_MARK
from hatoba_worker.keeper.keeper import data_key


class House:
    """One host of tests."""

    def __init__(self, root: Path) -> None:
        self.data = root / "host"
        self.data.mkdir()
        self.server = ScriptedServer()
        self.heard = self.server.heard
        self.environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.settings: dict[str, Any] = {"embedded": True, "name": "host-1"}
        self._worker: asyncio.subprocess.Process | None = None

    async def start_worker(self) -> None:
        """Start a worker and wait for its inventory."""
        inventories = len(self.heard.all("inventory_complete"))
        self._worker = await self._spawn()
        await self.heard.wait("inventory_complete", count=inventories + 1)

    async def second_worker(self) -> int:
        """Start another worker beside it; returns its exit code."""
        async with asyncio.timeout(PATIENCE):
            return await (await self._spawn()).wait()

    async def worker_memory(self) -> int:
        """What the worker has resident, in bytes."""
        assert self._worker is not None
        known = await asyncio.to_thread(procfs.stat, self._worker.pid)
        return known.rss_bytes if known else 0

    async def alive(self, pid: int) -> bool:
        """Whether `pid` is a process that still runs."""
        return await asyncio.to_thread(runs, pid)

    async def _spawn(self) -> asyncio.subprocess.Process:
        await asyncio.to_thread(self._configure)
        log = await asyncio.to_thread((self.data / "worker.log").open, "ab")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "hatoba_worker", "run", "--data", str(self.data)),
            env=self.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        return process

    def _configure(self) -> None:
        address = f"127.0.0.1:{self.server.port}"
        (self.data / "server.json").write_text(json.dumps({"grpc": address}))
        (self.data / "worker.token").write_text(TOKEN)
        Config(self.data, **self.settings).save()

    async def kill_worker(self) -> None:
        """kill -9."""
        await self._end_worker(signal.SIGKILL)

    async def stop_worker(self) -> int:
        """SIGTERM; returns the exit code."""
        return await self._end_worker(signal.SIGTERM)

    async def _end_worker(self, number: int) -> int:
        assert self._worker is not None
        with contextlib.suppress(ProcessLookupError):
            self._worker.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            code = await self._worker.wait()
        self._worker = None
        return code

    async def restart_worker(self) -> None:
        """kill -9, and another one."""
        await self.kill_worker()
        await self.start_worker()

    def launch(self, attempt: str, *command: str, **fields: Any) -> worker_pb2.LaunchAttempt:
        """Describe an attempt; nothing is sent."""
        launch = worker_pb2.LaunchAttempt(
            attempt=attempt,
            fence=1,
            job="projects/default/jobs/test-1",
            number=1,
            task_count=1,
            command=command,
            **fields,
        )
        if not launch.HasField("stop_grace"):
            launch.stop_grace.FromSeconds(5)
        return launch

    def run(self, attempt: str, *command: str, **fields: Any) -> None:
        """Launch an attempt."""
        self.server.launch(self.launch(attempt, *command, **fields))

    def shell(self, attempt: str, script: str, **fields: Any) -> None:
        """Launch a shell script."""
        self.run(attempt, "/bin/sh", "-c", script, **fields)

    async def commit(self, attempt: str) -> Any:
        """The commit of an attempt, waited for."""
        return await self.heard.wait("commit", attempt)

    async def forgotten(self, attempt: str) -> None:
        """Wait until nothing is kept of an attempt."""
        home = self.home(attempt)
        await until(lambda: not home.exists())

    async def logged(self, attempt: str, text: bytes, stream: str = "stdout") -> None:
        """Wait until the server has `text` in a log."""
        await self.heard.until(lambda: text in self.server.log(attempt, stream))

    def home(self, attempt: str) -> Path:
        """An attempt's directory."""
        return self.data / "attempts" / attempt

    async def keeper_has(self, *attempts: str) -> None:
        """Wait until these are the attempts that the keeper has."""
        async with await KeeperClient.connect(self.data) as keeper, asyncio.timeout(PATIENCE):
            held: list[str] = ["?"]
            while held != sorted(attempts):
                held = [each.attempt for each in (await keeper.list()).attempts]

    def secret(self, name: str, value: str, mode: int = 0o600) -> None:
        """Put a secret into the host's directory."""
        path = self.data / "secrets" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value)
        path.chmod(mode)

    def spans(self) -> list[Any]:
        """All spans that were sent."""
        return [span for batch in self.heard.all("spans") for span in batch.spans]

    async def kill_keeper(self) -> None:
        """kill -9."""
        pid = int(await asyncio.to_thread((self.data / "keeper.lock").read_text))
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not runs(pid))

    async def marked(self) -> list[int]:
        """The running processes that carry this host's mark."""
        return await asyncio.to_thread(marked, self.data)

    async def close(self) -> None:
        """End all."""
        if self._worker is not None:
            await self.kill_worker()
        await self.server.stop()
        with contextlib.suppress(OSError, KeeperGone):
            async with await KeeperClient.connect(self.data) as keeper:
                await keeper.watch()
                await keeper.shutdown(stop_attempts=True, grace=0.0)
                async for _ in keeper.events():
                    pass


def marked(data: Path) -> list[int]:
    """The running processes that carry the mark of a directory's keeper; blocks."""
    key = data_key(data)
    return [
        each.pid
        for each in procfs.everyone().values()
        if not each.dead and procfs.environment(each.pid).get(KEEPER_MARK) == key
    ]
