"""Jobs on the device: the worker of a host, as a process of its own, for as long as there are any.

The worker and its keeper have a data directory of their own and go out by the agent's one way. They
are started when the server says that there is work, or when something of a job is still here, and
end once nothing was for a while. Jobs are the keeper's children: the death of an agent or a worker
ends none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog

from hatoba_worker import host
from hatoba_worker.config import Config
from hatoba_worker.homes import SPARE
from hatoba_worker.keeper.client import end_keeper
from hatoba_worker.watched import IDLE, IDLED, UNDER

log = structlog.get_logger(__name__)

DIRECTORY = "jobs"
SLOTS = 8
"""Jobs that state no resources and may run at once."""
GRACE = 10.0
AGAIN = 5.0
"""Seconds until a worker is started once more that ended by itself though there is work."""
LOG_BYTES = 1 << 20
NOT_ITS_OWN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "RUNTIME_DIRECTORY")


class DeviceJobs:
    """`device` gives the device's name, `way` what the worker is to dial. `idle`: seconds without
    any job after which the worker ends.
    """

    def __init__(
        self,
        data: Path,
        device: Callable[[], str],
        way: str,
        *,
        idle: float,
        environ: Mapping[str, str],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._data = data / DIRECTORY
        self._device = device
        self._way = way
        self._idle = idle
        self._environ = {name: environ[name] for name in environ if name not in NOT_ITS_OWN}
        self._sleep = sleep
        self._wanted = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._left: Callable[[], None] | None = None

    # -- what it is told ------------------------------------------------------------------------

    def told(self) -> None:
        """There is work for this device."""
        self._wanted.set()

    def leave(self, left: Callable[[], None]) -> None:
        """End all jobs, whatever the server knows of them; `left` hears of their end."""
        self._left = left
        self._wanted.set()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    @property
    def running(self) -> bool:
        """Whether the worker runs."""
        return self._process is not None

    # -- its life -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Have a worker while there is work, until cancelled; jobs go on without us."""
        if await asyncio.to_thread(self._holds):
            self._wanted.set()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self._left is not None:
                await self._end_all(self._left)
                self._left = None
            else:
                await self._work()

    def _holds(self) -> bool:
        """Whether something of a job is here."""
        try:
            with os.scandir(self._data / "attempts") as found:
                return any(one.name != SPARE for one in found)
        except OSError:
            return False

    async def _work(self) -> None:
        """One run of the worker, and what follows from its end."""
        try:
            code = await self._worked()
        except OSError as error:
            log.error("agent.jobs", error=str(error))
            code = -1
        if self._left is not None:
            return
        if code == IDLED:
            # Nothing is left to be kept, unless there is work again.
            if not self._wanted.is_set():
                await end_keeper(self._data, 0.0)
            return
        log.warning("agent.jobs.ended", code=code)
        await self._sleep(AGAIN)
        self._wanted.set()

    async def _worked(self) -> int:
        """Run the worker to its end; its exit code. Raises OSError."""
        handle = await asyncio.to_thread(self._prepared)
        command = [sys.executable, "-m", "hatoba_worker", "run", "--data", str(self._data)]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *(IDLE, f"{self._idle:g}", UNDER),
                # Its end tells the worker of ours.
                stdin=asyncio.subprocess.PIPE,
                stdout=handle,
                stderr=handle,
                env={**self._environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
            )
        finally:
            os.close(handle)
        self._process = process
        if self._left is not None:
            process.terminate()
        log.info("agent.jobs.began", pid=process.pid)
        try:
            return await process.wait()
        finally:
            self._process = None
            await _ended(process)

    def _prepared(self) -> int:
        """What the worker is told, and a handle of its log."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._holds():
            # It may be another device by now, or one of another server.
            (self._data / "host.json").unlink(missing_ok=True)
        name = self._device()
        Config(
            self._data,
            server=self._way,
            device=name,
            name=name,
            cpus=host.core_count(),
            memory_bytes=host.memory_bytes(),
            gpus=0,
            slots=SLOTS,
            engine="none",
        ).save()
        secrets = self._data / "secrets"
        if not secrets.is_symlink():
            # Those of the device's models are those of its jobs.
            secrets.symlink_to(self._data.parent / "secrets")
        path = self._data / "worker.log"
        with contextlib.suppress(OSError):
            if path.stat().st_size > LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    async def _end_all(self, left: Callable[[], None]) -> None:
        await end_keeper(self._data, GRACE)
        await asyncio.to_thread(shutil.rmtree, self._data, True)
        log.info("agent.jobs.left")
        left()


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End a worker that still runs, and wait for it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
