"""The processes of the user's container, seen from the sidecar of its pod."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence

from hatoba_worker import tinyfiles
from hatoba_worker.attempts import Attempt, Start
from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.endings import kill_all
from hatoba_worker.keeper.messages import Sample, Spawn, Spawned, SpawnFailed
from hatoba_worker.spool import FILE

MARK = "HATOBA_DIR"
KILL_AGAIN = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")
Seen = dict[int, procfs.Stat]


class PodProcesses:
    """An executor that starts nothing: the kubelet does. It finds, measures and ends what has the
    attempt's directory in its environment, as far as the pod shares its processes.
    """

    def __init__(self, attempt: Attempt, tasks: asyncio.TaskGroup) -> None:
        self._attempt = attempt
        self._tasks = tasks
        self._asked = False
        self._seen: frozenset[tuple[int, int]] = frozenset()

    async def start(self, spawn: Spawn) -> Spawned | SpawnFailed:
        """Nothing is started from here."""
        return SpawnFailed(spawn.attempt, 0, "other", "the pod's own container runs it")

    def stop(self, name: str, grace: float) -> None:
        """Kill what is left after `grace` seconds. SIGTERM comes from the kubelet where the server
        wants the stop, and from here where we do ourselves.
        """
        if not self._asked:
            self._asked = True
            self._tasks.create_task(self._end(grace), name=f"end {name}")

    def forget(self, name: str) -> None:
        """Nothing is kept."""

    def published(self, name: str) -> str:
        """A pod's own address is its address."""
        return ""

    async def sample(self) -> Sequence[Sample]:
        """Measure all that run."""
        found = await asyncio.to_thread(self.look)
        if not found:
            return []
        cpu = sum(each.cpu_seconds for each in found.values())
        rss = sum(each.rss_bytes for each in found.values())
        return [Sample(self._attempt.name, cpu, rss, tuple(found))]

    async def begun(self) -> Start | None:
        """When the user's code began; None while nothing tells that it did."""
        found = await asyncio.to_thread(self.look)
        if found:
            first = min(each.start for each in found.values())
            ago = time.clock_gettime(time.CLOCK_BOOTTIME) - first / _TICKS
            return Start(time.time() - ago, first, "none")
        if tinyfiles.size(self._attempt.path(FILE)):
            return Start(time.time(), 0, "none")
        return None

    def look(self) -> Seen:
        """The processes by pid. What hides its environment is known by its parents. Blocks."""
        home, me = self._attempt.home, os.getpid()
        everyone = procfs.everyone()
        roots = [
            pid
            for pid, each in everyone.items()
            if pid != me and not each.dead and self._is_ours(each, home)
        ]
        found = procfs.descendants(roots)
        found.pop(me, None)
        self._seen = frozenset((each.pid, each.start) for each in found.values())
        return found

    def _is_ours(self, each: procfs.Stat, home: str) -> bool:
        known = (each.pid, each.start) in self._seen
        return known or procfs.environment(each.pid).get(MARK) == home

    async def _end(self, grace: float) -> None:
        if self._attempt.why != "stop":
            await asyncio.to_thread(self._ask)
        while not await self._ends_within(grace):
            await asyncio.to_thread(kill_all, self.look)
            grace = KILL_AGAIN

    async def _ends_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._attempt.ended.wait()
        except TimeoutError:
            return False
        return True

    def _ask(self) -> None:
        for each in self.look().values():
            procfs.send(each, signal.SIGTERM)
