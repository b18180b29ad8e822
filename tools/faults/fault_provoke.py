"""What leads a server by a failpoint that an ordinary load comes by too seldom."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fault_jobs import Wish, Workload
from fault_load import PATIENCE, Submitter
from fault_operator import Operator
from fault_outside import DESK
from google.protobuf.duration_pb2 import Duration
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, schedule_pb2

T = TypeVar("T")
FIRST = 1_000_000
"""Jobs that are asked for here have numbers from this one on."""
SCHEDULES = 4
AWAY = 45.0
"""Seconds for which something is out of the mock's reach: longer than the shortest `lost_after`."""
LOST_AFTER = 31.0
ENDED = (common_pb2.JOB_STATE_SUCCEEDED,)
HAS_IT = (common_pb2.JOB_STATE_RUNNING, *ENDED)
LAUNCHED = (common_pb2.JOB_STATE_WAITING, common_pb2.JOB_STATE_STARTING, *HAS_IT)


class Provoker:
    """Has those things happen that a failpoint is about."""

    def __init__(
        self, wire: Wire, workload: Workload, submitter: Submitter, operator: Operator
    ) -> None:
        self._wire = wire
        self._workload = workload
        self._patience = PATIENCE * workload.outside.pace
        self._submitter = submitter
        self._numbers = itertools.count(FIRST)
        self._schedules: list[schedule_pb2.Schedule] = []
        self._ways: dict[str, Callable[[], Awaitable[object]]] = {
            "backend.cordon.": lambda: operator.cordon("backend"),
            "dispatch.preempt.": self._take_places,
            "drain.": lambda: operator.cordon("queue", drain=True),
            "follow.": self._follow,
            "gang.": self._late_gang,
            "host.cordon.": lambda: operator.cordon("host"),
            "list.": self._long,
            "observe.": self._long,
            "queue.cordon.": lambda: operator.cordon("queue"),
            "schedule.": self._run_schedule,
            "stop.": self._stop,
            "timer.": self._past_deadline,
        }

    async def provoke(self, point: str) -> None:
        """Do what leads by a point; of most that is a few more jobs."""
        found = [way for start, way in self._ways.items() if point.startswith(start)]
        await (found[0] if found else self._some)()

    def _plain(self, milliseconds: int = 0, *ends: str) -> Wish:
        return self._workload.plain(next(self._numbers), milliseconds, *ends)

    async def _some(self) -> None:
        count = self._workload.outside.nudge
        await asyncio.gather(*(self._submitter.submit_one(self._plain()) for _ in range(count)))

    async def set_to_work(self, point: str) -> None:
        """Have some run that are not over soon; returns when they do.

        To be adopted some at their work; else one that cannot be reached from its launch on.
        """
        away = not point.startswith("adopt.")
        wishes = [self._out_of_reach()] if away else [self._plain(3000) for _ in range(3)]
        names = [await self._submitter.submit_one(wish) for wish in wishes]
        there = LAUNCHED if away else HAS_IT
        for name in names:
            await self._wire.watched(name, lambda job: job.state in there, self._patience)

    async def end_after(self, meanwhile: Callable[[], Awaitable[T]]) -> T:
        """Have one run, do something, and have it end; what was made meanwhile."""
        name = await self._submitter.submit_one(self._plain(1000))
        await self._wire.watched(name, lambda job: job.state in HAS_IT, self._patience)
        made = await meanwhile()
        await self._wire.watched(name, lambda job: job.state in ENDED, self._patience)
        return made

    async def _long(self) -> None:
        await self._submitter.submit_one(self._plain(2500))

    async def _follow(self) -> None:
        before = await self._submitter.submit_one(self._plain(50))
        after = self._plain()
        after.spec.after_end.append(before)
        await self._submitter.submit_one(after)

    async def _stop(self) -> None:
        name = await self._submitter.submit_one(self._plain(5000, "CANCELLED"))
        await asyncio.sleep(0.1)
        request = job_pb2.CancelJobsRequest(jobs=[name], request_id=f"{uuid.uuid4()}")
        await self._wire.call(request, job_pb2.CancelJobsResponse, patience=PATIENCE)

    async def _past_deadline(self) -> None:
        wish = self._plain(0, "TIMED_OUT")
        wish.spec.hold = True
        _due_in(wish, 0.2)
        await self._submitter.submit_one(wish)

    async def _late_gang(self) -> None:
        """Its members cannot have claimed within a millisecond; after a while it may give up."""
        wish = self._workload.gang(next(self._numbers), 2, 0.001, "TIMED_OUT")
        _due_in(wish, 2.0)
        await self._submitter.submit_one(wish)

    async def _take_places(self) -> None:
        """One that waits for what another has, and matters more."""
        lesser, greater = self._plain(2000), self._plain(20)
        for wish in (lesser, greater):
            self._need_all(wish.spec)
        greater.spec.priority = 500
        name = await self._submitter.submit_one(lesser)
        await self._wire.watched(name, lambda job: job.state in HAS_IT, self._patience)
        await self._submitter.submit_one(greater)

    def _need_all(self, spec: job_pb2.JobSpec) -> None:
        if self._workload.outside.hosts:
            spec.resources.named.update(DESK)
        else:
            spec.resources.cpus = 40

    def _out_of_reach(self) -> Wish:
        wish = self._plain(1000, "FAILED 0")
        wish.spec.retries.infrastructure = 0
        wish.spec.disconnect.stop_after.FromMilliseconds(1)
        wish.spec.disconnect.lost_after.CopyFrom(Duration(seconds=round(LOST_AFTER)))
        self._workload.outside.script(wish.spec, {"unreachable_for": AWAY})
        return wish

    # -- schedules --------------------------------------------------------------------------------

    async def begin_schedules(self) -> None:
        """Some that run every minute, and miss none."""
        for number in range(SCHEDULES):
            spec = self._plain().spec
            schedule = schedule_pb2.Schedule(
                cron="* * * * *",
                spec=spec,
                overlap=schedule_pb2.OVERLAP_POLICY_ALLOW,
                catch_up=schedule_pb2.CATCH_UP_POLICY_ALL,
            )
            request = schedule_pb2.CreateScheduleRequest(
                schedule_id=f"every-{number}", schedule=schedule, request_id=f"every-{number}"
            )
            self._schedules.append(await self._wire.call(request, schedule_pb2.Schedule))

    async def end_schedules(self) -> None:
        """None of them runs any more."""
        for schedule in self._schedules:
            request = schedule_pb2.DeleteScheduleRequest(name=schedule.name)
            await self._wire.call(request, schedule_pb2.DeleteScheduleResponse, patience=PATIENCE)

    async def _run_schedule(self) -> None:
        schedule = self._schedules[next(self._numbers) % len(self._schedules)]
        await self._submitter.run(self._plain(), schedule.name)


def _due_in(wish: Wish, seconds: float) -> None:
    wish.spec.deadline.FromMicroseconds(round((time.time() + seconds) * 1e6))
