"""Between records of schedules and messages of the contract."""

from __future__ import annotations

from collections.abc import Iterable

from hatoba.v1 import job_pb2, schedule_pb2
from hatoba_scheduler.convert import micros, pairs, set_time
from hatoba_scheduler.domain.naming import job_name, schedule_name
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.schedules import MAX_CATCH_UP, CatchUp, Overlap, Schedule, Settings


def schedule_etag(schedule: Schedule) -> str:
    """Changes with what its owner says of it, not with its runs."""
    return str(schedule.settings_version)


def settings_of(told: schedule_pb2.Schedule) -> Settings:
    """What a message says of a schedule, defaults filled in."""
    return Settings(
        cron=" ".join(told.cron.split()),
        time_zone=told.time_zone,
        spec=told.spec.SerializeToString(deterministic=True),
        overlap=Overlap(told.overlap or Overlap.SKIP),
        catch_up=CatchUp(told.catch_up or CatchUp.LAST),
        max_catch_up=told.max_catch_up or MAX_CATCH_UP,
        paused=told.paused,
        end_time=micros(told.end_time),
        labels=pairs(told.labels.items()),
    )


def settings_to_proto(settings: Settings) -> schedule_pb2.Schedule:
    """The settings as their owner would send them."""
    message = schedule_pb2.Schedule(
        cron=settings.cron,
        time_zone=settings.time_zone,
        spec=job_pb2.JobSpec.FromString(settings.spec),
        overlap=schedule_pb2.OverlapPolicy.ValueType(settings.overlap),
        catch_up=schedule_pb2.CatchUpPolicy.ValueType(settings.catch_up),
        max_catch_up=settings.max_catch_up,
        paused=settings.paused,
        labels=dict(settings.labels),
    )
    set_time(message.end_time, settings.end_time)
    return message


def schedule_to_proto(schedule: Schedule, upcoming: Iterable[Micros]) -> schedule_pb2.Schedule:
    """A schedule with its next times."""
    message = settings_to_proto(schedule.settings)
    message.name = schedule_name(schedule.project, schedule.name)
    message.etag = schedule_etag(schedule)
    message.created_by = schedule.created_by
    set_time(message.create_time, schedule.create_time)
    set_time(message.last_time, schedule.last_time)
    message.last_outcome = schedule.last_outcome
    message.recent_jobs.extend(job_name(schedule.project, name) for name in schedule.recent)
    for time in upcoming:
        set_time(message.next_times.add(), time)
    if message.next_times:
        message.next_time.CopyFrom(message.next_times[0])
    return message
