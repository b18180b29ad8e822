"""`ScheduleStore` on the store's SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable

from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.schedules import CatchUp, Overlap, Schedule, Settings
from hatoba_scheduler.store.base import Met, RequestKey, Stale
from hatoba_scheduler.store.sqlite.readers import Readers, fetch
from hatoba_scheduler.store.sqlite.requests import keep, met
from hatoba_scheduler.store.sqlite.statements import Row, of
from hatoba_scheduler.store.sqlite.unit import Direct
from hatoba_scheduler.store.sqlite.writer import Writer

PART = "schedules"


class SqliteSchedules:
    """See `ScheduleStore`."""

    def __init__(self, writer: Writer, readers: Readers, now: Callable[[], Micros]) -> None:
        self._writer = writer
        self._readers = readers
        self._now = now

    async def all(self) -> list[Schedule]:
        """See `ScheduleStore.all`."""
        found = await self._readers.run(lambda connection: fetch(connection, of(PART, "all")))
        return [_schedule_from(row) for row in found]

    async def put(
        self, schedule: Schedule, request: RequestKey | None = None
    ) -> Schedule | Stale | Met:
        """See `ScheduleStore.put`."""
        statement = of(PART, "insert" if schedule.version == 1 else "update")
        now = self._now()

        def work(connection: sqlite3.Connection) -> Schedule | Stale | Met:
            known = met(connection, request)
            if known is not None:
                return known
            if not connection.execute(statement, _row_of(schedule)).rowcount:
                return Stale.STALE
            keep(connection, request, schedule.name, now)
            return schedule

        answer: Schedule | Stale | Met = await self._writer.call(Direct(work))
        return answer

    async def delete(self, uid: str) -> None:
        """See `ScheduleStore.delete`."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(of(PART, "delete"), (uid,))

        await self._writer.call(Direct(work))


def _row_of(schedule: Schedule) -> Row:
    said = schedule.settings
    return (
        schedule.uid,
        schedule.project,
        schedule.name,
        schedule.version,
        schedule.settings_version,
        said.cron,
        said.time_zone,
        said.spec,
        int(said.overlap),
        int(said.catch_up),
        said.max_catch_up,
        int(said.paused),
        said.end_time,
        json.dumps(said.labels),
        schedule.created_by,
        schedule.create_time,
        schedule.position,
        schedule.last_time,
        schedule.last_outcome,
        schedule.waiting,
        schedule.submitting,
        schedule.last_job,
        json.dumps(schedule.recent),
    )


def _schedule_from(row: Row) -> Schedule:
    uid, project, name, version, settings_version, *said = row
    cron, zone, spec, overlap, catch_up, most, paused, end_time, labels, *rest = said
    created_by, create_time, position, last_time, last_outcome, *runs = rest
    waiting, submitting, last_job, recent = runs
    return Schedule(
        uid,
        project,
        name,
        Settings(
            cron,
            zone,
            spec,
            Overlap(overlap),
            CatchUp(catch_up),
            most,
            bool(paused),
            end_time,
            tuple((key, value) for key, value in json.loads(labels)),
        ),
        created_by,
        create_time,
        position,
        version,
        settings_version,
        last_time,
        last_outcome,
        waiting,
        submitting,
        last_job,
        tuple(json.loads(recent)),
    )
