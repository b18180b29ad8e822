"""ScheduleService: keeps what is submitted by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from hatoba.v1 import job_pb2, schedule_pb2, schedule_pb2_grpc
from hatoba_scheduler.control.schedule_book import Live, ScheduleBook, times_of
from hatoba_scheduler.control.schedules import spec_of
from hatoba_scheduler.control.submit import Origin
from hatoba_scheduler.control.zones import UnknownZone
from hatoba_scheduler.convert import micros
from hatoba_scheduler.convert_schedules import (
    schedule_etag,
    schedule_to_proto,
    settings_of,
    settings_to_proto,
)
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT, ScheduleRef, parse_schedule
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.schedules import (
    BadCron,
    Schedule,
    Settings,
    Times,
    next_time,
    upcoming,
    with_run,
    with_settings,
)
from hatoba_scheduler.domain.timing import shown as shown_time
from hatoba_scheduler.errors import (
    Aborted,
    AlreadyExists,
    FieldViolation,
    InvalidArgument,
    ResourceExhausted,
    shown,
)
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.labels import reserved_labels
from hatoba_scheduler.services.paging import Pager, page_size
from hatoba_scheduler.services.requests import made_before, remember, request_key, seen_before
from hatoba_scheduler.services.submitting import Submitter
from hatoba_scheduler.store.base import Met, RequestKey, Store
from hatoba_scheduler.validation import violations

Context = grpc.aio.ServicerContext[Any, Any]
MASKABLE = (
    "cron",
    "time_zone",
    "spec",
    "overlap",
    "catch_up",
    "max_catch_up",
    "paused",
    "end_time",
    "labels",
)
SHOWN_TIMES = 5
_MOMENTS = (
    ("deadline", "give `timeout` or `max_queue_time`"),
    ("start_after", "leave it out; the schedule says when"),
)


@dataclass(frozen=True, slots=True)
class ScheduleServiceParts:
    """What the schedule service stands on."""

    store: Store
    book: ScheduleBook
    submitter: Submitter
    pager: Pager
    new_uid: Callable[[], str]
    now: Callable[[], Micros]


class ScheduleServicer(schedule_pb2_grpc.ScheduleServiceServicer):
    """See proto/hatoba/v1/schedule.proto."""

    def __init__(self, parts: ScheduleServiceParts) -> None:
        self._store = parts.store
        self._book = parts.book
        self._submitter = parts.submitter
        self._pager = parts.pager
        self._new_uid = parts.new_uid
        self._now = parts.now

    # -- reading --------------------------------------------------------------------------------

    def _named(self, text: str, field: str = "name") -> Live:
        ref = _ref(text, field)
        return self._book.get(ref.project, ref.name)

    def _message(self, live: Live, count: int = SHOWN_TIMES) -> schedule_pb2.Schedule:
        times = upcoming(live.schedule, live.times, self._now(), count) if live.times else []
        return schedule_to_proto(live.schedule, times)

    async def GetSchedule(
        self, request: schedule_pb2.GetScheduleRequest, context: Context
    ) -> schedule_pb2.Schedule:
        """One schedule."""
        return self._message(self._named(request.name))

    async def ListSchedules(
        self, request: schedule_pb2.ListSchedulesRequest, context: Context
    ) -> schedule_pb2.ListSchedulesResponse:
        """Schedules by name."""
        project = request.project or DEFAULT_PROJECT
        scope = f"schedules:{project}"
        after = self._pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        found = self._book.page(project, after, size + 1)
        reply = schedule_pb2.ListSchedulesResponse()
        for live in found[:size]:
            message = self._message(live, 1)
            message.ClearField("next_times")
            reply.schedules.append(message)
            await asyncio.sleep(0)
        if len(found) > size:
            reply.next_page_token = self._pager.token(scope, found[size - 1].schedule.name)
        return reply

    # -- changing -------------------------------------------------------------------------------

    async def CreateSchedule(
        self, request: schedule_pb2.CreateScheduleRequest, context: Context
    ) -> schedule_pb2.Schedule:
        """Make a schedule."""
        project, name = request.project or DEFAULT_PROJECT, request.schedule_id
        key = request_key(project, "CreateSchedule", request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return self._message(self._book.get(project, name))
        settings = self._settings(request.schedule, name)
        known = self._book.known(project, name)
        if known is None:
            return self._message(await self._make(project, name, settings, key))
        live = _same(known, settings)
        await remember(self._store, key, name)
        return self._message(live)

    async def _make(
        self, project: str, name: str, settings: Settings, key: RequestKey | None
    ) -> Live:
        now = self._now()
        schedule = Schedule(
            self._new_uid(), project, name, settings, current_call().principal, now, position=now
        )
        made = await self._book.add(schedule, await self._checked(schedule), key)
        if isinstance(made, Live):
            return made
        made_before(made, key)
        return self._book.get(project, name)

    def _settings(self, told: schedule_pb2.Schedule, name: str) -> Settings:
        """Settings that keep the contract's rules. Raises InvalidArgument."""
        told.spec.name = name
        found = violations(told, "schedule")
        found += reserved_labels(told.spec.labels, "schedule.spec.labels")
        if told.HasField("end_time") and not micros(told.end_time):
            found.append(_no_moment("schedule.end_time"))
        found += [
            FieldViolation(
                f"schedule.spec.{field}",
                "is one moment, and a schedule has many",
                "schedule.moment",
                "",
                remedy,
            )
            for field, remedy in _MOMENTS
            if told.spec.HasField(field)  # type: ignore[arg-type]
        ]
        if found:
            raise InvalidArgument.of(found)
        return settings_of(told)

    async def _checked(self, schedule: Schedule) -> Times:
        """The times of a schedule that can be kept. Raises what it is refused with."""
        times = await _times(schedule.settings)
        if not schedule.settings.paused and next_time(schedule, times, self._now()) is None:
            raise InvalidArgument.field(
                "schedule.end_time",
                "comes before the first time of the schedule",
                value=shown_time(schedule.settings.end_time),
                remedy="set a later one, or none",
                rule="schedule.never",
            )
        await self._check_spec(schedule)
        return times

    async def _check_spec(self, schedule: Schedule) -> None:
        """Refuse what SubmitJob would refuse now; a full queue may have room when it counts."""
        try:
            await self._submitter.drafted(
                spec_of(schedule), self._submitter.visit(schedule.project)
            )
        except InvalidArgument as error:
            raise InvalidArgument.of(
                replace(one, field=f"schedule.{one.field}") for one in error.field_violations
            ) from error
        except ResourceExhausted:
            return

    async def UpdateSchedule(
        self, request: schedule_pb2.UpdateScheduleRequest, context: Context
    ) -> schedule_pb2.Schedule:
        """Change what was said of a schedule."""
        paths = _checked_mask(request.update_mask.paths)
        live = self._named(request.schedule.name, "schedule.name")
        known = live.schedule
        key = request_key(known.project, "UpdateSchedule", request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return self._message(live)
        _check_etag(known, request.schedule.etag)
        settings = self._settings(_merged(known.settings, request.schedule, paths), known.name)
        times = await self._checked(with_settings(known, settings, self._now()))

        def decide(schedule: Schedule) -> Schedule:
            _check_etag(schedule, schedule_etag(known))
            return with_settings(schedule, settings, self._now())

        changed = await self._book.change_settings(known.uid, decide, times, key)
        if isinstance(changed, Met):
            made_before(changed, key)
        return self._message(self._named(request.schedule.name))

    async def DeleteSchedule(
        self, request: schedule_pb2.DeleteScheduleRequest, context: Context
    ) -> schedule_pb2.DeleteScheduleResponse:
        """End a schedule."""
        ref = _ref(request.name, "name")
        live = self._book.known(ref.project, ref.name)
        if live is not None:
            await self._book.delete(live)
        return schedule_pb2.DeleteScheduleResponse()

    async def RunSchedule(
        self, request: schedule_pb2.RunScheduleRequest, context: Context
    ) -> job_pb2.Job:
        """Submit one run now."""
        schedule = self._named(request.name).schedule
        key = request_key(schedule.project, "RunSchedule", request.request_id, request)
        visit = self._submitter.visit(schedule.project)
        job = await self._submitter.submit(spec_of(schedule), visit, Origin(), key)
        name = job.name.rpartition("/")[2]
        await self._book.change(schedule.uid, lambda one: with_run(one, name))
        return job


def _ref(text: str, field: str) -> ScheduleRef:
    ref = parse_schedule(text)
    if ref is None:
        raise InvalidArgument.field(
            field, "must be projects/P/schedules/S or S", value=text, rule="schedule.name"
        )
    return ref


def _same(live: Live, settings: Settings) -> Live:
    if live.schedule.settings == settings:
        return live
    name = live.schedule.name
    raise AlreadyExists(
        f"schedule {name!r} exists with other settings; `hatoba schedules update {name}` changes it"
    )


async def _times(settings: Settings) -> Times:
    """The times of new settings. Raises InvalidArgument."""
    try:
        return await asyncio.to_thread(times_of, settings)
    except BadCron as error:
        raise InvalidArgument.field(
            "schedule.cron",
            str(error),
            value=settings.cron,
            remedy=error.remedy,
            rule="schedule.cron",
        ) from error
    except UnknownZone as error:
        known = f"did you mean {error.near[0]!r}?" if error.near else "use a name such as"
        raise InvalidArgument.field(
            "schedule.time_zone",
            "names no time zone that there is",
            value=settings.time_zone,
            remedy=known if error.near else f"{known} `Europe/Berlin`, or leave it out for UTC",
            rule="schedule.time_zone",
        ) from error


def _merged(
    known: Settings, told: schedule_pb2.Schedule, paths: Sequence[str]
) -> schedule_pb2.Schedule:
    """The settings there are, with the fields that the mask names as they are told."""
    merged, wanted = settings_to_proto(known), schedule_pb2.Schedule()
    FieldMask(paths=paths).MergeMessage(told, wanted)
    for path in paths:
        merged.ClearField(path)  # type: ignore[arg-type]
    merged.MergeFrom(wanted)
    return merged


def _checked_mask(paths: Sequence[str]) -> list[str]:
    if not paths or set(paths) - set(MASKABLE):
        raise InvalidArgument.field(
            "update_mask",
            f"must name some of {', '.join(MASKABLE)} and nothing else",
            value=",".join(sorted(paths)),
        )
    return list(paths)


def _check_etag(schedule: Schedule, etag: str) -> None:
    if etag and etag != schedule_etag(schedule):
        raise Aborted(
            f"schedule {schedule.name!r} was changed since it was read "
            f"(etag {schedule_etag(schedule)}, not {etag}); read it again and retry"
        )


def _no_moment(path: str) -> FieldViolation:
    return FieldViolation(
        path,
        "must lie in the years 1970 to 9999",
        "schedule.moment",
        shown("out of range"),
        "correct it",
    )
