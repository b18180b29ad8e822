"""A real server with its keeper and worker on a directory of its own: started, killed, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from waiting import PATIENCE, until

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.ask import ask
from hatoba_worker.keeper.family import KEEPER_MARK
from hatoba_worker.keeper.keeper import data_key

HATOBA = ("-m", "hatoba")
"""What an interpreter is given to be `hatoba`."""
LOG_LINES = 30
READY_WITHIN = 120.0
"""Seconds: on a machine that does much else the drivers of some backends take their time."""


class Unready(AssertionError):
    """The server did not come up; the message has the end of its log."""


def runs(pid: int) -> bool:
    """Whether `pid` is a process that still runs; zombies do not."""
    known = procfs.stat(pid)
    return known is not None and not known.dead


async def living(pids: Iterable[int]) -> list[str]:
    """The command lines of those that still run."""

    def look() -> list[str]:
        return [command_of(pid) for pid in pids if runs(pid)]

    return await asyncio.to_thread(look)


def died(pid: int, patience: float) -> bool:
    """Whether a process ends by itself within so many seconds."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return not runs(pid) or bool(select.select([handle], [], [], patience)[0])
    finally:
        os.close(handle)


def kill9(pid: int, patience: float = PATIENCE) -> bool:
    """kill -9, and wait until it is dead; False when there was no such process."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not runs(pid):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], patience)[0]:
            raise AssertionError(f"process {pid} outlives SIGKILL")
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


class Launcher(Protocol):
    """Starts server processes."""

    environ: dict[str, str]
    """What the next servers have in their environment beside the usual."""

    def start(self, arguments: Sequence[str], log: Path) -> int:
        """Start `hatoba server start ARGUMENTS`, its output appended to `log`; the pid."""


class ColdLauncher:
    """Starts an interpreter for each server, as a shell does."""

    def __init__(
        self, python: str | Path = sys.executable, program: Sequence[str] = HATOBA
    ) -> None:
        self._command = (python, *program)
        self.environ: dict[str, str] = {}
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, arguments: Sequence[str], log: Path) -> int:
        """See Launcher."""
        # Those that died are reaped here.
        self._started = [process for process in self._started if process.poll() is None]
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*self._command, "server", "start", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**clean_environment(), **self.environ},
                start_new_session=True,
                cwd="/",
            )
        self._started.append(process)
        return process.pid

    def close(self) -> None:
        """Reap what was started and has ended."""
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)


def clean_environment() -> dict[str, str]:
    """This process's environment without any setting of Hatoba."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HATOBA_", "TRACE"))
    }


