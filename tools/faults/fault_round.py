"""One round: a server, a load, kill -9 at failpoints and at random, then a verdict."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from fault_backends import OUTSIDES
from fault_jobs import Workload
from fault_load import (
    BATCH,
    PatientWire,
    Progress,
    Submitter,
    follow,
    listing,
    wait_for,
    with_attempts,
)
from fault_operator import Operator
from fault_oracle import Evidence, LeftOut, violations
from fault_points import BEFORE_ALL, SLOW, Armed, Points
from fault_provoke import Provoker
from fault_restore import adopt, copy_store, put_back
from fault_zygote import ZygoteLauncher
from server_process import ColdLauncher, HatobaServer, Unready, died, kill9
from waiting import until
from wire import Wire

from hatoba.v1 import admin_pb2
from hatoba_scheduler.store.sqlite.database import FILE, connect
from hatoba_scheduler.store.sqlite.doctor import visit

COLD_EVERY = 20
SUBMITTERS = 4
"""Batches that are being submitted at once."""
AT_RANDOM = 1.0
"""Within so many seconds one dies that has no failpoint."""
DYING = 1.0
"""Seconds for a server to come by its failpoint, at most."""
DYING_AT = {
    "adopt.": 25.0,
    "disconnect.": 40.0,
    "list.": 2.5,
    "observe.": 2.5,
    "reap.": 4.5,
    "recall.": 60.0,
    "release.": 4.0,
    "schedule.": 2.5,
}
"""The same for what happens only after a while."""
LULL_SECONDS = 1.0
SETTLE_SECONDS = 90.0
REST_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round does. `pause` is the mean time between kills in seconds."""

    backend: str
    kills: int
    jobs: int
    seed: int
    pause: float = 0.4


@dataclass(slots=True)
class Verdict:
    """How a round ended."""

    plan: Plan
    seconds: float
    kills: Counter[str]
    points: Counter[str]
    """How many servers died at each failpoint."""
    violations: list[str]
    figures: dict[str, float] = field(default_factory=dict)


