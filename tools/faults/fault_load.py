"""Many jobs through a server that keeps dying: who submits, who follows, and what they remember."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from fault_oracle import Ask, Told
from wire import AWAY, REDIAL, TERMINAL, Wire

from hatoba.v1 import common_pb2, job_pb2

BATCH = 10
SUCCEEDED = frozenset({"SUCCEEDED"})
FAILED = frozenset({"FAILED 3"})
PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Wish:
    """A job of the load: which ends are right, and whether somebody will cancel it."""

    ask: Ask
    spec: job_pb2.JobSpec
    cancel_after: float | None


class Workload:
    """Gives job number N of a seed, always the same one."""

    def __init__(self, backend: str, seed: int, work: Path) -> None:
        self._backend = backend
        self._seed = seed
        self._ledger = work / "ledger"
        self._locks = work / "locks"
        self._locks.mkdir()
        self._witness = witness(work) if backend == "hosts" else []

    def wish(self, number: int) -> Wish:
        """Mostly one that succeeds; some fail, leave children behind, or are cancelled."""
        dice = random.Random(f"{self._seed}-{number}")
        fails = dice.random() < 0.05
        late = dice.random() < 0.03
        milliseconds = int(dice.choice([0, dice.uniform(0, 200), dice.uniform(0, 1500)]))
        cancelled = dice.random() < 0.03
        spec = job_pb2.JobSpec(name="fault", backend=self._backend)
        self._fill(spec, milliseconds, 3 if fails else 0, dice)
        spec.retries.user = 0
        spec.retries.infrastructure = 1000
        spec.retries.backoff.FromMilliseconds(20)
        spec.retries.max_backoff.FromMilliseconds(200)
        spec.stop_grace.FromMilliseconds(500)
        ends = (FAILED if fails else SUCCEEDED) | ({"CANCELLED"} if cancelled else set())
        if late:
            spec.max_queue_time.FromMilliseconds(round(dice.uniform(50, 1500)))
            ends |= {"TIMED_OUT"}
        return Wish(Ask(number, ends), spec, dice.uniform(0, 1.0) if cancelled else None)

    def _fill(
        self, spec: job_pb2.JobSpec, milliseconds: int, code: int, dice: random.Random
    ) -> None:
        odd = dice.random() < 0.05
        if self._backend == "hosts":
            how = ["hide"] if odd else []
            numbers = [str(milliseconds), str(code)]
            files = [str(self._ledger), str(self._locks)]
            spec.command.extend([*self._witness, *files, *numbers, *how])
            return
        spec.command.append("true")
        if self._backend == "null":
            options: dict[str, float | bool | str] = {
                "delay": milliseconds / 1000,
                "exit_code": code,
            }
        else:
            fault = dice.choice(["reply_lost", "reply_doubled"])
            options = {"run_for": milliseconds / 1000, "exit_code": code}
            options |= {"launch_fault": fault} if odd else {}
        spec.backend_options.update({self._backend: options})


def witness(work: Path) -> list[str]:
    """The command of the witness: a program compiled once; without a compiler, a script."""
    here = Path(__file__).parent
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return [sys.executable, "-I", "-S", str(here / "witness.py")]
    program = work / "witness"
    static = [compiler, "-O1", "-static", "-o", str(program), str(here / "witness.c")]
    if subprocess.run(static, capture_output=True, check=False).returncode:
        subprocess.run([each for each in static if each != "-static"], check=True)
    return [str(program)]


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
        known = list(self._progress.acknowledged.values())
        for wish in wishes:
            if known and self._dice.random() < 0.06:
                wish.spec.after_end.append(self._dice.choice(known[-50:]))

    async def _one_by_one(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            request = job_pb2.SubmitJobRequest(spec=wish.spec, request_id=self._id(wish))
            for _ in range(2 if self._dice.random() < 0.05 else 1):
                job, repeated = await self._wire.answer(request, job_pb2.Job, patience=PATIENCE)
                self._keep(wish, job.name, repeated=repeated)

    async def _together(self, wishes: list[Wish]) -> None:
        items = [
            job_pb2.SubmitJobsItem(spec=wish.spec, request_id=self._id(wish)) for wish in wishes
        ]
        request = job_pb2.SubmitJobsRequest(items=items)
        reply = await self._wire.call(request, job_pb2.SubmitJobsResponse, patience=PATIENCE)
        for wish, result in zip(wishes, reply.results, strict=True):
            assert result.code == 0, f"refused: {result}"
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
            name = self._progress.acknowledged[wish.ask.number]
            request = job_pb2.CancelJobsRequest(jobs=[name], request_id=f"{self._id(wish)}-c")
            await self._wire.call(request, job_pb2.CancelJobsResponse, patience=PATIENCE)
            self._progress.cancels += 1


async def follow(wire: Wire, progress: Progress) -> None:
    """Take in every event of the project, each once, from the first on; never returns."""
    cursor, last = "0", 0
    while True:
        request = job_pb2.WatchJobsRequest(cursor=cursor)
        try:
            async for message in wire.stream(request, job_pb2.WatchJobsResponse):
                if message.HasField("event"):
                    last = _take(message.event, last, progress)
                elif message.HasField("resync"):
                    progress.gaps.append(f"the follower was told to resync at {cursor}")
                cursor = message.cursor or cursor
        except grpc.aio.AioRpcError as error:
            if error.code() not in (*AWAY, grpc.StatusCode.CANCELLED):
                raise
        await asyncio.sleep(REDIAL)


def _take(event: common_pb2.Event, last: int, progress: Progress) -> int:
    if event.seq != last + 1:
        progress.gaps.append(f"event {event.seq} came after {last}")
    if event.job_terminal:
        progress.ended[event.job] += 1
        progress.moved.set()
    return event.seq


async def told_jobs(wire: Wire) -> tuple[dict[str, Told], dict[str, str]]:
    """Every job that has ended, and every other with what it waits for, by name."""
    told: dict[str, Told] = {}
    unfinished: dict[str, str] = {}
    request = job_pb2.ListJobsRequest(page_size=500)
    while True:
        page = await wire.call(request, job_pb2.ListJobsResponse)
        for job in page.jobs:
            if job.state in TERMINAL:
                told[job.name] = Told(job.name, state_of(job), job.cause.exit_code, "")
            else:
                unfinished[job.name] = f"{state_of(job)} {job.waiting_reason}"
        request.page_token = page.next_page_token
        if not request.page_token:
            return told, unfinished


async def with_attempts(wire: Wire, told: dict[str, Told]) -> tuple[dict[str, Told], int]:
    """The same with each job's last attempt, and how many attempts there were."""
    turn = asyncio.Semaphore(20)
    count = 0

    async def look(one: Told) -> Told:
        nonlocal count
        async with turn:
            attempts = await wire.attempts(one.name)
        count += len(attempts)
        return one._replace(last_attempt=attempts[-1].external_name if attempts else "")

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
