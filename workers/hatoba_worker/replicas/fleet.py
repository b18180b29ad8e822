"""All replicas of this host: the order that it keeps to, and what the server is told of them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from hatoba.v1 import deployment_pb2, worker_pb2
from hatoba_worker import punch, tinyfiles
from hatoba_worker.keeper.messages import AttemptStatus, Exited
from hatoba_worker.logs import FILES
from hatoba_worker.replicas.life import (
    FIRST_BACKOFF,
    LONGEST_BACKOFF,
    UNHEALTHY,
    Replica,
    Run,
    Tools,
)
from hatoba_worker.replicas.records import Ordered

log = structlog.get_logger(__name__)

DIRECTORY = "replicas"
LOG_LIMIT = 64 << 20
"""Bytes that are kept of each log of a replica."""
LOOK_AT_LOGS = 10.0
SAVE_AGAIN = 1.0
MOST_TAIL = 1 << 20
A_REPORT = 50
"""Replicas in one report with their last lines."""
_A_LINE = 256
"""A line is looked for in so many bytes, at first."""

T = TypeVar("T")
Send = Callable[[worker_pb2.WorkerItem], None]


class Pulse(Protocol):
    """Hears that a loop goes on."""

    def __call__(self) -> None:
        """It goes on."""

    def rest(self) -> None:
        """It waits for something that may never come."""


class Unheard:
    """Nobody hears it."""

    def __call__(self) -> None:
        """See Pulse."""

    def rest(self) -> None:
        """See Pulse."""


class Fleet:
    """Keeps to the newest order, whatever happens to server and worker."""

    def __init__(self, data: Path, host: str, send: Send, pulse: Pulse | None = None) -> None:
        self._root = data / DIRECTORY
        self._file = data / "replicas.json"
        self._host = host
        self._send = send
        self._pulse = pulse or Unheard()
        self._ordered = Ordered()
        self._newer: list[worker_pb2.ReplicaOrder] = []
        self._newest = 0
        """Number of the newest order that came, acted by or not."""
        self._news = asyncio.Event()
        self._inventoried = asyncio.Event()
        self._changing = asyncio.Lock()
        self._replicas: dict[str, Replica] = {}
        self._started: set[str] = set()
        self._changed: dict[str, Replica] = {}

    def begin(self, tools: Tools, tasks: asyncio.TaskGroup) -> None:
        """Take what replicas need; before anything else."""
        self._tools = replace(tools, tell=self._tell)
        self._tasks = tasks

    def load(self) -> None:
        """Read the order of an earlier worker, and clear away what belongs to none; blocks."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ordered = Ordered.load(self._file)
        self._newest = self._ordered.number
        for name, spec in {**self._ordered.leaving, **self._ordered.kept}.items():
            self._replicas[name] = self._new(spec)
            self._replicas[name].recover()
        for path in self._root.iterdir():
            if path.name not in self._replicas:
                shutil.rmtree(path, ignore_errors=True)

    @property
    def kept(self) -> Mapping[str, worker_pb2.ReplicaSpec]:
        """What the order that is acted by keeps, by name."""
        return self._ordered.kept

    @property
    def leaving(self) -> Mapping[str, worker_pb2.ReplicaSpec]:
        """What it ends, and is not gone yet, by name."""
        return self._ordered.leaving

    @property
    def has_containers(self) -> bool:
        """Whether any of its replicas is a container."""
        return any(one.contained for one in self._replicas.values())

    @property
    def newest(self) -> int:
        """Number of the newest order that came; the next one has to have a higher one."""
        return self._newest

    async def run(self) -> None:
        """Take in orders until cancelled."""
        await self._inventoried.wait()
        while True:
            self._pulse.rest()
            await self._news.wait()
            self._pulse()
            self._news.clear()
            orders, self._newer = self._newer, []
            if orders:
                await self._change(partial(_following, orders))
            self._act()
            if orders:
                self.tell_all()

    async def _change(self, change: Callable[[Ordered], Ordered]) -> None:
        """Put on disk what is acted by from now on. A full disk is waited for."""
        async with self._changing:
            wanted = change(self._ordered)
            while not await self._saved(wanted):
                self._pulse()
                await self._tools.sleep(SAVE_AGAIN)
            self._ordered = wanted

    async def _saved(self, wanted: Ordered) -> bool:
        try:
            await asyncio.to_thread(wanted.save, self._file)
        except OSError as error:
            log.error("replicas.unsaved", error=str(error))
            return False
        return True

    def _act(self) -> None:
        for name in self._ordered.leaving:
            if name in self._replicas:
                self._replicas[name].let_go()
        for name, spec in self._ordered.kept.items():
            if name not in self._replicas:
                self._replicas[name] = self._new(spec)
                self._start(self._replicas[name])

    def _new(self, spec: worker_pb2.ReplicaSpec) -> Replica:
        return Replica(spec, str(self._root / spec.name), self._tools)

    def _start(self, one: Replica) -> None:
        self._started.add(one.name)
        self._tasks.create_task(self._live(one), name=f"replica {one.name}")

    async def _live(self, one: Replica) -> None:
        """One replica's life; a fault of ours ends neither it nor the worker."""
        wait = FIRST_BACKOFF
        while True:
            try:
                await one.live()
                break
            except Exception as error:
                log.exception("replica.fault", replica=one.name)
                one.fault(repr(error))
            await self._tools.sleep(wait)
            wait = min(2 * wait, LONGEST_BACKOFF)
        del self._replicas[one.name]
        self._started.discard(one.name)
        await self._change(lambda now: now.without(one.name))
        self._news.set()

    # -- the keeper -----------------------------------------------------------------------------

    def take_up(self, held: Mapping[str, AttemptStatus], *, contained: bool = False) -> set[str]:
        """Go on from what the keeper, or the engine, has; returns the names of processes, or
        containers, that are ours."""
        mine = [one for one in self._replicas.values() if one.contained is contained]
        for one in mine:
            # One that was ordered before the engine was first heard of goes its way already.
            first = one.name not in self._started
            if first:
                one.adopt(held.get(f"{one.name}.{one.standing.run}"))
                if contained:
                    # The engine may come later than whoever was told how all are.
                    self._tell(one)
            elif one.run is not None and one.run.begun:
                _renew(one.run, held.get(one.run.place.process))
            if one.name in self._ordered.leaving:
                one.let_go()
            if first:
                self._start(one)
        if not contained:
            self._inventoried.set()
        self._news.set()
        return {one.run.place.process for one in mine if one.run is not None}

    def exited(self, event: Exited) -> bool:
        """The main process of a replica ended; False when it is none of ours."""
        run = self._run_of(event.attempt)
        if run is None:
            return False
        run.exit = event.exit
        run.ended.set()
        if event.gone:
            run.gone.set()
        return True

    def gone(self, process: str) -> bool:
        """Nothing of a process is left; False when it is none of ours."""
        run = self._run_of(process)
        if run is None:
            return False
        run.lose()
        return True

    def _run_of(self, process: str) -> Run | None:
        one = self._replicas.get(process.rpartition(".")[0])
        run = one.run if one is not None else None
        return run if run is not None and run.place.process == process else None

    # -- the server -----------------------------------------------------------------------------

    def ordered(self, order: worker_pb2.ReplicaOrder) -> None:
        """The server says which replicas there shall be; an order older than ours is dropped."""
        if order.order > self._newest:
            self._newest = order.order
            self._newer.append(order)
            self._news.set()

    def report(self) -> list[worker_pb2.WorkerItem]:
        """How all replicas are, for a server that begins: what it orders is newer than all that
        came, also of an earlier one.
        """
        return self._report(self._newest)

    def _report(self, order: int) -> list[worker_pb2.WorkerItem]:
        """All at once, and then the last lines of those in trouble."""
        replicas = [one.message(self._host) for one in self._replicas.values()]
        long = [one for one in replicas if one.cause.last_log_lines]
        short = [_without_lines(one) for one in replicas]
        items = [worker_pb2.ReplicaReport(order=order, complete=True, replicas=short)]
        items += [worker_pb2.ReplicaReport(order=order, replicas=part) for part in _parts(long)]
        return [worker_pb2.WorkerItem(replicas=item) for item in items]

    def tell_all(self) -> None:
        """Say how all replicas are."""
        for item in self._report(self._ordered.number):
            self._send(item)

    def _tell(self, one: Replica) -> None:
        """A replica changed: told with all others that change in this turn of the loop."""
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._tell_changed)
        self._changed[one.name] = one

    def _tell_changed(self) -> None:
        changed, self._changed = self._changed, {}
        messages = [one.message(self._host) for one in changed.values()]
        for one in changed.values():
            state = deployment_pb2.ReplicaState.Name(one.state)
            log.info("replica", replica=one.name, state=state, why=_words(one))
        for part in _parts(messages):
            told = worker_pb2.ReplicaReport(order=self._ordered.number, replicas=part)
            self._send(worker_pb2.WorkerItem(replicas=told))

    def tail(self, asked: worker_pb2.TailReplica) -> None:
        """The server wants to see the last lines of a log."""
        self._tasks.create_task(self._tail(asked), name=f"tail {asked.replica}")

    async def _tail(self, asked: worker_pb2.TailReplica) -> None:
        answer = worker_pb2.ReplicaTail(request=asked.request)
        one = self._replicas.get(asked.replica)
        name = FILES.get(asked.stream)
        if one is not None and name is not None:
            path = f"{one.home}/{name}"
            answer.offset, answer.data = await asyncio.to_thread(last_bytes, path, asked.lines)
        self._send(worker_pb2.WorkerItem(tail=answer))

    # -- logs -----------------------------------------------------------------------------------

    async def bound_logs(self) -> None:
        """Keep the logs of replicas below their limit, until cancelled."""
        while True:
            await self._tools.sleep(LOOK_AT_LOGS)
            for one in list(self._replicas.values()):
                for name in ("stdout", "stderr"):
                    await asyncio.to_thread(_bound, f"{one.home}/{FILES[name]}", LOG_LIMIT)


