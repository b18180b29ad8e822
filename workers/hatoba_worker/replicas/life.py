"""One replica, from its order to the moment when nothing of it is left.

Its processes follow each other; each has a name of its own at the keeper, the replica's and a
number. A worker that was killed finds number and state in the replica's directory, the process at
the keeper, and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar

import structlog

from hatoba.scopes import lapse
from hatoba.v1 import common_pb2, deployment_pb2, worker_pb2
from hatoba_worker import tinyfiles
from hatoba_worker.executors import Executor
from hatoba_worker.failures import AttemptFailed, staging_failed
from hatoba_worker.keeper.messages import AttemptStatus, Exit, Spawned, SpawnFailed
from hatoba_worker.logs import FILES
from hatoba_worker.replicas import causes
from hatoba_worker.replicas.probe import Probe, Seen
from hatoba_worker.replicas.records import Standing
from hatoba_worker.replicas.staging import GRACE, Place, Staging, drain_seconds
from hatoba_worker.tails import last_lines

log = structlog.get_logger(__name__)
T = TypeVar("T")
State: TypeAlias = "deployment_pb2.ReplicaState.ValueType"

STARTING = deployment_pb2.REPLICA_STATE_STARTING
READY = deployment_pb2.REPLICA_STATE_READY
UNHEALTHY = deployment_pb2.REPLICA_STATE_UNHEALTHY
DRAINING = deployment_pb2.REPLICA_STATE_DRAINING
GONE = deployment_pb2.REPLICA_STATE_GONE

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 30.0
GOOD_AFTER = 60.0
"""Seconds of being ready after which earlier ends are forgiven."""
QUICK_LOOK = 0.02
SLOW_LOOK = 0.25
QUICK_FOR = 10.0
LOOK_EVERY = 1.0
LISTENS_WITHIN = 120.0
STARTS_SILENT = 120.0
SILENT_MOST = 10.0
"""Seconds without an answer after which it is killed; at its start it may take longer."""
NOT_READY_MOST = 3


@dataclass(frozen=True, slots=True)
class Tools:
    """What a replica needs of the worker; `time` is Unix seconds, `tell` hears of changes."""

    executor: Executor
    staging: Staging
    probe: Probe
    sleep: Callable[[float], Awaitable[None]]
    time: Callable[[], float]
    tell: Callable[[Replica], None] = lambda _: None


@dataclass(slots=True, eq=False)
class Run:
    """One process. `exit` is None after the end of one that was lost."""

    place: Place
    adopted: bool = False
    begun: bool = False
    began: float = 0.0
    exit: Exit | None = None
    killed: common_pb2.Cause | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, status: AttemptStatus) -> None:
        """What the keeper knows of it."""
        self.begun, self.began, self.exit = True, status.started_at, status.exit
        if status.exit is not None or status.lost:
            self.ended.set()
        if status.gone:
            self.gone.set()

    def lose(self) -> None:
        """Its keeper knows nothing of it, and so ended it."""
        self.ended.set()
        self.gone.set()


class Replica:
    """Keeps one replica running until it is let go."""

    def __init__(self, spec: worker_pb2.ReplicaSpec, home: str, tools: Tools) -> None:
        self.spec = spec
        self.home = home
        self.standing = Standing()
        self.state: State = STARTING
        self.since = tools.time()
        self.cause: common_pb2.Cause | None = None
        self.run: Run | None = None
        self._tools = tools
        self._leaving = asyncio.Event()
        self._interrupt: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        """The external name."""
        return self.spec.name

    @property
    def contained(self) -> bool:
        """True for a container, false for a process of its host."""
        return bool(self.spec.serving.environment.image)

    def message(self, host: str) -> deployment_pb2.Replica:
        """As the server is told."""
        out = deployment_pb2.Replica(
            name=self.name,
            revision=self.spec.revision,
            state=self.state,
            host=host,
            restarts=self.standing.restarts,
            cause=self.cause,
            resources=self.spec.resources,
            gpus=self.spec.gpus,
        )
        if self.state in (READY, DRAINING):
            out.address, out.secure = self.standing.address, self.standing.secure
        out.since.FromNanoseconds(round(self.since * 1e9))
        return out

    def recover(self) -> None:
        """Read what an earlier worker knew; blocks."""
        self.standing = Standing.load(self.home)

    def adopt(self, status: AttemptStatus | None) -> None:
        """Go on with the process that an earlier worker started, as the keeper has it."""
        if status is None or status.failed is not None:
            return
        self.run = self._new_run()
        self.run.adopted = True
        self.run.apply(status)
        if self.standing.ready_since and not self.run.ended.is_set():
            self.state, self.since = READY, self.standing.ready_since

    def fault(self, problem: str) -> None:
        """The worker itself failed on it."""
        self.standing.ends += 1
        self._fail(causes.of_failure(staging_failed(f"the worker failed on it: {problem}")))

    def let_go(self) -> None:
        """It is not wanted any more: `live` ends once nothing of it is left. May be repeated."""
        self._leaving.set()
        if self._interrupt is not None:
            self._interrupt()

    async def live(self) -> None:
        """Keep it running until it was let go and is gone."""
        while not self._leaving.is_set() or self.run is not None:
            run = self.run or await self._begin()
            if run is not None:
                await self._attend(run)
                self.run = None
            await self._rest()
        await self._tools.staging.clear(self.name, self.home)
        self._enter(GONE)

    # -- start ----------------------------------------------------------------------------------

    async def _begin(self) -> Run | None:
        """Start a process; None when that failed, or is not wanted any more."""
        if self.standing.run:
            self.standing.restarts += 1
        self._enter(STARTING)
        try:
            run = await self._interruptible(self._prepare())
        except AttemptFailed as failure:
            self.standing.ends += 1
            self._fail(causes.of_failure(failure))
            return None
        return run if run is not None and run.begun else None

    async def _prepare(self) -> Run | None:
        if not self.standing.staged:
            await asyncio.to_thread(Path(self.home).mkdir, 0o700, True, True)
            await self._tools.staging.trees(self.spec, self.home)
            self.standing.staged = True
        self.standing.run += 1
        self.standing.address, self.standing.ready_since = "", 0.0
        self._save()
        run = self._new_run()
        spawn = await self._tools.staging.spawn(self.spec, run.place)
        # From here on it is the keeper's: who lets go of it must have it ended.
        self._interrupt = None
        if self._leaving.is_set():
            return None
        self.run = run
        self._started(run, await self._tools.executor.start(spawn))
        return run

    def _started(self, run: Run, started: Spawned | SpawnFailed) -> None:
        if isinstance(started, SpawnFailed):
            log.warning("replica.spawn", replica=self.name, error=started.message)
            self.run = None
            self.standing.ends += 1
            self._fail(causes.of_spawn(started))
        elif started.status is not None:
            run.apply(started.status)
        else:
            run.begun, run.began = True, started.started_at

    def _new_run(self) -> Run:
        number = self.standing.run
        return Run(Place(f"{self.name}.{number}", self.home, number, self.contained))

    # -- while it runs --------------------------------------------------------------------------

    async def _attend(self, run: Run) -> None:
        """Look after a process until nothing of it is left."""
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch(run), name=f"watch {run.place.process}")
            ending = self._end_when_let_go(run, watching)
            beside = [tasks.create_task(ending, name=f"end {run.place.process}")]
            if run.adopted:
                pinning = self._tools.staging.pin(self.spec, self.home)
                beside.append(tasks.create_task(pinning, name=f"pin {run.place.process}"))
            await run.ended.wait()
            watching.cancel()
            self._ended(run)
            await run.gone.wait()
            for task in beside:
                task.cancel()
        self._tools.executor.forget(run.place.process)

    async def _end_when_let_go(self, run: Run, watching: asyncio.Task[None]) -> None:
        await self._leaving.wait()
        watching.cancel()
        self._enter(DRAINING)
        self._tools.executor.stop(run.place.process, drain_seconds(self.spec) + GRACE)

    def _ended(self, run: Run) -> None:
        if self._leaving.is_set():
            return
        good = self.standing.ready_since and (
            self._tools.time() - self.standing.ready_since >= GOOD_AFTER
        )
        self.standing.ends = 1 if good else self.standing.ends + 1
        ends = self.standing.ends
        self._fail(run.killed or causes.of_exit(run.exit, self.spec, self._lines(), ends))

    async def _watch(self, run: Run) -> None:
        """Ask it how it is, often until it is ready, then every second."""
        address = self.standing.address or await self._listening(run)
        if not address:
            self._kill(run, f"it did not listen within {LISTENS_WITHIN:g} s")
            return
        well_at, not_ready, was_ready = self._tools.time(), 0, bool(self.standing.address)
        while True:
            seen = await self._ask(address, "/readyz")
            if seen.status == 200:
                not_ready, was_ready = 0, True
                self._is_ready(address)
            else:
                not_ready += 1
                self._is_not_ready(seen, not_ready)
            if await self._is_well(address, seen):
                well_at = self._tools.time()
            elif self._tools.time() - well_at > (SILENT_MOST if was_ready else STARTS_SILENT):
                self._kill(run, seen.text)
                return
            await self._tools.sleep(self._pace(run))

    async def _listening(self, run: Run) -> str:
        """Its address, once it listens; empty when that takes too long."""
        path = run.place.ready_file
        while not tinyfiles.exists(path):
            if self._tools.time() - run.began > LISTENS_WITHIN:
                return ""
            await self._tools.sleep(self._pace(run))
        found = json.loads(tinyfiles.read_piece(path, 0, tinyfiles.PIECE))
        host = f"[{found['host']}]" if ":" in found["host"] else found["host"]
        self.standing.secure = bool(found.get("tls"))
        if published := self._tools.executor.published(run.place.process):
            return published
        return f"{host}:{found['port']}"

    async def _ask(self, address: str, path: str) -> Seen:
        return await self._tools.probe(address, path, self.standing.secure)

    async def _is_well(self, address: str, seen: Seen) -> bool:
        """Whether one that is perhaps not ready is at least alive."""
        if seen.kind != "stuck":
            return seen.status != 0
        return (await self._ask(address, "/healthz")).status == 200

    def _pace(self, run: Run) -> float:
        if self.state == READY:
            return LOOK_EVERY
        return QUICK_LOOK if self._tools.time() - run.began < QUICK_FOR else SLOW_LOOK

    def _is_ready(self, address: str) -> None:
        if self.state == READY:
            return
        now = self._tools.time()
        self.standing.address, self.standing.ready_since = address, now
        self._save()
        self._enter(READY)

    def _is_not_ready(self, seen: Seen, times: int) -> None:
        """It was ready and is not any more, or it says that it never will be by itself."""
        hopeless = seen.kind in causes.PREDICTIONS
        was_ready = self.state == READY and times >= NOT_READY_MOST
        if was_ready or (hopeless and self.state == STARTING):
            why = seen.text or f"/readyz answered {seen.status}"
            self._fail(causes.not_ready(seen.kind, why, self._lines()))

    def _kill(self, run: Run, why: str) -> None:
        log.warning("replica.hung", replica=self.name, why=why)
        run.killed = causes.hung(why, self._lines())
        self._tools.executor.stop(run.place.process, 0.0)

    # -- between two runs -----------------------------------------------------------------------

    async def _rest(self) -> None:
        wait = FIRST_BACKOFF * 2 ** min(max(self.standing.ends - 1, 0), 10)
        await self._interruptible(self._tools.sleep(min(wait, LONGEST_BACKOFF)))

    async def _interruptible(self, awaitable: Awaitable[T]) -> T | None:
        """Wait for something; None when it is let go meanwhile."""
        limit = asyncio.timeout(0.0 if self._leaving.is_set() else None)
        self._interrupt = lambda: lapse(limit)
        try:
            async with limit:
                return await awaitable
        except TimeoutError:
            if not limit.expired():
                raise
            return None
        finally:
            self._interrupt = None

    # -- saying how it is -----------------------------------------------------------------------

    def _fail(self, cause: common_pb2.Cause) -> None:
        self.cause = cause
        self.standing.ready_since = 0.0
        self._save()
        self._enter(UNHEALTHY)

    def _enter(self, state: State) -> None:
        if state != self.state:
            self.state, self.since = state, self._tools.time()
        self._tools.tell(self)

    def _save(self) -> None:
        """A full disk costs the memory of the last moments, not the replica."""
        with contextlib.suppress(OSError):
            self.standing.save(self.home)

    def _lines(self) -> list[str]:
        stderr, stdout = (os.path.join(self.home, FILES[name]) for name in ("stderr", "stdout"))
        return last_lines(stderr) or last_lines(stdout)
