"""All schedules in memory, and the store behind them."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.zones import UnknownZone, load_zone
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.schedules import BadCron, Schedule, Settings, Times
from hatoba_scheduler.errors import Aborted, AlreadyExists, NotFound, Resource
from hatoba_scheduler.store.base import Met, RequestKey, Stale
from hatoba_scheduler.store.schedules import ScheduleStore
from hatoba_scheduler.whole import whole

log = structlog.get_logger(__name__)
_AT_ONCE = 200


@dataclass(slots=True)
class Live:
    """A schedule in memory. `times` None: its expression or zone is not known any more."""

    schedule: Schedule
    times: Times | None
    backlog: deque[Micros] = field(default_factory=deque)
    """Times that have come and are worked off one by one."""
    running: str = ""
    """Name of the run before, while it has not ended."""
    failures: int = 0
    """How often in a row something could not be submitted or stored."""


def times_of(settings: Settings) -> Times:
    """The times of a schedule. Reads the zone from disk. Raises BadCron, UnknownZone."""
    return _times(settings.cron, settings.time_zone)


@functools.lru_cache(maxsize=4096)
def _times(cron: str, zone: str) -> Times:
    return Times(cron, load_zone(zone))


class ScheduleBook:
    """Every schedule by uid and by (project, name)."""

    def __init__(self, store: ScheduleStore) -> None:
        self._store = store
        self._live: dict[str, Live] = {}
        self._named: dict[tuple[str, str], Live] = {}
        self._changed: Callable[[Live], None] = lambda live: None

    def on_change(self, changed: Callable[[Live], None]) -> None:
        """Tell of every schedule that its owner made or changed."""
        self._changed = changed

    async def recover(self) -> None:
        """Load all schedules."""
        found = await self._store.all()
        for start in range(0, len(found), _AT_ONCE):
            some = found[start : start + _AT_ONCE]
            times = await asyncio.to_thread(_all_times, some)
            for schedule, one in zip(some, times, strict=True):
                self._take(Live(schedule, one))

    def _take(self, live: Live) -> None:
        self._live[live.schedule.uid] = live
        self._named[live.schedule.project, live.schedule.name] = live

    def all(self) -> Iterable[Live]:
        """Every schedule; not to be kept over an await."""
        return self._live.values()

    def find(self, uid: str) -> Live | None:
        """One schedule while it is there."""
        return self._live.get(uid)

    def known(self, project: str, name: str) -> Live | None:
        """One schedule by name."""
        return self._named.get((project, name))

    def get(self, project: str, name: str) -> Live:
        """One schedule by name. Raises NotFound."""
        live = self.known(project, name)
        if live is None:
            raise NotFound(
                f"there is no schedule {name!r} in project {project!r}; "
                "`hatoba schedules list` shows those there are",
                resource=Resource("schedule", name),
            )
        return live

    async def manifest_roots(self) -> set[str]:
        """Digests of all manifests that schedules name: they are kept for the runs to come."""
        found: set[str] = set()
        for live in list(self._live.values()):
            spec = job_pb2.JobSpec.FromString(live.schedule.settings.spec)
            found.add(spec.code.digest)
            found.update(one.manifest.digest for one in spec.inputs if not one.source)
            await asyncio.sleep(0)
        return found - {""}

    def page(self, project: str, after: str, count: int) -> list[Live]:
        """Schedules of a project by name, above a name."""
        names = sorted(n for p, n in self._named if p == project and n > after)
        return [self._named[project, name] for name in names[:count]]

    async def add(
        self, schedule: Schedule, times: Times, request: RequestKey | None = None
    ) -> Live | Met:
        """Keep a new schedule, and the key of who asked. Raises AlreadyExists."""
        return await whole(self._add(schedule, times, request))

    async def _add(
        self, schedule: Schedule, times: Times, request: RequestKey | None
    ) -> Live | Met:
        stored = await self._store.put(schedule, request)
        if isinstance(stored, Met):
            return stored
        if isinstance(stored, Stale):
            raise AlreadyExists(f"schedule {schedule.name!r} was made meanwhile; read it")
        live = Live(schedule, times)
        self._take(live)
        self._changed(live)
        return live

    async def change(self, uid: str, decide: Callable[[Schedule], Schedule]) -> Live | None:
        """Write what a pure function makes of a schedule; None when it is gone.

        What `decide` raises is raised, and nothing changes.
        """
        changed = await whole(self._change(uid, decide, None))
        assert not isinstance(changed, Met)
        return changed

    async def _change(
        self, uid: str, decide: Callable[[Schedule], Schedule], request: RequestKey | None
    ) -> Live | Met | None:
        while (live := self._live.get(uid)) is not None:
            before = live.schedule
            stored = await self._store.put(decide(before), request)
            if isinstance(stored, Met):
                return stored
            if isinstance(stored, Schedule):
                live.schedule = stored
                return live
            if live.schedule is before and uid in self._live:
                raise Aborted(f"schedule {before.name!r} was changed by somebody else")
        return None

    async def change_settings(
        self,
        uid: str,
        decide: Callable[[Schedule], Schedule],
        times: Times,
        request: RequestKey | None = None,
    ) -> Live | Met | None:
        """As `change`, with times to go by from now on, and the key of who asked."""
        live = await whole(self._change(uid, decide, request))
        if isinstance(live, Live):
            live.times = times
            live.backlog.clear()
            self._changed(live)
        return live

    async def delete(self, live: Live) -> None:
        """Forget a schedule for good."""
        await whole(self._delete(live))

    async def _delete(self, live: Live) -> None:
        await self._store.delete(live.schedule.uid)
        self._live.pop(live.schedule.uid, None)
        self._named.pop((live.schedule.project, live.schedule.name), None)


def _all_times(schedules: Iterable[Schedule]) -> list[Times | None]:
    return [_known_times(schedule) for schedule in schedules]


def _known_times(schedule: Schedule) -> Times | None:
    """A zone may have gone with an update of the machine: its schedules then rest."""
    try:
        return times_of(schedule.settings)
    except (BadCron, UnknownZone) as error:
        log.error("schedule.rests", schedule=schedule.name, error=str(error))
        return None
