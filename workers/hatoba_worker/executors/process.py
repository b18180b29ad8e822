"""Processes of this host, by the keeper."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from hatoba_worker.attaching.doors import AttachFailed
from hatoba_worker.executors import Observer
from hatoba_worker.keeper.client import KeeperClient, KeeperGone, KeeperRefused
from hatoba_worker.keeper.ensure import KeeperStartError, ensure_keeper
from hatoba_worker.keeper.messages import (
    Exited,
    Gone,
    Join,
    Joined,
    JoinedEnded,
    Sample,
    Spawn,
    Spawned,
    SpawnFailed,
)

log = structlog.get_logger(__name__)

# While the keeper starts one lot, the answers to another are dealt with here.
SPAWNERS = 2
A_REQUEST = 8
_OLD_KEEPER = "the keeper of its host is of an older version: it is renewed once it has no job"
_FIRST_WAIT = 0.05
_LONGEST_WAIT = 2.0


class ProcessExecutor:
    """The one connection to the keeper, made again whenever it breaks.

    What was not answered is asked again on the next connection; the keeper tells doubles apart.
    Requests that come while others are on their way go together in the next.
    """

    def __init__(
        self, data: Path, observer: Observer, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._data = data
        self._observer = observer
        self._sleep = sleep
        self._client: KeeperClient | None = None
        self._wake = asyncio.Event()
        self._spawns: dict[str, tuple[Spawn, asyncio.Future[Spawned | SpawnFailed]]] = {}
        self._unsent: deque[str] = deque()
        self._more = asyncio.Event()
        self._stops: dict[str, float] = {}
        self._forgets: dict[str, None] = {}
        self._joined: dict[str, asyncio.Future[JoinedEnded]] = {}

    async def run(self) -> None:
        """Stay connected, starting a keeper when none serves, until cancelled."""
        delay = _FIRST_WAIT
        while True:
            try:
                await asyncio.to_thread(ensure_keeper, self._data)
                await self._serve()
            except* (KeeperGone, KeeperStartError, OSError) as group:
                log.warning("keeper.away", errors=[str(each) for each in group.exceptions])
            delay = _FIRST_WAIT if self._client else min(delay * 2, _LONGEST_WAIT)
            self._client = None
            self._joined_lost()
            await self._sleep(delay)

    async def _serve(self) -> None:
        async with await KeeperClient.connect(self._data) as client:
            info = await client.hello()
            await client.watch()
            inventory = await client.list()
            held = {status.attempt: status for status in inventory.attempts}
            self._observer.inventory(info, held)
            self._client = client
            self._unsent = deque(self._spawns)
            self._wake.set()
            self._more.set()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(client), name="keeper requests")
                for number in range(SPAWNERS):
                    tasks.create_task(self._spawn(client), name=f"keeper spawns {number}")
                await self._listen(client)

    async def _listen(self, client: KeeperClient) -> None:
        async for event in client.events():
            match event:
                case Exited():
                    self._observer.exited(event)
                case Gone():
                    self._observer.gone(event.attempt)
                case JoinedEnded():
                    self._joined_ended(event)
                case _:
                    log.warning("keeper.stray", pid=event.pid, command=event.command)

    async def start(self, spawn: Spawn) -> Spawned | SpawnFailed:
        """Start an attempt; one that is known is not started again."""
        future: asyncio.Future[Spawned | SpawnFailed]
        future = asyncio.get_running_loop().create_future()
        self._spawns[spawn.attempt] = (spawn, future)
        self._unsent.append(spawn.attempt)
        self._more.set()
        return await future

    async def join(self, join: Join) -> tuple[Joined, asyncio.Future[JoinedEnded]]:
        """Start a process beside an attempt's; the future tells its end. Raises AttachFailed."""
        ended: asyncio.Future[JoinedEnded] = asyncio.get_running_loop().create_future()
        if self._client is None:
            raise AttachFailed("the keeper of its host is away; try again soon")
        self._joined[join.name] = ended
        try:
            return await self._client.join(join), ended
        except (KeeperGone, KeeperRefused) as error:
            del self._joined[join.name]
            old = isinstance(error, KeeperRefused) and error.code == "bad_request"
            raise AttachFailed(_OLD_KEEPER if old else str(error)) from error

    def _joined_ended(self, event: JoinedEnded) -> None:
        ended = self._joined.pop(event.join, None)
        if ended is not None and not ended.done():
            ended.set_result(event)

    def _joined_lost(self) -> None:
        """Their keeper is gone, and the next one ends what it left."""
        for name in list(self._joined):
            self._joined_ended(JoinedEnded(name, 0, signal.SIGKILL))

    def stop(self, name: str, grace: float) -> None:
        """Ask an attempt to end, and kill what is left after `grace` seconds."""
        self._stops[name] = grace
        self._wake.set()

    def forget(self, name: str) -> None:
        """Drop what is kept of an attempt that is gone."""
        self._forgets[name] = None
        self._wake.set()

    def published(self, name: str) -> str:
        """Never anything: a process says itself where it listens."""
        del name
        return ""

    async def sample(self) -> Sequence[Sample]:
        """Measure all that run; empty while the keeper cannot be reached."""
        if self._client is None:
            return []
        try:
            return await self._client.sample()
        except (KeeperGone, KeeperRefused):
            return []

    async def _pump(self, client: KeeperClient) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._stops:
                await self._send_stops(client)
            if self._forgets:
                await self._send_forgets(client)

    async def _spawn(self, client: KeeperClient) -> None:
        while True:
            while not self._unsent:
                self._more.clear()
                await self._more.wait()
            count = min(len(self._unsent), A_REQUEST)
            names = [self._unsent.popleft() for _ in range(count)]
            wanted = [self._spawns[name] for name in names]
            replies = await client.spawn_many([spawn for spawn, _ in wanted])
            for (spawn, future), reply in zip(wanted, replies, strict=True):
                del self._spawns[spawn.attempt]
                if not future.done():
                    future.set_result(reply)

    async def _send_stops(self, client: KeeperClient) -> None:
        for name, grace in list(self._stops.items()):
            await client.stop(name, grace)
            self._stops.pop(name, None)

    async def _send_forgets(self, client: KeeperClient) -> None:
        names = list(self._forgets)
        try:
            await client.forget_many(names)
        except KeeperRefused as error:
            log.warning("keeper.forget", error=str(error))
        for name in names:
            self._forgets.pop(name, None)
