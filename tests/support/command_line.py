"""`hatoba` as a person types it, in a directory of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from server_process import HatobaServer, clean_environment
from waiting import PATIENCE


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def cli_environment(server: HatobaServer, home: Path) -> dict[str, str]:
    """An environment in which `hatoba` talks to this server and keeps its memory in `home`."""
    return {
        **clean_environment(),
        "HOME": str(home),
        "HATOBA_DATA": str(server.data),
        "HATOBA_CONFIG": str(home / "config"),
        "HATOBA_STATE": str(home / "state"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


class CommandLine:
    """Commands to one server; they are typed in `work`, a directory of its own."""

    def __init__(self, server: HatobaServer, home: Path, patience: float = 2 * PATIENCE) -> None:
        self._environment = cli_environment(server, home)
        self._patience = patience
        self.work = home / "work"
        self.work.mkdir(exist_ok=True)

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a command."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hatoba", *arguments),
            cwd=self.work,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *arguments: str) -> Done:
        """Run a command to its end; none ever shows a traceback of its own, as jobs may."""
        process = await self.start(*arguments)
        async with asyncio.timeout(self._patience):
            out, err = await process.communicate()
        assert process.returncode is not None
        assert b"hatoba/__main__.py" not in err, err.decode()
        return Done(process.returncode, out.decode(), err.decode())


def server_command(server: HatobaServer, *arguments: str) -> Done:
    """`hatoba server ...` on the data directory of a server, run to its end; blocks."""
    line = [sys.executable, "-m", "hatoba", "server", *arguments, "--data", str(server.data)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=4 * PATIENCE)
    return Done(done.returncode, done.stdout, done.stderr)
