"""One round: a server, a load, kill -9 at failpoints and at random, then a verdict."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fault_load import (
    BATCH,
    Progress,
    Submitter,
    Workload,
    follow,
    told_jobs,
    wait_for,
    with_attempts,
)
from fault_operator import Operator
from fault_oracle import Evidence, Line, read_lines, violations
from fault_points import Points
from fault_zygote import ZygoteLauncher
from server_process import ColdLauncher, HatobaServer, Unready, died, kill9, until
from wire import Wire

from hatoba.v1 import admin_pb2
from hatoba_scheduler.store.sqlite.doctor import visit

COLD_EVERY = 20
DOCTOR_EVERY = 10
REAP_AFTER = 5.0
"""Seconds after which what nobody wants is ended."""
DYING = 1.2
"""Seconds for a server to come by its failpoint, at most."""
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
    at_once: int = 100
    pause: float = 0.4


@dataclass(slots=True)
class Verdict:
    """How a round ended."""

    plan: Plan
    seconds: float
    kills: Counter[str]
    points: Counter[str]
    """Failpoints that servers died at."""
    never: list[str]
    """Failpoints that none died at."""
    violations: list[str]
    figures: dict[str, int] = field(default_factory=dict)


class Round:
    """Keeps a server, its worker and its keeper dying while jobs go through."""

    def __init__(self, plan: Plan, work: Path, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._work = work
        self._say = say
        self._dice = random.Random(plan.seed)
        self._zygote = ZygoteLauncher()
        self._cold = ColdLauncher()
        self._points = Points(self._dice)
        hosts = plan.backend == "hosts"
        self._server = HatobaServer(work / "data", hosts, (), self._cold)
        self._targets = ["server"] * 4 + ["worker", "keeper"] if hosts else ["server"]
        self._kills: Counter[str] = Counter()
        self._progress = Progress()
        self._trouble: list[str] = []
        self._unwell: list[str] = []
        self._visits = 0
        self._starts = 0

    async def run(self) -> Verdict:
        """The verdict; everything that was started is gone when it is there."""
        began = time.monotonic()
        self._configure()
        try:
            await self._server.start()
            async with Wire(self._server) as wire:
                try:
                    await self._work_and_kill(wire)
                except* (AssertionError, TimeoutError) as trouble:
                    self._trouble = [repr(one) for one in leaves(trouble)]
                    await self._revive()
                evidence, attempts = await self._evidence(wire)
        finally:
            await self._end()
        left = await asyncio.to_thread(self._server.left)
        witnessed = self._plan.backend == "hosts"
        found = self._trouble + violations(evidence, witnessed=witnessed)
        found += [f"left after `stop --all`: {each}" for each in left]
        found += self._unwell + await self._doctor("at the end")
        return Verdict(
            plan=self._plan,
            seconds=time.monotonic() - began,
            kills=self._kills,
            points=self._points.hits,
            never=self._points.never,
            violations=found,
            figures=self._figures(evidence, attempts),
        )

    def _configure(self) -> None:
        data = self._server.data
        data.mkdir(mode=0o700)
        options = f'ledger = "{data}/mock.ledger"' if self._plan.backend == "mock" else ""
        name = self._plan.backend
        text = f'[defaults]\ntrain = "{name}"\n[backends.{name}]\ntype = "{name}"\n'
        text += f"reap_after = {REAP_AFTER}\n[backends.{name}.options]\n{options}\n"
        (data / "hatoba.toml").write_text(text)

    # -- the load and the kills -------------------------------------------------------------------

    async def _work_and_kill(self, wire: Wire) -> None:
        # A wire of its own: who dials anew cancels what others still read on the old channel.
        async with Wire(self._server) as watching, asyncio.TaskGroup() as group:
            following = group.create_task(follow(watching, self._progress), name="follow")
            operator = Operator(wire, self._plan.backend, self._plan.seed)
            operating = group.create_task(operator.work(), name="operator")
            async with asyncio.TaskGroup() as work:
                work.create_task(self._submit(wire), name="submit")
                work.create_task(self._kill(), name="kill")
            operating.cancel()
            await operator.take_all_back()
            self._say(f"{sum(self._kills.values())} kills done; waiting for the last jobs")
            everything = len(self._progress.acknowledged)
            await wait_for(
                self._progress, lambda: len(self._progress.ended) >= everything, SETTLE_SECONDS
            )
            following.cancel()

    async def _submit(self, wire: Wire) -> None:
        """Keep as many jobs under way as may be, and spread them over the kills."""
        workload = Workload(self._plan.backend, self._plan.seed, self._work)
        submitter = Submitter(wire, workload, self._progress, self._plan.seed)
        submitted = 0
        async with asyncio.TaskGroup() as cancels:
            while submitted < self._plan.jobs:
                count = min(BATCH, self._plan.jobs - submitted)
                await self._turn(submitted, count)
                await submitter.submit(submitted, count)
                submitted += count
                cancels.create_task(submitter.cancel_waiting(), name="cancel")

    async def _turn(self, submitted: int, count: int) -> None:
        share = self._plan.jobs / max(self._plan.kills, 1)

        def mine() -> bool:
            allowed = (sum(self._kills.values()) + 1) * share + self._plan.at_once / 2
            return self._progress.open + count <= self._plan.at_once and submitted < allowed

        if not await wait_for(self._progress, mine, SETTLE_SECONDS):
            raise AssertionError(f"nothing ends: {self._progress.open} jobs are under way")

    async def _kill(self) -> None:
        while (done := sum(self._kills.values())) < self._plan.kills:
            target = self._dice.choice(self._targets)
            if target != "server":
                await self._pause()
            await self._kill_one(target)
            self._progress.moved.set()
            now = sum(self._kills.values())
            if now > done and now % 20 == 0:
                self._tell(now)
        await self._revive()

    async def _pause(self) -> None:
        """A kill says most while work goes on; but what never comes back is not waited for."""
        before = len(self._progress.ended)
        await asyncio.sleep(self._dice.uniform(0.0, 2 * self._plan.pause))
        await wait_for(self._progress, lambda: len(self._progress.ended) > before, LULL_SECONDS)

    def _tell(self, kills: int) -> None:
        made, ended = len(self._progress.acknowledged), len(self._progress.ended)
        self._say(f"{kills} kills, {made} jobs acknowledged, {ended} ended")

    async def _kill_one(self, target: str) -> None:
        if target == "server":
            await self._kill_server()
            return
        find = self._server.worker_pid if target == "worker" else self._server.keeper_pid
        pid = await asyncio.to_thread(find)
        if pid and await asyncio.to_thread(kill9, pid):
            self._kills[target] += 1

    async def _kill_server(self) -> None:
        """Have it die at its failpoint; where the load does not come by that, kill it as it is."""
        reached = await asyncio.to_thread(died, self._server.pid, self._dice.uniform(0.3, DYING))
        self._points.told(reached=reached)
        if reached or await asyncio.to_thread(kill9, self._server.pid):
            self._kills["server"] += 1
        if self._kills["server"] % DOCTOR_EVERY == 0:
            self._unwell += await self._doctor(f"after {sum(self._kills.values())} kills")
        await asyncio.sleep(self._dice.choice([0.0, self._dice.uniform(0, 0.2)]))
        await self._launch(self._points.next())
        with contextlib.suppress(Unready):
            # One that dies while it starts is an ordinary kill.
            await self._server.until_ready()

    async def _launch(self, environ: dict[str, str]) -> None:
        self._starts += 1
        launcher = self._cold if self._starts % COLD_EVERY == 0 else self._zygote
        launcher.environ = environ
        self._server.launcher = launcher
        await asyncio.to_thread(self._server.launch)

    async def _doctor(self, when: str) -> list[str]:
        """What is not as it must be in the store's file, which no server has open."""
        self._visits += 1
        file = self._server.data / "hatoba.db"
        problems = await asyncio.to_thread(visit, file, 0, mend=False)
        return [f"doctor {when}: {problem.text()}" for problem in problems]

    async def _revive(self) -> None:
        """Whatever server there is, one comes that dies by nothing."""
        await asyncio.to_thread(kill9, self._server.pid)
        await self._launch({})
        await self._server.until_ready()

    # -- the verdict ------------------------------------------------------------------------------

    async def _evidence(self, wire: Wire) -> tuple[Evidence, int]:
        told, unfinished = await told_jobs(wire)
        told, attempts = await with_attempts(wire, told)
        held = await self._held(wire)
        progress = self._progress
        evidence = Evidence(
            asked=progress.asked,
            acknowledged=progress.acknowledged,
            told=told,
            unfinished=unfinished,
            lines=await asyncio.to_thread(self._lines),
            terminal_events=progress.ended,
            gaps=progress.gaps,
            renamed=progress.renamed,
            processes=await self._processes(),
            held=held,
        )
        return evidence, attempts

    async def _held(self, wire: Wire) -> int:
        """Attempts that hold resources, once none does or patience is over."""
        held = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REST_SECONDS):
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

    def _lines(self) -> list[Line]:
        if self._plan.backend == "mock":
            return mock_lines(self._server.data / "mock.ledger")
        return read_lines(self._work / "ledger")

    def _figures(self, evidence: Evidence, attempts: int) -> dict[str, int]:
        starts = sum(line.event == "start" for line in evidence.lines)
        states = Counter(told.state for told in evidence.told.values())
        return {
            "jobs": len(evidence.acknowledged),
            **{state.lower(): count for state, count in sorted(states.items())},
            "attempts": attempts,
            "starts recorded": starts,
            "visits of the doctor": self._visits,
            "cancels": self._progress.cancels,
            "repeated submits recognised": self._progress.repeated,
        }

    async def _end(self) -> None:
        with contextlib.suppress(AssertionError):
            await self._server.close()
        await asyncio.to_thread(self._zygote.close)
        await asyncio.to_thread(self._cold.close)


def leaves(error: BaseException) -> list[BaseException]:
    """The errors that a group of groups is made of."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for one in error.exceptions for leaf in leaves(one)]


def mock_lines(path: Path) -> list[Line]:
    """The mock's own ledger in the witnesses' words."""
    from hatoba_plugins.backends.mock.ledger import read_ledger

    words = {"start": "start", "end": "end", "delete": "end"}
    return [
        Line(words[entry.event], entry.name, entry.time, 0)
        for entry in read_ledger(path)
        if entry.event in words
    ]
