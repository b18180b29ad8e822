"""The part of the store that keeps schedules. All of them are in memory while a server runs."""

from __future__ import annotations

from typing import Protocol

from hatoba_scheduler.domain.schedules import Schedule
from hatoba_scheduler.store.base import Met, RequestKey, Stale


class ScheduleStore(Protocol):
    """See the module."""

    async def all(self) -> list[Schedule]:
        """Every schedule, by project and name."""
        ...

    async def put(
        self, schedule: Schedule, request: RequestKey | None = None
    ) -> Schedule | Stale | Met:
        """Write a schedule over the version before its own; version 1 is a new one.

        Durable when it returns, with the key of who asked; a known key changes nothing. Stale:
        somebody else wrote it, or the name is taken.
        """
        ...

    async def delete(self, uid: str) -> None:
        """Remove a schedule; one that is not there is removed already."""
        ...
