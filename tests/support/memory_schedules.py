"""A ScheduleStore in memory; nothing of it outlives the test."""

from __future__ import annotations

from dataclasses import dataclass, field

from hatoba_scheduler.domain.schedules import Schedule
from hatoba_scheduler.store.base import RequestKey, Stale


@dataclass
class MemorySchedules:
    """Guards every write as a real store does."""

    kept: dict[str, Schedule] = field(default_factory=dict)
    fail_with: Exception | None = None
    """Raised by the next writes, until it is taken away."""

    async def all(self) -> list[Schedule]:
        """Every schedule, by project and name."""
        return sorted(self.kept.values(), key=lambda one: (one.project, one.name))

    async def put(self, schedule: Schedule, request: RequestKey | None = None) -> Schedule | Stale:
        """Write one over the version before its own."""
        if self.fail_with is not None:
            raise self.fail_with
        known = self.kept.get(schedule.uid)
        if (known.version if known else 0) != schedule.version - 1:
            return Stale.STALE
        self.kept[schedule.uid] = schedule
        return schedule

    async def delete(self, uid: str) -> None:
        """Remove one."""
        self.kept.pop(uid, None)
