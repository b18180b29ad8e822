"""Schedules: when their times come, and what is to be done at each.

Expressions are read by cronsim, always over local times without a zone; what changes of the clock
mean is decided here. Times are whole seconds.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from itertools import islice
from typing import NamedTuple

from cronsim import CronSim, CronSimError

from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.records import Micros

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
}
MISSED_AFTER = 60_000_000
"""A time that passed longer ago than this was missed."""
MOST_RECENT = 10
MAX_CATCH_UP = 100
_DAYS = re.compile(r"(30|31)(,31)?")
_SECOND = 1_000_000
_HOUR = 3600
_DAY = 86_400_000_000
_NEVER = 1 << 62
_SOME_DAY = dt.datetime(2000, 1, 1)  # noqa: DTZ001 - a local time, of no zone
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - as above


class Overlap(IntEnum):
    """What becomes of a time while the run before has not ended."""

    SKIP = 1
    ALLOW = 2
    REPLACE = 3
    QUEUE = 4


class CatchUp(IntEnum):
    """What becomes of times that were missed."""

    NONE = 1
    LAST = 2
    ALL = 3


class BadCron(ValueError):
    """An expression that is none, or never comes; the message says what must hold."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


# -- when ---------------------------------------------------------------------------------------


class Times:
    """The times of an expression in a time zone."""

    def __init__(self, cron: str, zone: dt.tzinfo) -> None:
        """Raises BadCron."""
        self._sim = _parsed(cron)
        self._zone = zone
        self._every_hour = self._sim.hours == set(range(24))
        if self._next_local(_SOME_DAY) is None:
            raise BadCron("never comes", "name a day that there is in that month")

    def after(self, moment: Micros) -> Micros | None:
        """The first time later than a moment."""
        second = moment // _SECOND
        found = self._by_elapsed_time(second) if self._every_hour else self._by_clock(second)
        return None if found is None else found * _SECOND

    def between(self, after: Micros, until: Micros) -> Iterator[Micros]:
        """The times later than `after` and not later than `until`."""
        time = self.after(after)
        while time is not None and time <= until:
            yield time
            time = self.after(time)

    def newest(self, after: Micros, until: Micros, limit: int) -> list[Micros]:
        """Of the times between two moments the newest, at most so many, oldest first.

        The work is bounded by `limit`, however many there are.
        """
        span = _HOUR * _SECOND
        while True:
            start = max(after, until - span)
            found = list(self.between(start, until))
            if start == after or len(found) >= limit:
                return found[-limit:]
            span *= 1 + limit // len(found) if found else 2

    def _by_clock(self, second: int) -> int | None:
        """What the clock on the wall shows: once for each local time, at its first coming."""
        local: dt.datetime | None = self._local(second)
        while local is not None:
            local = self._next_local(local)
            at = self._instant(local) if local else 0
            if at > second:
                return at
        return None

    def _by_elapsed_time(self, second: int) -> int | None:
        """What comes in every hour: each stretch between two changes of the clock for itself."""
        start = second + 1
        while True:
            offset = self._offset(start)
            local = self._next_local(_EPOCH + dt.timedelta(seconds=start + offset - 1))
            if local is None:
                return None
            at = round((local - _EPOCH).total_seconds()) - offset
            if self._offset(at) == offset:
                return at
            start = self._change(start, at)

    def _next_local(self, local: dt.datetime) -> dt.datetime | None:
        """The first match later than a local time, whatever the zone makes of it."""
        self._sim.dt = local
        try:
            return next(self._sim)
        except (StopIteration, OverflowError):
            return None

    def _local(self, second: int) -> dt.datetime:
        return dt.datetime.fromtimestamp(second, self._zone).replace(tzinfo=None)

    def _instant(self, local: dt.datetime) -> int:
        """When it is this local time first; where it never is, when the clock jumps over it."""
        aware = local.replace(tzinfo=self._zone)
        second = round(aware.timestamp())
        if self._local(second) == local:
            return second
        return self._change(round(aware.replace(fold=1).timestamp()), second)

    def _offset(self, second: int) -> int:
        offset = dt.datetime.fromtimestamp(second, self._zone).utcoffset()
        return round(offset.total_seconds()) if offset else 0

    def _change(self, low: int, high: int) -> int:
        """The first second of another offset than that of `low`; `high` has another."""
        offset = self._offset(low)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._offset(middle) == offset else (low, middle)
        return high


