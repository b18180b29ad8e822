"""A device with the agent as it is shipped, which dials a server through a link that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from edge_world import QUICK_LINKS
from held_link import HeldLink
from server_process import clean_environment
from worker_house import marked

NOWHERE = 1
"""A port on which nobody listens."""


class JobDevice:
    """What is on its disk outlives agent and power."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.data = root / name
        self.link = HeldLink(NOWHERE)
        self._there = NOWHERE
        self._process: asyncio.subprocess.Process | None = None

    async def enroll(self, address: str, token: str) -> None:
        """Become a device, whose link is ours."""
        await self._hatoba(
            *("enroll", "--server", address, "--token", token, "--name", self.name),
            *("--data", str(self.data)),
        )
        await self.link.open()
        await asyncio.to_thread(self._lead_through)
        self.link.there = self._there

    def _lead_through(self) -> None:
        path = self.data / "agent.json"
        told = json.loads(path.read_text())
        self._there = int(told["address"].rpartition(":")[2])
        told |= {"address": f"127.0.0.1:{self.link.port}", "jobs_idle": 2}
        path.write_text(json.dumps(told))

    async def _hatoba(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hatoba_worker.agent", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate()
        assert process.returncode == 0, err.decode()

    # -- the agent ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Switch the agent on."""
        log = await asyncio.to_thread((self.data / "agent.log").open, "ab")
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hatoba_worker.agent", "run", "--data", str(self.data)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**clean_environment(), **QUICK_LINKS},
        )
        log.close()

    async def kill(self) -> None:
        """kill -9 of the agent alone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def close(self) -> None:
        """Leave nothing behind."""
        await self.kill()
        await asyncio.to_thread(self._kill_all)
        await self.link.close()

    def _kill_all(self) -> None:
        for directory in filter(Path.exists, (self.data, self.jobs)):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((directory / "keeper.lock").read_text()), signal.SIGKILL)
            for pid in marked(directory):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # -- its link -------------------------------------------------------------------------------

    def cut(self) -> None:
        """No link, until it is mended."""
        self.link.there = NOWHERE
        self.link.cut()

    def mend(self) -> None:
        """It may dial again."""
        self.link.there = self._there

    # -- on the device itself; blocks -----------------------------------------------------------

    @property
    def jobs(self) -> Path:
        """Where what runs jobs has its files."""
        return self.data / "jobs"

    def workers(self) -> list[int]:
        """Processes that run the device's jobs, but for these themselves."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if b"hatoba_worker" in words and str(self.jobs).encode() in words:
                    found.append(int(path.parent.name))
        return found

    def running(self, mark: str) -> list[int]:
        """Processes of jobs that have this in their environment."""
        found = []
        for pid in marked(self.jobs) if self.jobs.exists() else ():
            with contextlib.suppress(OSError):
                if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found