class Round:
    """Keeps a server, its worker and its keeper dying while jobs go through."""

    def __init__(self, plan: Plan, work: Path, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._outside = OUTSIDES[plan.backend](work)
        self._say = say
        self._dice = random.Random(plan.seed)
        self._zygote = ZygoteLauncher(self._outside.modules)
        self._cold = ColdLauncher()
        self._points = Points(self._dice, plan.backend, plan.kills)
        hosts = self._outside.hosts
        self._server = HatobaServer(work / "data", hosts, (), self._cold)
        self._targets = ["server"] * 8 + ["worker", "keeper"] if hosts else ["server"]
        self._kills: Counter[str] = Counter()
        self._progress = Progress()
        self._trouble: list[str] = []
        self._unwell: list[str] = []
        self._visits = 0
        self._visiting = 0.0
        self._starts = 0
        self._adopting: asyncio.Task[None] | None = None
        self._known_until: dict[str, float] = {}
        self._left_out: list[LeftOut] = []
        self._visit: asyncio.Task[None] | None = None
        self._last_end = (0, 0)
        """Ends that were heard of, and how many kills there had been when the last one was."""

    async def run(self) -> Verdict:
        """The verdict; everything that was started is gone when it is there."""
        began = time.monotonic()
        async with self._outside:
            await asyncio.to_thread(self._configure)
            try:
                await self._launch(Armed())
                await self._server.until_ready()
                async with PatientWire(self._server, credentials=self._credentials()) as wire:
                    evidence, attempts = await self._worked(wire)
            finally:
                await self._end()
        left = await asyncio.to_thread(self._server.left)
        found = self._trouble + violations(evidence, witnessed=self._outside.witnessed)
        found += [f"left after `stop --all`: {each}" for each in left]
        await self._doctor("at the end")
        found += self._unwell
        return Verdict(
            plan=self._plan,
            seconds=time.monotonic() - began,
            kills=self._kills,
            points=self._points.hits,
            violations=found,
            figures=self._figures(evidence, attempts),
        )

    async def _worked(self, wire: Wire) -> tuple[Evidence, int]:
        """What is known once all is over, whatever went wrong."""
        try:
            await self._outside.begin(wire)
            await self._work_and_kill(wire)
        except* (AssertionError, TimeoutError, grpc.aio.AioRpcError) as trouble:
            self._trouble = [repr(one) for one in leaves(trouble)]
            await self._revive()
        return await self._evidence(wire)

    def _configure(self) -> None:
        data = self._server.data
        data.mkdir(mode=0o700)
        (data / "hatoba.toml").write_text(self._outside.configuration())
        (data / "worker.json").write_text(json.dumps(self._outside.worker()))

    def _credentials(self) -> grpc.ChannelCredentials | None:
        """What clients trust, where the server speaks TLS; the same for each of its lives."""
        authority = self._server.ready.get("ca_file")
        if not authority:
            return None
        return grpc.ssl_channel_credentials(Path(authority).read_bytes())

    # -- the load and the kills -------------------------------------------------------------------

    async def _work_and_kill(self, wire: Wire) -> None:
        plan, progress = self._plan, self._progress
        workload = Workload(self._outside, plan.seed)
        submitter = Submitter(wire, workload, progress, plan.seed)
        operator = Operator(wire, self._outside, plan.seed)
        provoker = Provoker(wire, workload, submitter, operator)
        # A wire of its own: who dials anew cancels what others still read on the old channel.
        watching = Wire(self._server, credentials=self._credentials())
        async with watching, asyncio.TaskGroup() as group:
            following = group.create_task(follow(watching, progress), name="follow")
            if BEFORE_ALL in self._points.within:
                await self._adopt_an_end(provoker)
            await provoker.begin_schedules()
            operating = group.create_task(operator.work(), name="operator")
            async with asyncio.TaskGroup() as work:
                work.create_task(self._submit(submitter), name="submit")
                work.create_task(self._kill(provoker, work), name="kill")
            operating.cancel()
            await provoker.end_schedules()
            await operator.take_all_back()
            self._say(f"{sum(self._kills.values())} kills done; waiting for the last jobs")
            await self._until_all_ended(wire)
            following.cancel()

    async def _until_all_ended(self, wire: Wire) -> None:
        """Those that were acknowledged, and those that schedules submitted."""
        progress = self._progress
        names = {*progress.acknowledged.values(), *(await listing(wire)).runs}
        await self._while_jobs_end(lambda: names <= progress.ended.keys())

    async def _submit(self, submitter: Submitter) -> None:
        """Keep as many jobs under way as may be, and spread them over the kills."""
        turns = asyncio.Semaphore(SUBMITTERS)
        async with asyncio.TaskGroup() as work:
            for first in range(0, self._plan.jobs, BATCH):
                count = min(BATCH, self._plan.jobs - first)
                await turns.acquire()
                await self._turn(first, count)
                batch = self._batch(submitter, first, count, turns)
                work.create_task(batch, name=f"submit {first}")

    async def _batch(
        self, submitter: Submitter, first: int, count: int, turns: asyncio.Semaphore
    ) -> None:
        try:
            await submitter.submit(first, count)
        finally:
            turns.release()
        await submitter.cancel_waiting()

    async def _turn(self, submitted: int, count: int) -> None:
        share = self._plan.jobs / max(self._plan.kills, 1)
        at_once = self._outside.at_once

        def mine() -> bool:
            allowed = (sum(self._kills.values()) + 1) * share + at_once / 2
            return self._progress.open + count <= at_once and submitted < allowed

        if not await self._while_jobs_end(mine):
            raise AssertionError(f"nothing ends: {self._progress.open} jobs are under way")

    async def _while_jobs_end(self, holds: Callable[[], bool]) -> bool:
        """Wait until something holds; False when before that no job ends for too long."""
        progress, patience = self._progress, SETTLE_SECONDS * self._outside.pace
        while not holds():
            ended = len(progress.ended)

            def moves(ended: int = ended) -> bool:
                return holds() or len(progress.ended) != ended

            if not await wait_for(progress, moves, patience):
                return False
        return True

    async def _kill(self, provoker: Provoker, work: asyncio.TaskGroup) -> None:
        while (done := sum(self._kills.values())) < self._plan.kills:
            target = self._dice.choice(self._targets)
            if target == "server":
                await self._kill_server(work)
                await self._start_next(provoker, work)
            else:
                await self._pause()
                await self._kill_beside(target)
            self._progress.moved.set()
            now = sum(self._kills.values())
            if now > done and now % 20 == 0:
                self._tell(now)
        await self._revive()
        if self._adopting:
            await self._adopting

    async def _pause(self) -> None:
        """A kill says most while work goes on; but what never comes back is not waited for."""
        before = len(self._progress.ended)
        await asyncio.sleep(self._dice.uniform(0.0, 2 * self._plan.pause))
        await wait_for(self._progress, lambda: len(self._progress.ended) > before, LULL_SECONDS)

    def _tell(self, kills: int) -> None:
        made, ended = len(self._progress.acknowledged), len(self._progress.ended)
        self._say(f"{kills} kills, {made} jobs acknowledged, {ended} ended")

    async def _kill_beside(self, target: str) -> None:
        find = self._server.worker_pid if target == "worker" else self._server.keeper_pid
        pid = await asyncio.to_thread(find)
        if pid and await asyncio.to_thread(kill9, pid):
            self._kills[target] += 1

    async def _kill_server(self, work: asyncio.TaskGroup) -> None:
        """Have it die at its failpoint; where the load does not come by that, kill it as it is.

        Then the doctor looks at the store, as it is at one moment, while the next server starts.
        """
        if self._visit:
            await self._visit
        reached = await asyncio.to_thread(died, self._server.pid, self._patience())
        self._points.told(reached=reached)
        if reached or await asyncio.to_thread(kill9, self._server.pid):
            self._kills["server"] += 1
        await asyncio.to_thread(settle, self._server.data / FILE)
        when = f"after {sum(self._kills.values())} kills"
        self._visit = work.create_task(self._doctor(when), name=f"doctor {when}")

    def _patience(self) -> float:
        name = self._points.armed.name
        if not name:
            return self._dice.uniform(0, AT_RANDOM) * self._outside.pace
        known = (s for start, s in DYING_AT.items() if name.startswith(start))
        return next(known, DYING) * self._outside.pace

    async def _start_next(self, provoker: Provoker, work: asyncio.TaskGroup) -> None:
        """The next server, and what leads it by the failpoint that it is to die at."""
        if self._adopting is not None and not self._adopting.done():
            # A restored store does nothing else until it is adopted.
            await self._revive()
            await self._adopting
            await self._kill_as_it_is()
        if self._breathless() or self._crowded():
            await self._breathe()
        armed = self._points.next(time.time())
        if armed.name.startswith(SLOW):
            await self._leave_work_behind(provoker, armed.name)
        await asyncio.to_thread(self._prepare, armed.name)
        await self._launch(armed)
        try:
            await self._server.until_ready()
        except Unready:
            # One that dies while it starts is an ordinary kill.
            return
        if armed.name.startswith("adopt."):
            self._adopting = work.create_task(self._adopt(), name="adopt")
        elif armed.name:
            work.create_task(provoker.provoke(armed.name), name=f"provoke {armed.name}")

    def _breathless(self) -> bool:
        """Whether kills come faster than this machine gets anything done."""
        ended, kills = len(self._progress.ended), sum(self._kills.values())
        if ended > self._last_end[0]:
            self._last_end = (ended, kills)
        return kills - self._last_end[1] >= self._outside.breath

    def _crowded(self) -> bool:
        """Whether jobs come faster than this machine gets them done."""
        return self._progress.open > 2 * self._outside.at_once

    async def _breathe(self) -> None:
        """A server more, left alone until a job ends and not too many are left."""
        await self._revive()
        ended = self._last_end[0]

        def better() -> bool:
            return len(self._progress.ended) > ended and not self._crowded()

        await wait_for(self._progress, better, REST_SECONDS * self._outside.pace)
        await self._kill_as_it_is()

    async def _adopt(self) -> None:
        await adopt(self._server)
        now = dt.datetime.now(dt.UTC)
        self._left_out += [
            LeftOut(name, dt.datetime.fromtimestamp(known, dt.UTC), now)
            for name, known in self._known_until.items()
        ]

    async def _adopt_an_end(self, provoker: Provoker) -> None:
        """Put back a store from before the end of the only job there is, and die adopting that."""
        data = self._server.data
        copy = await provoker.end_after(lambda: asyncio.to_thread(copy_store, data))
        await self._kill_as_it_is()
        await asyncio.to_thread(self._put_back, copy)
        await self._launch(self._points.arm(BEFORE_ALL))
        await self._server.until_ready()
        async with asyncio.TaskGroup() as work:
            work.create_task(self._adopt(), name="adopt")
            reached = await asyncio.to_thread(died, self._server.pid, self._patience())
            self._points.told(reached=reached)
            self._kills["server"] += reached
            await self._revive()

    async def _leave_work_behind(self, provoker: Provoker, point: str) -> None:
        """A server more, which dies while jobs run, so that the next finds what it needs."""
        if self._visit:
            await self._visit
        await self._revive()
        await provoker.set_to_work(point)
        await self._kill_as_it_is()

    async def _kill_as_it_is(self) -> None:
        if await asyncio.to_thread(kill9, self._server.pid):
            self._kills["server"] += 1

    def _prepare(self, point: str) -> None:
        """What must be done for a failpoint while no server runs; blocks."""
        if point.startswith("adopt."):
            self._put_back(copy_store(self._server.data))
        elif point.startswith("reap."):
            self._outside.plant_orphan(self._dice)

    def _put_back(self, copy: Path) -> None:
        self._known_until = put_back(copy, self._server.data)
        self._progress.restores += 1

    async def _launch(self, armed: Armed) -> None:
        self._starts += 1
        launcher = self._cold if self._starts % COLD_EVERY == 0 else self._zygote
        launcher.environ = {**self._outside.environ, **armed.environ}
        self._server.launcher = launcher
        await asyncio.to_thread(self._server.launch)

    async def _doctor(self, when: str) -> None:
        """Note what is not as it must be in the store's file."""
        began = time.monotonic()
        problems = await asyncio.to_thread(visit, self._server.data / FILE, 0, mend=False)
        self._visits += 1
        self._visiting += time.monotonic() - began
        self._unwell += [f"doctor {when}: {problem.text()}" for problem in problems]

    async def _revive(self) -> None:
        """Whatever server there is, one comes that dies by nothing."""
        await asyncio.to_thread(kill9, self._server.pid)
        await self._launch(Armed())
        await self._server.until_ready()

    # -- the verdict ------------------------------------------------------------------------------

    async def _evidence(self, wire: Wire) -> tuple[Evidence, int]:
        found = await listing(wire)
        told, attempts = await with_attempts(wire, found.told)
        held = await self._held(wire)
        progress = self._progress
        evidence = Evidence(
            asked=progress.asked,
            acknowledged=progress.acknowledged,
            told=told,
            unfinished=found.unfinished,
            runs=found.runs,
            left_out=self._left_out,
            lines=await asyncio.to_thread(self._outside.lines),
            terminal_events=progress.ended,
            gaps=progress.gaps,
            renamed=progress.renamed,
            processes=await self._processes(),
            held=held,
            objects=await self._outside.what_is_left(REST_SECONDS * self._outside.pace),
        )
        return evidence, attempts

    async def _held(self, wire: Wire) -> int:
        """Attempts that hold resources, once none does or patience is over."""
        held = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_SECONDS * self._outside.pace):
                while True:
                    request = admin_pb2.GetServerStatusRequest()
                    held = (await wire.call(request, admin_pb2.ServerStatus)).live_attempts
                    if not held:
                        return 0
                    await asyncio.sleep(0.02)
        return held

    async def _processes(self) -> list[str]:
        with contextlib.suppress(TimeoutError):
            await until(lambda: not self._server.marked(), REST_SECONDS)
        return await asyncio.to_thread(self._server.marked)

    def _figures(self, evidence: Evidence, attempts: int) -> dict[str, float]:
        starts = sum(line.event == "start" for line in evidence.lines)
        states = Counter(told.state for told in evidence.told.values())
        return {
            "jobs": len(evidence.acknowledged),
            **{state.lower(): count for state, count in sorted(states.items())},
            "attempts": attempts,
            "starts recorded": starts,
            "visits of the doctor": self._visits,
            "ms each": round(1000 * self._visiting / max(1, self._visits)),
            "restores": self._progress.restores,
            "runs of schedules": len(evidence.runs),
            "cancels": self._progress.cancels,
            "repeated submits recognised": self._progress.repeated,
        }

    async def _end(self) -> None:
        with contextlib.suppress(AssertionError):
            await self._server.close()
        await asyncio.to_thread(self._zygote.close)
        await asyncio.to_thread(self._cold.close)


def settle(file: Path) -> None:
    """Have what a dead server left in the store's journal taken in; blocks."""
    with closing(connect(file, reader=True)) as connection:
        connection.execute("SELECT cluster_id FROM identity").fetchone()


def leaves(error: BaseException) -> list[BaseException]:
    """The errors that a group of groups is made of."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for one in error.exceptions for leaf in leaves(one)]