def _parsed(cron: str) -> CronSim:
    text = MACROS.get(cron.strip().lower(), cron)
    if text.lstrip().startswith("@"):
        raise BadCron("is no macro that is known", f"use {', '.join(MACROS)} or five fields")
    fields = len(text.split())
    if fields == 6:
        raise BadCron("must have five fields; there are no seconds", "leave the first one out")
    if fields != 5:
        raise BadCron(
            f"must have five fields, not {fields}",
            "write minute, hour, day, month, weekday, for example `30 2 * * 1-5`",
        )
    try:
        return CronSim(text, _SOME_DAY)
    except CronSimError as error:
        raise BadCron(*_problem(str(error), text)) from error


def _problem(said: str, text: str) -> tuple[str, str]:
    field = said.removeprefix("Bad ")
    if field == "day-of-month" and _DAYS.fullmatch(text.split()[2]):
        return "never comes: no such month has such a day", "name a day that the month has"
    return f"has a {field} that is none", "see `man 5 crontab` for what a field may hold"


# -- what ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """What its owner says of a schedule; `spec` is a serialised JobSpec."""

    cron: str
    time_zone: str
    spec: bytes
    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.LAST
    max_catch_up: int = MAX_CATCH_UP
    paused: bool = False
    end_time: Micros = 0
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule's row."""

    uid: str
    project: str
    name: str
    settings: Settings
    created_by: str
    create_time: Micros
    position: Micros
    """Times up to here were looked at, or do not count."""
    version: int = 1
    settings_version: int = 1
    last_time: Micros = 0
    last_outcome: str = ""
    waiting: Micros = 0
    """The time that waits for the end of `last_job`."""
    submitting: Micros = 0
    """The time whose job is being submitted: after a crash that is carried on first."""
    last_job: str = ""
    """Uid of the newest job that was submitted for a time."""
    recent: tuple[str, ...] = ()
    """Names of the newest jobs, newest first."""


class Act(Enum):
    """What to do at a time."""

    SUBMIT = auto()
    LEAVE_OUT = auto()
    WAIT = auto()


class Step(NamedTuple):
    """The next thing to do for a schedule. Of a job that is submitted `words` tell how it came."""

    act: Act
    time: Micros
    words: str
    replaces: bool = False
    """The run before is cancelled first."""


class Before(NamedTuple):
    """The run before, if it has not ended."""

    name: str


def due_times(schedule: Schedule, times: Times, now: Micros) -> list[Micros]:
    """The times that have come and count, oldest first; several only where all are caught up."""
    settings = schedule.settings
    if settings.paused:
        return []
    until = min(now, settings.end_time) if settings.end_time else now
    limit = settings.max_catch_up if settings.catch_up is CatchUp.ALL else 1
    return times.newest(schedule.position, until, limit)


def next_step(
    schedule: Schedule, due: Micros | None, now: Micros, before: Before | None
) -> Step | None:
    """What to do now, `due` being the oldest time that counts.

    None: nothing until the next time, or until the run before has ended.
    """
    settings = schedule.settings
    if schedule.submitting:
        return Step(Act.SUBMIT, schedule.submitting, _late(schedule.submitting, now))
    if schedule.waiting and before is None:
        return Step(Act.SUBMIT, schedule.waiting, _late(schedule.waiting, now))
    if due is None:
        return None
    missed = now - due > MISSED_AFTER
    if missed and settings.catch_up is CatchUp.NONE:
        return Step(Act.LEAVE_OUT, due, f"left out{_late(due, now)}")
    if before is None:
        return Step(Act.SUBMIT, due, _late(due, now))
    if missed and settings.catch_up is CatchUp.ALL and settings.overlap in _ONE_BY_ONE:
        return None
    return _overlapping(schedule, due, now, before)


_ONE_BY_ONE = (Overlap.SKIP, Overlap.QUEUE)


def _overlapping(schedule: Schedule, time: Micros, now: Micros, before: Before) -> Step:
    overlap = schedule.settings.overlap
    if overlap in (Overlap.ALLOW, Overlap.REPLACE):
        return Step(Act.SUBMIT, time, _late(time, now), overlap is Overlap.REPLACE)
    if overlap is Overlap.SKIP:
        return Step(Act.LEAVE_OUT, time, f"skipped: {before.name} has not ended")
    if schedule.waiting:
        return Step(Act.LEAVE_OUT, time, f"skipped: another run waits for {before.name} already")
    return Step(Act.WAIT, time, f"waits: {before.name} has not ended")