def _following(orders: Sequence[worker_pb2.ReplicaOrder], now: Ordered) -> Ordered:
    """Orders that came together: what an earlier one brought a later one only names."""
    for order in orders:
        now = now.following(order)
    return now


def _parts(replicas: Sequence[T]) -> list[Sequence[T]]:
    return [replicas[at : at + A_REPORT] for at in range(0, len(replicas), A_REPORT)]


def _without_lines(replica: deployment_pb2.Replica) -> deployment_pb2.Replica:
    if not replica.cause.last_log_lines:
        return replica
    short = deployment_pb2.Replica()
    short.CopyFrom(replica)
    del short.cause.last_log_lines[:]
    return short


def _renew(run: Run, status: AttemptStatus | None) -> None:
    if status is not None:
        run.apply(status)
    else:
        run.lose()


def _words(one: Replica) -> str:
    return one.cause.message if one.cause is not None and one.state == UNHEALTHY else ""


def _bound(path: str, limit: int) -> None:
    """Give the oldest part of a log back to the disk, or where that cannot be done all of it."""
    size = tinyfiles.size(path)
    below = size - limit
    below -= below % punch.BLOCK
    if below > 0 and not punch.out(path, below):
        with open(path, "r+b") as file:
            file.truncate(0)


def last_bytes(path: str, lines: int) -> tuple[int, bytes]:
    """The last lines of a file, at most 1 MiB, with their offset; blocks."""
    size = tinyfiles.size(path)
    length = min(size, MOST_TAIL, lines * _A_LINE)
    while length:
        try:
            data = tinyfiles.read_piece(path, size - length, length)
        except OSError:
            break
        found = data.splitlines(keepends=True)
        if len(found) > lines or length in (size, MOST_TAIL):
            kept = b"".join(found[-lines:]) if lines else b""
            kept = kept.lstrip(b"\0")
            return size - len(kept), kept
        length = min(size, MOST_TAIL, 4 * length)
    return size, b""
