"""Containers of this host, by its engine.

The engine is their journal: each carries our labels and stays until it is forgotten, so whoever
comes after a dead worker finds what there is. While the engine is away nothing is said of them. A
container is started once at most: where it cannot be told whether a start was carried out, the
attempt is lost, and never started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from hatoba_worker import tinyfiles
from hatoba_worker.executors import ContainerObserver
from hatoba_worker.executors.containers import manifest, states
from hatoba_worker.executors.containers.engine import (
    Engine,
    EngineAway,
    EngineMissing,
    EngineRefused,
    Facts,
    Json,
    connected,
)
from hatoba_worker.executors.containers.output import Output
from hatoba_worker.executors.containers.spec import ContainerSpawn
from hatoba_worker.executors.containers.starting import (
    STARTING,
    STOPPED,
    Abilities,
    Starting,
)
from hatoba_worker.keeper.messages import AttemptStatus, Exited, Sample, Spawned, SpawnFailed
from hatoba_worker.logs import FILES
from hatoba_worker.tails import last_lines

log = structlog.get_logger(__name__)

LOOK_EVERY = 10.0
WRITE_AGAIN = 1.0
SAMPLES = 8
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
_ABSENT_WAIT = 30.0
_NOT_RUNNING = 409

Sleep = Callable[[float], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Held:
    """A container that is ours; `began` Unix seconds, 0 before it runs."""

    name: str
    home: str
    began: float = 0.0
    over: bool = False
    published: str = ""
    output: Output | None = None
    following: asyncio.Task[None] | None = None
    killing: asyncio.TimerHandle | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ContainerExecutor:
    """The one connection to the engine, made again whenever it breaks. `expected`: there is one for
    sure, though it may not be up yet.
    """

    def __init__(
        self,
        socket: str,
        host: str,
        observer: ContainerObserver,
        sleep: Sleep = asyncio.sleep,
        *,
        expected: bool = False,
    ) -> None:
        self._socket = socket
        self._host = host
        self._label = f"{manifest.HOST}={host}"
        self._observer = observer
        self._sleep = sleep
        self._expected = expected
        self._open: tuple[Engine, Facts] | None = None
        self._back = asyncio.Event()
        self._held: dict[str, Held] = {}
        self._stops: dict[str, float] = {}
        self._forgets: dict[str, None] = {}
        self._killed: set[str] = set()
        """Containers that somebody had the engine end, we or another."""
        self._wake = asyncio.Event()
        self._away = (0.0, 0.0)
        """When the engine was last not there, from and until."""
        self._heard = ""
        self._abilities = Abilities()
        self._tasks: asyncio.TaskGroup | None = None
        self.tried = asyncio.Event()
        """Set once it is known whether there is an engine."""

    # -- what is asked of it --------------------------------------------------------------------

    @property
    def socket(self) -> str:
        """Where the engine listens."""
        return self._socket

    @property
    def facts(self) -> Facts | None:
        """What the engine is; None while it is away."""
        return self._open[1] if self._open else None

    async def engine(self) -> tuple[Engine, Facts]:
        """The engine, once it is there."""
        while self._open is None:
            self._back.clear()
            await self._back.wait()
        return self._open

    def has(self, name: str) -> bool:
        """Whether there is such a container, or is to be."""
        return name in self._held

    def published(self, name: str) -> str:
        """`HOST:PORT` at which a running container is reached; empty: it is not."""
        held = self._held.get(name)
        return held.published if held is not None else ""

    async def start(self, spawn: ContainerSpawn) -> Spawned | SpawnFailed:
        """Start a container, once the engine is there; one that is known is not started again."""
        held = self._held.setdefault(spawn.attempt, Held(spawn.attempt, spawn.home))
        seen = await self._started(Starting(spawn, self._host, self._abilities))
        if isinstance(seen, SpawnFailed):
            del self._held[spawn.attempt]
            return seen
        return self._begun(held, seen)

    async def _started(self, starting: Starting) -> Json | SpawnFailed:
        while True:
            engine, _ = await self.engine()
            with contextlib.suppress(EngineAway):
                return await starting.step(engine)
            await self._sleep(_FIRST_WAIT)

    def _begun(self, held: Held, seen: Json) -> Spawned:
        held.published = states.published(seen)
        held.began = states.seconds(seen["State"]["StartedAt"])
        self._follow(held)
        # It may be over, and its end have been told before it counted as begun.
        self._do(self._look_at(held), f"look at {held.name}")
        return Spawned(
            attempt=held.name,
            pid=int(seen["State"].get("Pid") or 0),
            start_ticks=0,
            started_at=held.began,
            limit_by=states.limit_by(seen),
            image=seen["Config"]["Labels"].get(states.IMAGE, ""),
        )

    def stop(self, name: str, grace: float) -> None:
        """Ask a container to end, and kill it after `grace` seconds."""
        self._stops[name] = grace
        self._wake.set()

    def forget(self, name: str) -> None:
        """Remove a container that is over."""
        self._forgets[name] = None
        self._wake.set()

    async def sample(self) -> Sequence[Sample]:
        """Measure all that run; empty while the engine is away."""
        if self._open is None:
            return []
        engine, room = self._open[0], asyncio.Semaphore(SAMPLES)

        async def measured(name: str) -> list[Sample]:
            async with room:
                with contextlib.suppress(EngineAway, EngineRefused):
                    return [states.sample_of(name, await engine.sample(name))]
            return []

        names = [one.name for one in self._running()]
        found = await asyncio.gather(*(measured(name) for name in names))
        return [one for some in found for one in some]

    def _running(self) -> list[Held]:
        return [one for one in self._held.values() if one.began and not one.over]

    async def absent(self) -> bool:
        """Whether there is none: nothing has answered since our start, and nothing listens."""
        await self.tried.wait()
        if self._open is not None or self._away[0]:
            return False
        return not await asyncio.to_thread(tinyfiles.exists, self._socket)

    # -- the connection -------------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected, until cancelled."""
        wait = _FIRST_WAIT
        while True:
            try:
                async with connected(self._socket) as engine:
                    await self._serve(engine)
            except* (EngineAway, EngineMissing, EngineRefused) as group:
                errors = [str(each) for each in group.exceptions]
                log.warning("engine.away", socket=self._socket, errors=errors)
            if self._open is not None:
                wait, self._away = _FIRST_WAIT, (time.time(), 0.0)
            self._open, self._tasks = None, None
            self._told()
            known = self._expected or self._away[0] or tinyfiles.exists(self._socket)
            await self._sleep(wait if known else _ABSENT_WAIT)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _serve(self, engine: Engine) -> None:
        facts = await engine.facts()
        self._away = (self._away[0], time.time())
        async with (
            contextlib.aclosing(engine.events(self._label, self._heard)) as events,
            asyncio.TaskGroup() as tasks,
        ):
            await anext(events)
            self._tasks = tasks
            tasks.create_task(self._listen(engine, events), name="engine events")
            inventory = await self._inventory(engine)
            self._open = engine, facts
            self._observer.containers(inventory)
            self._told()
            self._back.set()
            self._wake.set()
            tasks.create_task(self._pump(engine, tasks), name="engine requests")
            tasks.create_task(self._look(engine), name="engine inventory")

    def _told(self) -> None:
        self.tried.set()
        self._observer.engine_changed()

    def _do(self, what: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Do something while this connection lasts; the next one finds out by itself."""
        if self._tasks is None:
            what.close()
            return None
        return self._tasks.create_task(what, name=name)

    async def _inventory(self, engine: Engine) -> dict[str, AttemptStatus]:
        """All that there is of ours, and what became of it."""
        found: dict[str, AttemptStatus] = {}
        for short in await engine.list(self._label):
            name = short["Labels"][manifest.ATTEMPT]
            known = self._held.get(name)
            if known is not None and not known.began:
                # Its start is under way here.
                continue
            with contextlib.suppress(EngineRefused):
                status = await self._take_up(engine, name, await engine.inspect(short["Id"]))
                if status is not None:
                    found[name] = status
        for held in self._running():
            held.over = held.name not in found
        return found

    async def _take_up(self, engine: Engine, name: str, seen: Json) -> AttemptStatus | None:
        """A container of this worker or an earlier one; None for one that never ran."""
        home = seen["Config"]["Labels"][manifest.HOME_LABEL]
        if states.never_ran(seen):
            perhaps = tinyfiles.exists(f"{home}/{STARTING}")
            await engine.remove(seen["Id"])
            return states.lost(name, time.time()) if perhaps else None
        held = self._held.setdefault(name, Held(name, home))
        held.published = states.published(seen)
        held.began = states.seconds(seen["State"]["StartedAt"])
        if states.is_over(seen):
            await self._drain(engine, held)
            held.over = True
        else:
            self._follow(held)
        return self._status(held, seen)

    async def _look(self, engine: Engine) -> None:
        """Events say everything; what one did not say to us is found here."""
        while True:
            await self._sleep(LOOK_EVERY)
            running = {
                one["Labels"][manifest.ATTEMPT]
                for one in await engine.list(self._label)
                if one["State"] not in ("exited", "dead")
            }
            for held in self._running():
                if held.name not in running:
                    await self._ended(engine, held)

    # -- ends -----------------------------------------------------------------------------------

    async def _listen(self, engine: Engine, events: AsyncIterator[Json]) -> None:
        async for event in events:
            self._heard = states.moment(event)
            name = event["Actor"]["Attributes"].get(manifest.ATTEMPT, "")
            if event["Action"] == "kill":
                self._killed.add(name)
            held = self._held.get(name)
            if held is not None and event["Action"] in ("die", "destroy"):
                self._do(self._look_at(held), f"end of {name}")

    async def _look_at(self, held: Held) -> None:
        if self._open is not None and held.began and not held.over:
            await self._ended(self._open[0], held)

    async def _ended(self, engine: Engine, held: Held) -> None:
        """Find out whether and how it ended, take in the last that it wrote, and tell."""
        async with held.lock:
            if held.over:
                return
            try:
                seen = await engine.inspect(held.name)
                if not states.is_over(seen):
                    return
                await self._drain(engine, held)
            except EngineRefused:
                held.over = True
                self._observer.lost(held.name)
                return
            held.over = True
        status = self._status(held, seen)
        if status.exit is None:
            self._observer.lost(held.name)
            return
        self._observer.exited(
            Exited(
                attempt=held.name,
                pid=status.pid,
                started_at=status.started_at,
                limit_by=status.limit_by,
                gone=True,
                exit=status.exit,
            )
        )

    def _status(self, held: Held, seen: Json) -> AttemptStatus:
        since, until = self._away
        ended = states.seconds(seen["State"]["FinishedAt"])
        told = states.Told(
            asked=tinyfiles.exists(f"{held.home}/{STOPPED}"),
            killed=held.name in self._killed,
            away=since <= ended <= until,
            lines=tuple(last_lines(f"{held.home}/{FILES['stderr']}")),
        )
        return states.status_of(held.name, seen, told)

    # -- output ---------------------------------------------------------------------------------

    def _follow(self, held: Held) -> None:
        if held.following is None or held.following.done():
            held.following = self._do(self._write(held), f"output of {held.name}")

    async def _write(self, held: Held) -> None:
        """Write down what it says, until it is over."""
        engine, _ = await self.engine()
        while not held.over:
            await self._take(engine, held, follow=True)
            await self._sleep(WRITE_AGAIN)

    async def _drain(self, engine: Engine, held: Held) -> None:
        """Write down the last of one that is over. A full disk is waited for."""
        if held.following is not None:
            held.following.cancel()
            await asyncio.gather(held.following, return_exceptions=True)
        while not await self._take(engine, held, follow=False):
            await self._sleep(WRITE_AGAIN)

    async def _take(self, engine: Engine, held: Held, *, follow: bool) -> bool:
        """Take in what there is, and with `follow` what comes; False for a disk that is full."""
        held.output = held.output or Output(held.home)
        pieces = engine.output(held.name, held.output.cursor.since, follow=follow)
        try:
            async with contextlib.aclosing(pieces):
                await held.output.take(pieces)
        except FileNotFoundError:
            # Its directory is gone: nobody wants it any more.
            return True
        except OSError as error:
            log.warning("output.unwritten", container=held.name, error=str(error))
            return False
        except EngineRefused as error:
            log.warning("output.refused", container=held.name, error=str(error))
        return True

    # -- requests -------------------------------------------------------------------------------

    async def _pump(self, engine: Engine, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for name in self._stops:
                tasks.create_task(self._end(engine, name), name=f"stop {name}")
            for name in list(self._forgets):
                await engine.remove(name)
                self._forgets.pop(name, None)
                self._killed.discard(name)
                self._held.pop(name, None)

    async def _end(self, engine: Engine, name: str) -> None:
        """Carry out a stop. One that has ended by itself keeps its own end."""
        held, grace = self._held.get(name), self._stops.get(name)
        if held is None or grace is None:
            self._stops.pop(name, None)
            return
        async with held.lock:
            if not held.over and name in self._stops:
                await self._signal(engine, held, "SIGTERM" if grace else "SIGKILL")
        self._stops.pop(name, None)
        if grace and not held.over and held.killing is None:
            loop = asyncio.get_running_loop()
            held.killing = loop.call_later(grace, self.stop, name, 0.0)

    async def _signal(self, engine: Engine, held: Held, signal: str) -> None:
        mark = f"{held.home}/{STOPPED}"
        before = tinyfiles.exists(mark)
        with contextlib.suppress(OSError):
            tinyfiles.write(mark, b"")
        try:
            await engine.signal(held.name, signal)
        except EngineRefused as error:
            if error.status != _NOT_RUNNING:
                log.warning("container.signal", container=held.name, error=str(error))
            if not before:
                with contextlib.suppress(OSError):
                    os.unlink(mark)