def _late(time: Micros, now: Micros) -> str:
    """` 2 h late` for what was missed; empty for what comes in time."""
    late = (now - time) // _SECOND
    if now - time <= MISSED_AFTER:
        return ""
    for unit, seconds in (("d", 86_400), ("h", _HOUR), ("min", 60)):
        if late >= seconds:
            return f", {late // seconds} {unit} late"
    return f", {late} s late"


def astray(schedule: Schedule, now: Micros) -> bool:
    """It was looked at more than a day from now: the clock was wrong, and was put back."""
    return schedule.position > now + _DAY


def brought_back(schedule: Schedule, now: Micros) -> Schedule:
    """With times that count from now on, after the clock was put back."""
    return changed(schedule, version=schedule.version + 1, position=now)


def next_time(schedule: Schedule, times: Times, now: Micros) -> Micros | None:
    """The next time to look at it, which has passed when something is due; None: never again."""
    settings = schedule.settings
    if settings.paused:
        return None
    if astray(schedule, now):
        return now
    time = times.after(schedule.position)
    return None if time is None or 0 < settings.end_time < time else time


def upcoming(schedule: Schedule, times: Times, now: Micros, count: int) -> list[Micros]:
    """The next times after now, at most so many."""
    end = schedule.settings.end_time or _NEVER
    following = times.between(max(now, schedule.position), end)
    return [] if schedule.settings.paused else list(islice(following, count))


def submitting(schedule: Schedule, step: Step) -> Schedule:
    """Before a job is submitted for a time."""
    return changed(schedule, version=schedule.version + 1, submitting=step.time)


def taken(schedule: Schedule, step: Step) -> Schedule:
    """After a step that submitted nothing."""
    return changed(
        schedule,
        version=schedule.version + 1,
        position=step.time,
        last_time=step.time,
        last_outcome=step.words,
        waiting=step.time if step.act is Act.WAIT else schedule.waiting,
    )


def submitted(schedule: Schedule, step: Step, uid: str, name: str) -> Schedule:
    """After a step that submitted a job, or found that it was submitted before a crash."""
    return changed(
        with_run(schedule, name),
        position=max(schedule.position, step.time),
        last_time=max(schedule.last_time, step.time),
        last_outcome=f"submitted {name}{step.words}",
        waiting=0 if step.time == schedule.waiting else schedule.waiting,
        submitting=0,
        last_job=uid,
    )


def refused(schedule: Schedule, step: Step, why: str) -> Schedule:
    """After a step whose job was refused: its time is over."""
    return changed(
        taken(schedule, step._replace(act=Act.LEAVE_OUT, words=f"refused: {why}")),
        position=max(schedule.position, step.time),
        waiting=0 if step.time == schedule.waiting else schedule.waiting,
        submitting=0,
    )


def delayed(schedule: Schedule, words: str) -> Schedule:
    """When a job could not be submitted now and will be tried again."""
    return changed(schedule, version=schedule.version + 1, last_outcome=words)


def let_pass(schedule: Schedule, time: Micros, now: Micros) -> Schedule:
    """Without its times up to now, the newest of which was `time`.

    For a store from a backup: they may have had their runs after it, and it knows of none.
    """
    return changed(
        schedule,
        version=schedule.version + 1,
        position=max(schedule.position, now),
        last_time=max(schedule.last_time, time),
        last_outcome="left out: the store was restored, and it may have run before that",
        waiting=0,
        submitting=0,
    )


def with_run(schedule: Schedule, name: str) -> Schedule:
    """With one more recent job."""
    others = tuple(known for known in schedule.recent if known != name)
    recent = (name, *others)[:MOST_RECENT]
    return changed(schedule, version=schedule.version + 1, recent=recent)


def with_settings(schedule: Schedule, settings: Settings, now: Micros) -> Schedule:
    """With other settings; times that passed under the former ones do not count."""
    pauses = settings.paused != schedule.settings.paused
    other = (settings.cron, settings.time_zone) != (
        schedule.settings.cron,
        schedule.settings.time_zone,
    )
    return changed(
        schedule,
        version=schedule.version + 1,
        settings_version=schedule.settings_version + 1,
        settings=settings,
        position=now if pauses or other else schedule.position,
        waiting=0 if settings.paused else schedule.waiting,
        submitting=0 if settings.paused else schedule.submitting,
    )
