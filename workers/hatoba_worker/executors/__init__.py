"""What runs the command of an attempt: processes by the keeper, containers by an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hatoba_worker.keeper.messages import (
    AttemptStatus,
    Exited,
    KeeperInfo,
    Sample,
    Spawn,
    Spawned,
    SpawnFailed,
)


class Observer(Protocol):
    """Who is told what became of attempts. Ends may be told twice."""

    def inventory(self, info: KeeperInfo, held: dict[str, AttemptStatus]) -> None:
        """Everything that the executor has, after each (re)connection, before any event."""

    def exited(self, event: Exited) -> None:
        """The main process of an attempt ended."""

    def gone(self, name: str) -> None:
        """Nothing of an attempt is left."""


class ContainerObserver(Protocol):
    """Who is told what became of containers. Ends may be told twice."""

    def containers(self, held: dict[str, AttemptStatus]) -> None:
        """Every container that there is, after each (re)connection to the engine, before any
        event."""

    def engine_changed(self) -> None:
        """The engine came, went, or was not found."""

    def exited(self, event: Exited) -> None:
        """A container ended."""

    def lost(self, name: str) -> None:
        """Nothing of a container is left, and its end was not its own, or nobody saw it."""


class Executor(Protocol):
    """Starts and ends attempts; every call may be repeated."""

    async def start(self, spawn: Spawn) -> Spawned | SpawnFailed:
        """Start an attempt; one that is known is not started again."""

    def stop(self, name: str, grace: float) -> None:
        """Ask an attempt to end, and kill what is left after `grace` seconds."""

    def forget(self, name: str) -> None:
        """Drop what is kept of an attempt that is gone."""

    def published(self, name: str) -> str:
        """`HOST:PORT` at which a container is reached from outside; empty: as it says itself."""

    async def sample(self) -> Sequence[Sample]:
        """Measure all that run; empty while the executor cannot be reached."""
