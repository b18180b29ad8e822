"""Schedules: jobs that are submitted again and again, by the clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from google.protobuf.field_mask_pb2 import FieldMask

from hatoba import packing
from hatoba.errors import InvalidSpec
from hatoba.options import Parcel, SubmitOptions, build_parcel
from hatoba.terms import word_of
from hatoba.v1 import job_pb2, schedule_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient, AsyncJob
    from hatoba.client import Job, _LoopThread

Schedule = schedule_pb2.Schedule
OVERLAPS = {
    "skip": schedule_pb2.OVERLAP_POLICY_SKIP,
    "allow": schedule_pb2.OVERLAP_POLICY_ALLOW,
    "replace": schedule_pb2.OVERLAP_POLICY_REPLACE,
    "queue": schedule_pb2.OVERLAP_POLICY_QUEUE,
}
CATCH_UPS = {
    "none": schedule_pb2.CATCH_UP_POLICY_NONE,
    "last": schedule_pb2.CATCH_UP_POLICY_LAST,
    "all": schedule_pb2.CATCH_UP_POLICY_ALL,
}
_PAGE = 1000


class ScheduleOptions(TypedDict, total=False):
    """How a schedule goes. What is left out stays as it is, or is the server's default.

    `cron` has five fields; `time_zone` is an IANA name, empty for UTC. `overlap`, when the run
    before has not ended: `skip`, `allow`, `replace` or `queue`. `catch_up`, of times that were
    missed: `none`, `last` or `all`, of these at most `max_catch_up`. Nothing runs after `end_time`;
    None takes it away.
    """

    cron: str
    time_zone: str
    overlap: str
    catch_up: str
    max_catch_up: int
    paused: bool
    end_time: dt.datetime | None
    labels: Mapping[str, str]


class AsyncSchedules:
    """What is submitted by the clock; `AsyncClient.schedules`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
        self,
        name: str,
        command: Sequence[str] | str,
        job: SubmitOptions | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Submit a command at each time of `cron`; `job` are the options of a submit.

        The directory goes along now: every run has the code as it is today. Twice with the same
        settings is once. Raises InvalidSpec, AlreadyExists.
        """
        return await self.create_of(name, build_parcel(command, job or {}), **options)

    async def create_of(
        self, name: str, parcel: Parcel, **options: Unpack[ScheduleOptions]
    ) -> Schedule:
        """As `create`, of a parcel, for example that of a job file."""
        settings = schedule_of(options)
        settings.spec.CopyFrom(await self._brought(parcel))
        request = schedule_pb2.CreateScheduleRequest(
            project=self._client.project, schedule_id=name, schedule=settings
        )
        return await self._client.call(request, Schedule)

    async def _brought(self, parcel: Parcel) -> job_pb2.JobSpec:
        await packing.bring(self._client, parcel)
        return parcel.spec

    async def get(self, name: str) -> Schedule:
        """One schedule, with its next times. Raises NotFound."""
        request = schedule_pb2.GetScheduleRequest(name=self._full(name))
        return await self._client.call(request, Schedule)

    async def list(self) -> list[Schedule]:
        """Schedules of the project, by name."""
        request = schedule_pb2.ListSchedulesRequest(project=self._client.project, page_size=_PAGE)
        found: list[Schedule] = []
        while True:
            page = await self._client.call(request, schedule_pb2.ListSchedulesResponse)
            found.extend(page.schedules)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def update(
        self,
        name: str,
        parcel: Parcel | None = None,
        *,
        etag: str = "",
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Change how a schedule goes, and with a parcel what it submits.

        Raises NotFound, Aborted, InvalidSpec.
        """
        changed = schedule_of(options)
        paths = list(options)
        if parcel is not None:
            changed.spec.CopyFrom(await self._brought(parcel))
            paths.append("spec")
        if not paths:
            raise InvalidSpec("there is nothing to change", remedy="name at least one option")
        changed.name, changed.etag = self._full(name), etag
        request = schedule_pb2.UpdateScheduleRequest(
            schedule=changed, update_mask=FieldMask(paths=paths)
        )
        return await self._client.call(request, Schedule)

    async def pause(self, name: str) -> Schedule:
        """Submit nothing until it is resumed; times that pass are left out."""
        return await self.update(name, paused=True)

    async def resume(self, name: str) -> Schedule:
        """Go on from now."""
        return await self.update(name, paused=False)

    async def delete(self, name: str) -> None:
        """End a schedule; its jobs stay. Twice is once."""
        request = schedule_pb2.DeleteScheduleRequest(name=self._full(name))
        await self._client.call(request, schedule_pb2.DeleteScheduleResponse)

    async def run(self, name: str) -> AsyncJob:
        """Submit one run now, beside the times."""
        from hatoba.aio import AsyncJob

        request = schedule_pb2.RunScheduleRequest(name=self._full(name))
        return AsyncJob(self._client, await self._client.call(request, job_pb2.Job))

    def _full(self, name: str) -> str:
        return name if "/" in name else f"projects/{self._client.project}/schedules/{name}"


class Schedules:
    """The same calls, synchronously; `Client.schedules`."""

    def __init__(self, loop: _LoopThread, schedules: AsyncSchedules) -> None:
        self._loop = loop
        self._schedules = schedules

    def create(
        self,
        name: str,
        command: Sequence[str] | str,
        job: SubmitOptions | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """See AsyncSchedules.create."""
        return self._loop.run(self._schedules.create(name, command, job, **options))

    def get(self, name: str) -> Schedule:
        """One schedule, with its next times. Raises NotFound."""
        return self._loop.run(self._schedules.get(name))

    def list(self) -> list[Schedule]:
        """Schedules of the project, by name."""
        return self._loop.run(self._schedules.list())

    def update(
        self,
        name: str,
        parcel: Parcel | None = None,
        *,
        etag: str = "",
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """See AsyncSchedules.update."""
        return self._loop.run(self._schedules.update(name, parcel, etag=etag, **options))

    def pause(self, name: str) -> Schedule:
        """See AsyncSchedules.pause."""
        return self._loop.run(self._schedules.pause(name))

    def resume(self, name: str) -> Schedule:
        """Go on from now."""
        return self._loop.run(self._schedules.resume(name))

    def delete(self, name: str) -> None:
        """See AsyncSchedules.delete."""
        self._loop.run(self._schedules.delete(name))

    def run(self, name: str) -> Job:
        """Submit one run now, beside the times."""
        from hatoba.client import Job

        return Job(self._loop, self._loop.run(self._schedules.run(name)))


def schedule_of(options: ScheduleOptions) -> Schedule:
    """The message that says what these options say. Raises InvalidSpec."""
    made = Schedule(
        cron=options.get("cron", ""),
        time_zone=options.get("time_zone", ""),
        max_catch_up=options.get("max_catch_up", 0),
        paused=options.get("paused", False),
        labels=options.get("labels", {}),
    )
    if "overlap" in options:
        made.overlap = word_of("overlap", options["overlap"], OVERLAPS)
    if "catch_up" in options:
        made.catch_up = word_of("catch_up", options["catch_up"], CATCH_UPS)
    end = options.get("end_time")
    if end is not None:
        made.end_time.FromDatetime(end)
    return made
