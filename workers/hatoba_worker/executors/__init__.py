"""What runs the command of an attempt. Processes today; containers are to sit beside them."""

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


class Executor(Protocol):
    """Starts and ends attempts; every call may be repeated."""

    async def start(self, spawn: Spawn) -> Spawned | SpawnFailed:
        """Start an attempt; one that is known is not started again."""

    def stop(self, name: str, grace: float) -> None:
        """Ask an attempt to end, and kill what is left after `grace` seconds."""

    def forget(self, name: str) -> None:
        """Drop what is kept of an attempt that is gone."""

    async def sample(self) -> Sequence[Sample]:
        """Measure all that run; empty while the executor cannot be reached."""
