"""Processes and containers of one host behind one door."""

from __future__ import annotations

from collections.abc import Sequence

from hatoba_worker.executors.containers.executor import ContainerExecutor
from hatoba_worker.executors.containers.spec import ContainerSpawn
from hatoba_worker.executors.process import ProcessExecutor
from hatoba_worker.keeper.messages import Sample, Spawn, Spawned, SpawnFailed


class Executors:
    """Each attempt is a process or a container; whoever started it has it."""

    def __init__(self, processes: ProcessExecutor, containers: ContainerExecutor) -> None:
        self._processes = processes
        self._containers = containers

    async def start(self, spawn: Spawn) -> Spawned | SpawnFailed:
        """Start an attempt; one that is known is not started again."""
        if isinstance(spawn, ContainerSpawn):
            return await self._containers.start(spawn)
        return await self._processes.start(spawn)

    def stop(self, name: str, grace: float) -> None:
        """Ask an attempt to end, and kill what is left after `grace` seconds."""
        self._of(name).stop(name, grace)

    def forget(self, name: str) -> None:
        """Drop what is kept of an attempt that is gone."""
        self._of(name).forget(name)

    def published(self, name: str) -> str:
        """`HOST:PORT` at which a container is reached from outside; empty: as it says itself."""
        return self._containers.published(name)

    async def sample(self) -> Sequence[Sample]:
        """Measure all that run; those that cannot be reached are left out."""
        return [*await self._processes.sample(), *await self._containers.sample()]

    def _of(self, name: str) -> ProcessExecutor | ContainerExecutor:
        return self._containers if self._containers.has(name) else self._processes
