"""The agent as it is shipped, as a process with a data directory of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

from command_line import Done

from hatoba_worker.agent import status
from hatoba_worker.agent.settings import Settings


class AgentProcess:
    """One machine."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.last = Done(0, "", "")
        """What a command said that a test has kept."""
        self.entering: tuple[str, ...] = ()
        """Words that begin the agent's command: what runs the rest in another place."""
        self._process: asyncio.subprocess.Process | None = None

    async def command(self, *arguments: str) -> Done:
        """`hatoba agent ...` on it, run to its end."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hatoba_worker.agent", *arguments, "--data", str(self.data)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    async def start(self) -> None:
        """Switch the agent on."""
        log = await asyncio.to_thread((self.data / "agent.log").open, "ab")
        words = (sys.executable, "-m", "hatoba_worker.agent", "run", "--data", str(self.data))
        self._process = await asyncio.create_subprocess_exec(
            *self.entering,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()

    def told(self) -> dict[str, Any]:
        """What the agent that runs now wrote for people on the device; blocks."""
        found = status.read(self.data)
        running = self._process
        return found if running is not None and found.get("pid") == running.pid else {}

    def settings(self) -> Settings:
        """What it was told when it became a device; blocks."""
        found = Settings.load(self.data)
        assert found is not None
        return found

    async def terminate(self) -> int:
        """End the agent as systemd does; its exit code."""
        assert self._process is not None
        self._process.terminate()
        return await self.ended()

    async def ended(self) -> int:
        """The exit code of the agent, which somebody ends."""
        assert self._process is not None
        return await self._process.wait()

    async def close(self) -> None:
        """Leave nothing behind."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
