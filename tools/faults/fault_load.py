"""Many jobs through a server that keeps dying: who submits, who follows, and what they remember."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import grpc
import grpc.aio
from fault_jobs import Wish, Workload
from fault_oracle import Ask, Told
from google.protobuf.message import Message
from wire import AWAY, TERMINAL, Wire

from hatoba.v1 import common_pb2, job_pb2, schedule_pb2
from hatoba_scheduler.control.schedules import LABEL, TIME_LABEL

BATCH = 10
PATIENCE = 120.0
REDIAL = 0.02
ELSEWHERE = grpc.StatusCode.UNAUTHENTICATED
R = TypeVar("R", bound=Message)


class PatientWire(Wire):
    """Calls that also wait while a restored store takes no changes, and while another's server has
    the port that ours had before it died.
    """

    async def answer(
        self, request: Message, reply: type[R], *, patience: float = PATIENCE
    ) -> tuple[R, bool]:
        """See Wire."""
        async with asyncio.timeout(patience):
            while True:
                try:
                    return await super().answer(request, reply, patience=2 * patience)
                except grpc.aio.AioRpcError as error:
                    if not (not_adopted(error) or error.code() is ELSEWHERE):
                        raise
                await asyncio.sleep(5 * REDIAL)


def not_adopted(error: grpc.aio.AioRpcError) -> bool:
    """Whether a call was refused because the store is restored and not adopted."""
    refused = error.code() is grpc.StatusCode.FAILED_PRECONDITION
    return refused and "hatoba server adopt" in (error.details() or "")


@dataclass
class Progress:
    """What submitters and the follower remember."""

    asked: dict[int, Ask] = field(default_factory=dict)
    acknowledged: dict[int, str] = field(default_factory=dict)
    renamed: list[str] = field(default_factory=list)
    cancels: int = 0
    repeated: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    gaps: list[str] = field(default_factory=list)
    restores: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def open(self) -> int:
        """Jobs that were acknowledged and have not ended, as far as events tell."""
        return len(self.acknowledged) - len(self.ended)


class Submitter:
    """Submits jobs one by one and in batches, repeating whatever got no answer."""

    def __init__(self, wire: Wire, workload: Workload, progress: Progress, seed: int) -> None:
        self._wire = wire
        self._workload = workload
        self._progress = progress
        self._dice = random.Random(f"submit-{seed}")
        self._prefix = f"faults-{seed}"
        self._waiting: list[Wish] = []

    async def submit(self, first: int, count: int) -> None:
        """Submit jobs `first` to `first + count - 1`; returns when all are acknowledged."""
        wishes = [self._workload.wish(number) for number in range(first, first + count)]
        self._chain(wishes)
        self._progress.asked.update({wish.ask.number: wish.ask for wish in wishes})
        if self._dice.random() < 0.5:
            await self._one_by_one(wishes)
        else:
            await self._together(wishes)
        self._waiting += [wish for wish in wishes if wish.cancel_after is not None]

    def _chain(self, wishes: list[Wish]) -> None:
        """Some wait for the end of another, which may be over already."""
        known = list(self._progress.acknowledged.values())[-50:]
        for place, wish in enumerate(wishes):
            kind = self._dice.random()
            if known and kind < 0.05:
                wish.spec.after_end.append(self._dice.choice(known))
            elif known and kind < 0.08:
                wish.spec.after_ok.append(self._dice.choice(known))
                ask = wish.ask
                ends = ask.ends | {"UPSTREAM_FAILED"}
                wishes[place] = replace(wish, ask=replace(ask, ends=ends))

    async def submit_one(self, wish: Wish) -> str:
        """Submit one; its name, empty when meanwhile it could not be any more and was refused."""
        self._progress.asked[wish.ask.number] = wish.ask
        request = job_pb2.SubmitJobRequest(spec=wish.spec, request_id=self._id(wish))
        try:
            job, repeated = await self._wire.answer(request, job_pb2.Job, patience=PATIENCE)
        except grpc.aio.AioRpcError as error:
            if not _too_late(error.details() or ""):
                raise
            return ""
        self._keep(wish, job.name, repeated=repeated)
        return job.name

    async def run(self, wish: Wish, schedule: str) -> None:
        """Have a schedule submit a run of its own now."""
        self._progress.asked[wish.ask.number] = wish.ask
        request = schedule_pb2.RunScheduleRequest(name=schedule, request_id=self._id(wish))
        job, repeated = await self._wire.answer(request, job_pb2.Job, patience=PATIENCE)
        self._keep(wish, job.name, repeated=repeated)

    async def _one_by_one(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            for _ in range(2 if self._dice.random() < 0.05 else 1):
                await self.submit_one(wish)

    async def _together(self, wishes: list[Wish]) -> None:
        items = [
            job_pb2.SubmitJobsItem(spec=wish.spec, request_id=self._id(wish)) for wish in wishes
        ]
        request = job_pb2.SubmitJobsRequest(items=items)
        reply = await self._wire.call(request, job_pb2.SubmitJobsResponse, patience=PATIENCE)
        for wish, result in zip(wishes, reply.results, strict=True):
            assert not result.code or _too_late(result.message), f"refused: {result}"
            if not result.code:
                self._keep(wish, result.name, repeated=result.deduplicated)

    def _id(self, wish: Wish) -> str:
        return f"{self._prefix}-{wish.ask.number}"

    def _keep(self, wish: Wish, name: str, *, repeated: bool) -> None:
        known = self._progress.acknowledged.setdefault(wish.ask.number, name)
        self._progress.repeated += repeated
        if known != name:
            self._progress.renamed.append(f"{known} submitted again became {name}")

    async def cancel_waiting(self) -> None:
        """Cancel those that somebody is to cancel, each a while after its submit."""
        while self._waiting:
            wish = self._waiting.pop()
            await asyncio.sleep(wish.cancel_after or 0.0)
            name = self._progress.acknowledged.get(wish.ask.number)
            if name is None:
                continue
            request = job_pb2.CancelJobsRequest(jobs=[name], request_id=f"{self._id(wish)}-c")
            await self._wire.call(request, job_pb2.CancelJobsResponse, patience=PATIENCE)
            self._progress.cancels += 1


def _too_late(message: str) -> bool:
    """Whether it was refused because its moment is past, or what it needs has failed already."""
    return "is past" in message or "could never run" in message


async def follow(wire: Wire, progress: Progress) -> None:
    """Take in every event of the project, each once, from the first on; never returns."""
    cursor, last, restores = "0", 0, 0
    while True:
        request = job_pb2.WatchJobsRequest(cursor=cursor)
        try:
            async for message in wire.stream(request, job_pb2.WatchJobsResponse):
                if message.HasField("event"):
                    last = _take(message.event, last, progress)
                elif message.HasField("resync"):
                    if progress.restores == restores:
                        progress.gaps.append(f"the follower was told to resync at {cursor}")
                    # Another epoch has another history, which is told from its beginning.
                    last, restores = 0, progress.restores
                    progress.ended.clear()
                cursor = message.cursor or cursor
        except grpc.aio.AioRpcError as error:
            if error.code() not in (*AWAY, ELSEWHERE, grpc.StatusCode.CANCELLED):
                raise
        await asyncio.sleep(REDIAL)


def _take(event: common_pb2.Event, last: int, progress: Progress) -> int:
    if event.seq != last + 1:
        progress.gaps.append(f"event {event.seq} came after {last}")
    if event.job_terminal:
        progress.ended[event.job] += 1
        progress.moved.set()
    return event.seq


@dataclass(slots=True)
class Listing:
    """Every job of the project: ended ones, all others with what they wait for, by name."""

    told: dict[str, Told] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    runs: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Jobs that schedules submitted: the schedule, and the time that it was for."""

    def add(self, job: job_pb2.Job) -> None:
        """Take one in."""
        if job.state in TERMINAL:
            self.told[job.name] = Told(job.name, state_of(job), job.cause.exit_code)
        else:
            self.unfinished[job.name] = f"{state_of(job)} {job.waiting_reason}"
        if TIME_LABEL in job.spec.labels:
            self.runs[job.name] = job.spec.labels[LABEL], job.spec.labels[TIME_LABEL]


