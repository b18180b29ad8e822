"""The command in this container, started by a keeper beside the runner."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path

from hatoba_worker.executors import Observer
from hatoba_worker.executors.process import ProcessExecutor
from hatoba_worker.keeper.cgroups import MemoryGroup
from hatoba_worker.keeper.messages import Exited, Limits, Spawn, Spawned, SpawnFailed

_CGROUPS = ((Path("/sys/fs/cgroup"), 2), (Path("/sys/fs/cgroup/memory"), 1))


class Command(ProcessExecutor):
    """An executor whose limits are the container's own; `pid` is the command's, once it runs."""

    def __init__(self, data: Path, observer: Observer) -> None:
        super().__init__(data, observer, asyncio.sleep)
        self.pid = 0

    async def start(self, spawn: Spawn) -> Spawned | SpawnFailed:
        """Start the command; one that runs is not started again."""
        started = await super().start(replace(spawn, limits=Limits()))
        if isinstance(started, Spawned):
            self.pid = started.pid
        return started

    def pass_on(self, number: int) -> None:
        """Send the command a signal that the container got."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


class Memory:
    """Tells a process that the container's memory limit killed from one that somebody killed."""

    def __init__(self) -> None:
        self._groups = [MemoryGroup(path, version) for path, version in _CGROUPS]
        self._killed = self._kills()

    def judge(self, event: Exited) -> Exited:
        """An end by SIGKILL with the reason that the kernel's own count gives it."""
        found = event.exit
        if found.signal != signal.SIGKILL or found.reason != "exited":
            return event
        if self._kills() <= self._killed:
            return event
        return replace(event, exit=replace(found, oom=True, reason="oom"))

    def _kills(self) -> int:
        return sum(group.oom_kills() for group in self._groups)