@dataclass
class HatobaServer:
    """One data directory, and the servers that serve it one after another."""

    data: Path
    worker: bool = True
    options: tuple[str, ...] = ()
    launcher: Launcher = field(default_factory=ColdLauncher)
    pid: int = 0
    ready: dict[str, Any] = field(default_factory=dict)
    patience: float = PATIENCE
    """Seconds in which a server that is started has to be ready."""

    @property
    def log(self) -> Path:
        """What all of its servers wrote."""
        return self.data / "server.log"

    @property
    def address(self) -> str:
        """Where gRPC is answered, as the last server said."""
        return str(self.ready["grpc"])

    @property
    def router_url(self) -> str:
        """Where deployments answer, `http://HOST:PORT`, as the last server said."""
        return f"http://{self.ready['router']}"

    def token(self, name: str = "admin") -> str:
        """The text of one of the tokens that the server made for its own directory."""
        return (self.data / f"{name}.token").read_text().strip()

    def log_text(self) -> str:
        """What all of its servers wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    async def start(self) -> None:
        """Start a server and wait until it is ready; raises Unready."""
        await asyncio.to_thread(self.launch)
        await self.until_ready()

    def launch(self) -> None:
        """Start a server and do not wait for it."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.ready_file.unlink(missing_ok=True)
        arguments = ["--data", str(self.data), "--ready-file", str(self.ready_file)]
        if not self.worker:
            arguments.append("--no-worker")
        self.pid = self.launcher.start([*arguments, *self.options], self.log)

    async def until_ready(self) -> None:
        """Wait until the server that was launched last is ready; raises Unready."""
        try:
            await until(lambda: self.ready_file.exists() or not runs(self.pid), READY_WITHIN)
        except TimeoutError:
            raise Unready(f"not ready after {READY_WITHIN} s:\n{self.end_of_log()}") from None
        if not self.ready_file.exists():
            raise Unready(f"the server ended:\n{self.end_of_log()}")
        self.ready = json.loads(self.ready_file.read_text())

    def end_of_log(self) -> str:
        """The last lines that its servers wrote."""
        return "\n".join(self.log_text().splitlines()[-LOG_LINES:])

    async def kill(self) -> None:
        """kill -9 the server."""
        assert await asyncio.to_thread(kill9, self.pid), "there was no server to kill"

    async def restart(self) -> None:
        """kill -9 the server and start another on the same directory."""
        await self.kill()
        await self.start()

    async def terminate(self) -> float:
        """SIGTERM the server; the seconds it took to end."""
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        await until(lambda: not runs(self.pid))
        return time.monotonic() - began

    # -- keeper and worker ------------------------------------------------------------------------

    def keeper_pid(self) -> int:
        """The keeper's pid; 0 while there is none."""
        try:
            pid = int(json.loads((self.data / "keeper.json").read_text())["pid"])
        except (OSError, ValueError, KeyError):
            return 0
        return pid if runs(pid) else 0

    def worker_pid(self) -> int:
        """The worker's pid; 0 while there is none."""
        return self._supervised_pid("worker")

    def router_pid(self) -> int:
        """The router's pid; 0 while there is none."""
        return self._supervised_pid("router")

    def _supervised_pid(self, name: str) -> int:
        try:
            (reply,) = ask(self.data, [{"op": "list"}], timeout=5.0)
        except (OSError, ValueError):
            return 0
        for process in reply.get("supervised", ()):
            if process["name"] == name and process["pid"] and runs(process["pid"]):
                return int(process["pid"])
        return 0

    async def kill_worker(self) -> int:
        """kill -9 the worker; its pid."""
        return await self._kill(self.worker_pid)

    async def kill_router(self) -> int:
        """kill -9 the router; its pid."""
        return await self._kill(self.router_pid)

    async def kill_keeper(self) -> int:
        """kill -9 the keeper; its pid."""
        return await self._kill(self.keeper_pid)

    async def _kill(self, find: Callable[[], int]) -> int:
        await until(find)
        pid = await asyncio.to_thread(find)
        assert await asyncio.to_thread(kill9, pid), f"process {pid} was gone already"
        return pid

    # -- the end ----------------------------------------------------------------------------------

    def left(self) -> list[str]:
        """Processes that belong to this directory, each with its command line."""
        return [f"{pid}: {command}" for pid, command in self._processes()]

    def marked(self) -> list[str]:
        """Processes of attempts of this directory, each with its command line."""
        return [f"{pid}: {command}" for pid, command in self._processes(attempts=True)]

    def _processes(self, *, attempts: bool = False) -> list[tuple[int, str]]:
        key, found = data_key(self.data), []
        for each in procfs.everyone().values():
            if each.dead or each.pid == os.getpid():
                continue
            ours = procfs.environment(each.pid).get(KEEPER_MARK) == key
            if ours or (not attempts and self._stands_here(each.pid)):
                found.append((each.pid, command_of(each.pid)))
        return found

    def _stands_here(self, pid: int) -> bool:
        if f"{self.data}" in command_of(pid).split():
            return True
        with contextlib.suppress(OSError):
            return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(self.data)
        return False

    async def close(self) -> None:
        """End everything on the directory; raises AssertionError when something is left."""
        await self.terminate()
        with contextlib.suppress(TimeoutError):
            await until(self._shut_down, patience=10.0)
        left = await asyncio.to_thread(self._processes)
        for pid, _ in left:
            await asyncio.to_thread(kill9, pid)
        assert not left, f"left behind on {self.data}: {left}"

    def _shut_down(self) -> bool:
        """Ask whatever keeper there is to end; a server just started may be starting one still."""
        with contextlib.suppress(OSError, ValueError):
            ask(self.data, [{"op": "shutdown", "stop_attempts": True, "grace": 0.0}])
        return not self._processes()

    @property
    def ready_file(self) -> Path:
        """Where a server that is ready says so."""
        return self.data / "ready.json"


def configured(data: Path, config: str) -> Path:
    """A new data directory with this `hatoba.toml`; blocks."""
    data.mkdir(mode=0o700, parents=True)
    (data / "hatoba.toml").write_text(config)
    return data


def command_of(pid: int) -> str:
    """The command line of a process; empty when it is gone."""
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    return ""


@contextlib.asynccontextmanager
async def running_server(
    data: Path,
    *,
    worker: bool = True,
    options: tuple[str, ...] = (),
    launcher: Launcher | None = None,
    patience: float = PATIENCE,
) -> AsyncIterator[HatobaServer]:
    """A server that is ready; at the end nothing of it is left, or that is an error.

    A launcher that is given is the caller's, who closes it.
    """
    own = ColdLauncher()
    server = HatobaServer(data, worker, options, launcher or own, patience=patience)
    try:
        await server.start()
        yield server
    finally:
        try:
            await server.close()
        finally:
            await asyncio.to_thread(own.close)