async def listing(wire: Wire) -> Listing:
    """All jobs as the server tells of them."""
    found = Listing()
    request = job_pb2.ListJobsRequest(page_size=500)
    while True:
        page = await wire.call(request, job_pb2.ListJobsResponse)
        for job in page.jobs:
            found.add(job)
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def with_attempts(wire: Wire, told: dict[str, Told]) -> tuple[dict[str, Told], int]:
    """The same with the last attempt of each task, and how many attempts there were."""
    turn = asyncio.Semaphore(20)
    count = 0

    async def look(one: Told) -> Told:
        nonlocal count
        async with turn:
            attempts = await wire.attempts(one.name)
        count += len(attempts)
        attempts.sort(key=lambda each: each.number)
        newest = {each.index: each.external_name for each in attempts}
        return one._replace(last_attempts=tuple(newest.values()))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(look(one), name=one.name) for one in told.values()]
    return {task.result().name: task.result() for task in tasks}, count


def state_of(job: job_pb2.Job) -> str:
    """A job's state without prefix."""
    return common_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")


async def wait_for(progress: Progress, holds: Callable[[], bool], patience: float) -> bool:
    """Wait until something holds that ended jobs change; False when patience is over."""
    try:
        async with asyncio.timeout(patience):
            while not holds():
                progress.moved.clear()
                await progress.moved.wait()
    except TimeoutError:
        return False
    return True
