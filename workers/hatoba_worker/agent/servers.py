"""Runs releases as model servers: processes of the device's keeper, or containers of its engine for
those with an image. Both outlive the agent.

It is the fleet of a host's worker that keeps them running; its orders come from the conductor
instead of a server. A device has little memory: what ran before is gone before something else
begins.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from hatoba.v1 import common_pb2, deployment_pb2, worker_pb2
from hatoba_worker.agent import disk
from hatoba_worker.agent.conductor import StillRuns
from hatoba_worker.agent.containers import DeviceContainers
from hatoba_worker.agent.engines import DeviceEngine
from hatoba_worker.agent.figures import Serving
from hatoba_worker.agent.names import resource_name, slot_name
from hatoba_worker.agent.pausing import until_heard
from hatoba_worker.agent.ports import Ports
from hatoba_worker.agent.server_logs import Home
from hatoba_worker.agent.slots import NOTHING_RUNS, Health, Json, Release
from hatoba_worker.agent.trees import DeviceTrees
from hatoba_worker.environments import Environments
from hatoba_worker.executors.both import Executors
from hatoba_worker.executors.process import ProcessExecutor
from hatoba_worker.host_secrets import Secrets
from hatoba_worker.keeper.messages import AttemptStatus, Exited, KeeperInfo, Sample
from hatoba_worker.replicas import probe
from hatoba_worker.replicas.fleet import DIRECTORY, Fleet, Pulse
from hatoba_worker.replicas.life import READY, UNHEALTHY, Tools
from hatoba_worker.replicas.staging import GRACE, ReplicaStager, drain_seconds
from hatoba_worker.staging import link_library
from hatoba_worker.transfers import TransferFailed
from hatoba_worker.trees import replicate

log = structlog.get_logger(__name__)

ENDINGS = 2
"""So often a trial may not end."""
READY_WITHIN = 300.0
"""Seconds in which a trial has to be ready once."""
STOP_MOST = 120.0
"""Seconds, beyond what it is given to end by itself, in which what is to end is gone."""
ROOM = 4 << 20
"""Bytes of disk without which nothing that runs is ended for something else: each server has a
directory of its own."""
ADDRESS = "127.0.0.1"
READABLE = 12
"""Characters of a slot's name in its server's, of which there may be 63."""
_GONE = deployment_pb2.REPLICA_STATE_GONE
_HOPELESS = (common_pb2.CAUSE_CODE_CRASH_LOOP, common_pb2.CAUSE_CODE_PREDICTIONS_FAIL)
SpecOf = Callable[[str, Release], Awaitable[worker_pb2.ReplicaSpec]]


class Links:
    """Trees of the device as replicas want them."""

    def __init__(self, trees: DeviceTrees) -> None:
        self._trees = trees

    async def link(self, ref: common_pb2.ManifestRef, target: Path) -> None:
        """Put a tree that is here into `target`. Raises TransferFailed, OSError."""
        if not await asyncio.to_thread(self._trees.has, ref.digest):
            raise TransferFailed(f"{ref.digest} is not on this device")
        await asyncio.to_thread(replicate, self._trees.path(ref.digest), target, os.link)


@dataclass(frozen=True, slots=True)
class _Place:
    """What runs under a name: its release, its replica, since when (monotonic seconds)."""

    release: Release
    spec: worker_pb2.ReplicaSpec
    since: float


@dataclass(frozen=True, slots=True)
class _Leaving:
    """A server that is to end: of which slot, by which order to the fleet, since when (monotonic
    seconds), and how long that may take."""

    slot: str
    server: str
    order: int
    since: float
    most: float

    def is_late(self, now: float) -> bool:
        """Whether it should be gone."""
        return now - self.since >= self.most


class Servers:
    """See `Runtime`; also hears of the keeper."""

    def __init__(
        self,
        data: Path,
        environ: Mapping[str, str],
        trees: DeviceTrees,
        spec_of: SpecOf,
        *,
        name: str,
        engine: DeviceEngine | None = None,
        pulse: Pulse | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.news = asyncio.Event()
        self._data = data
        self._environ = environ
        self._trees = trees
        self._spec_of = spec_of
        self._sleep = sleep
        self._monotonic = monotonic
        self._fleet = Fleet(data, name, self._hear, pulse)
        self._processes = ProcessExecutor(data, self, sleep)
        self._engine = engine or DeviceEngine.of(data, "", environ)
        self._containers = DeviceContainers(self._engine, self._fleet, sleep)
        self._executor = Executors(self._processes, self._containers.executor)
        self._orphans: set[str] = set()
        self._order = self._acted = 0
        """Numbers of the newest order to the fleet, and of the one that it acts by."""
        self._unheeded: float | None = None
        """Since when (monotonic seconds) it did not act by the newest."""
        self._leaving: list[_Leaving] = []
        self._kept: dict[str, worker_pb2.ReplicaSpec] = {}
        """By name of a slot: what the fleet was told last to keep."""
        self._places: dict[str, _Place] = {}
        self._seen: dict[str, deployment_pb2.Replica] = {}
        self._ready_since: dict[str, float] = {}
        self._heard = asyncio.Event()

    async def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Take up what runs, and keep it running with these tasks."""
        await asyncio.to_thread(self._prepare)
        environments = Environments(self._data, self._environ, tasks, embedded=True)
        await asyncio.to_thread(environments.tidy)
        stager = ReplicaStager(
            self._data,
            self._environ,
            Links(self._trees),
            environments,
            Secrets(self._data, self._environ),
            serve_address=ADDRESS,
            serving_tls=lambda: None,
            host_has_gpus=False,
            contained=self._containers.contained,
            port_of=Ports(self._data / "ports.json", ADDRESS).of,
            keeps=True,
        )
        ask = probe.prober(lambda: None)
        self._fleet.begin(Tools(self._executor, stager, ask, self._sleep, time.time), tasks)
        await asyncio.to_thread(self._fleet.load)
        self._tasks = tasks
        if await asyncio.to_thread(self._containers.are_there):
            self._containers.begin(tasks)
        self._kept = {slot_name(spec.deployment): spec for spec in self._fleet.kept.values()}
        self._order = self._fleet.newest
        self._take_up_leaving()
        tasks.create_task(self._processes.run(), name="keeper")
        tasks.create_task(self._fleet.run(), name="replicas")
        tasks.create_task(self._fleet.bound_logs(), name="replicas' logs")

    def _take_up_leaving(self) -> None:
        """What an earlier agent told to end may run on: nothing takes its place meanwhile."""
        leaving = self._fleet.leaving
        if leaving:
            self._tell_fleet()
        for spec in leaving.values():
            self._leave(slot_name(spec.deployment), spec)

    def _prepare(self) -> None:
        library = self._data / "lib"
        for directory in (library, self._data / "venvs"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        link_library(library)
        self._containers.contained.prepare()

    # -- the runtime ----------------------------------------------------------------------------

    async def run(self, name: str, release: Release) -> None:
        """Have this release running under this name, and nothing else; again is the same. Raises
        StillRuns: what ran before does, and this one was not begun. Raises OSError where the disk
        has no room to begin anything: what ran before is not touched.
        """
        spec = await self._spec_of(name, release)
        before = self._kept[name].name if name in self._kept else ""
        spec.name, spec.deployment = own_name(name, release, before), resource_name(name)
        if before != spec.name:
            if before:
                await asyncio.to_thread(self._require_room)
            await self.stop(name)
        if spec.serving.environment.image:
            self._containers.begin(self._tasks)
        self._places[name] = _Place(release, spec, self._monotonic())
        self._kept[name] = spec
        self._tell_fleet()

    def _require_room(self) -> None:
        """Raise OSError where what is ended could not be begun again either."""
        if (free := disk.free_bytes(self._data)) < ROOM:
            raise OSError(errno.ENOSPC, f"{free:,} bytes of disk are left to begin a server with")

    async def stop(self, name: str) -> None:
        """Have nothing running under this name; returns when nothing is. Raises StillRuns where
        that does not come about in its time: it is told to end, and this may be asked again.
        """
        self._places.pop(name, None)
        spec = self._kept.pop(name, None)
        if spec is not None:
            self._tell_fleet()
            self._leave(name, spec)
        await self._until_gone(name)

    def _leave(self, name: str, spec: worker_pb2.ReplicaSpec) -> None:
        """By the newest order this server is not kept any more."""
        most = drain_seconds(spec) + GRACE + STOP_MOST
        self._leaving.append(_Leaving(name, spec.name, self._order, self._monotonic(), most))

    async def _until_gone(self, name: str) -> None:
        began = self._monotonic()
        while leaving := [one for one in self._leaving if one.slot == name]:
            left = began + leaving[0].most - self._monotonic()
            if left <= 0:
                raise StillRuns(_does_not_end(name))
            self._heard.clear()
            await until_heard(self._heard, left, self._sleep)

    async def keep_only(self, names: set[str]) -> None:
        """End what belongs to none of these slots: a journal that was lost knows nothing of it."""
        for name in set(self._kept) - names:
            log.warning("agent.unknown_server", slot=name)
            try:
                await self.stop(name)
            except StillRuns as error:
                log.error("agent.still_runs", slot=name, error=str(error))

    def _tell_fleet(self) -> None:
        self._order += 1
        if self._unheeded is None:
            self._unheeded = self._monotonic()
        order = worker_pb2.ReplicaOrder(order=self._order, replicas=self._kept.values())
        self._fleet.ordered(order)

    def health(self, name: str) -> Health:
        """How what runs under a name is."""
        place = self._places.get(name)
        if place is None:
            return NOTHING_RUNS
        seen, now = self._seen.get(place.spec.name), self._monotonic()
        if seen is not None and seen.state == READY:
            return Health(place.release, now - self._ready_since[seen.name])
        if seen is not None and _is_hopeless(seen):
            return Health(place.release, 0.0, cause_json(seen.cause))
        if now - place.since > READY_WITHIN:
            return Health(place.release, 0.0, _not_ready(seen))
        return Health(place.release)

    def problems(self) -> list[str]:
        """What does not come about, in words; each once, as long as it lasts."""
        now = self._monotonic()
        late = sorted({one.slot for one in self._leaving if one.is_late(now)})
        if self._unheeded is not None and now - self._unheeded >= STOP_MOST:
            return [_NOT_HEEDED]
        return [_does_not_end(name) for name in late]

    def address(self, name: str) -> str:
        """`HOST:PORT` at which a deployment answers now; empty while it does not."""
        place = self._places.get(name)
        seen = self._seen.get(place.spec.name) if place is not None else None
        return seen.address if seen is not None and seen.state == READY else ""

    def may_contain(self) -> bool:
        """Whether releases with an image can run here; blocks."""
        return not self._engine.lacks()

    def homes(self) -> list[Home]:
        """Where what runs writes its logs."""
        root = self._data / DIRECTORY
        return [Home(spec.deployment, root / spec.name) for spec in self._kept.values()]

    def serving(self) -> list[Serving]:
        """What runs, for its figures."""
        kept = [(spec, self._seen.get(spec.name)) for spec in self._kept.values()]
        return [
            Serving(
                spec.deployment,
                spec.name,
                seen.address if seen.state == READY else "",
                seen.restarts,
            )
            for spec, seen in kept
            if seen is not None
        ]

    async def samples(self) -> Sequence[Sample]:
        """What processes and containers of servers use now; empty while who knows is away."""
        return await self._executor.sample()

    # -- the fleet ------------------------------------------------------------------------------

    def _hear(self, item: worker_pb2.WorkerItem) -> None:
        report = item.replicas
        for one in report.replicas:
            self._note(one)
        if report.complete:
            there = {one.name for one in report.replicas}
            for name in set(self._seen) - there:
                self._lose(name)
            self._note_order(report.order)
        self._leaving = [one for one in self._leaving if not self._is_gone(one)]
        self._heard.set()
        self.news.set()

    def _note_order(self, order: int) -> None:
        self._acted = max(self._acted, order)
        if self._acted >= self._order:
            self._unheeded = None

    def _is_gone(self, one: _Leaving) -> bool:
        # Before the fleet acts by the order it may begin it yet.
        return self._acted >= one.order and one.server not in self._seen

    def _note(self, one: deployment_pb2.Replica) -> None:
        if one.state == _GONE:
            self._lose(one.name)
            return
        self._seen[one.name] = one
        if one.state == READY:
            self._ready_since.setdefault(one.name, self._monotonic())
        else:
            self._ready_since.pop(one.name, None)

    def _lose(self, name: str) -> None:
        self._seen.pop(name, None)
        self._ready_since.pop(name, None)

    # -- the keeper -----------------------------------------------------------------------------

    def inventory(self, info: KeeperInfo, held: dict[str, AttemptStatus]) -> None:
        """The keeper is there: everything is taken up from where it stands."""
        ours = self._fleet.take_up(held)
        self._orphans = held.keys() - ours
        for name in list(self._orphans):
            if held[name].gone:
                self.gone(name)
            else:
                self._processes.stop(name, 0.0)

    def exited(self, event: Exited) -> None:
        """A process ended."""
        if not self._fleet.exited(event) and event.gone:
            self.gone(event.attempt)

    def gone(self, name: str) -> None:
        """Nothing of a process is left."""
        if name in self._orphans:
            self._orphans.discard(name)
            self._processes.forget(name)
        else:
            self._fleet.gone(name)


def own_name(name: str, release: Release, before: str) -> str:
    """What a release's server is called: `before`, as one is that is kept, if that is of this
    release; else as none was before. Of one that was ended the keeper starts nothing any more.
    """
    mark = f"{replica_name(name, release)}-"
    return before if before.startswith(mark) else f"{mark}{uuid.uuid4().hex[:6]}"


def replica_name(name: str, release: Release) -> str:
    """What names of a release's servers begin with: the same after any restart, and no other
    release's."""
    readable = re.sub(r"[^a-z0-9-]", "-", name[:READABLE])
    slot = hashlib.sha256(name.encode()).hexdigest()[:8]
    digest = release.digest.rpartition(":")[2][:10]
    return f"{readable}-{slot}-{release.revision}-{release.tries}-{digest}"


def cause_json(cause: common_pb2.Cause) -> Json:
    """A cause as the journal keeps it."""
    code = common_pb2.CauseCode.Name(cause.code).removeprefix("CAUSE_CODE_")
    return {
        "code": code,
        "message": cause.message,
        "passing": cause.retryable,
        "lines": list(cause.last_log_lines),
    }


_NOT_HEEDED = (
    "the keeper of its models does not answer, or the disk takes nothing: none begins or ends"
)


def _does_not_end(name: str) -> str:
    return (
        f"the server of {resource_name(name)} does not end: its keeper, or the container engine, "
        "does not answer; nothing takes its place before it is gone"
    )


def _is_hopeless(seen: deployment_pb2.Replica) -> bool:
    ended_often = seen.restarts >= ENDINGS
    return seen.state == UNHEALTHY and (ended_often or seen.cause.code in _HOPELESS)


def _not_ready(seen: deployment_pb2.Replica | None) -> Json:
    why = f": {seen.cause.message}" if seen is not None and seen.cause.message else ""
    text = f"It was not ready within {READY_WITHIN:g} s{why}"
    return {"code": "NOT_READY", "message": text, "passing": False, "lines": []}
