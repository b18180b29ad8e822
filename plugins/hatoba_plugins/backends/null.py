"""A backend that does nothing, instantly. For benchmarks and trials.

What is launched has ended, and what is deployed is ready.

Its objects live in this process. Handles say all there is to know of an attempt, so one that an
earlier process launched is still answered for.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import (
    API_VERSION,
    Backend,
    BackendContext,
    BackendType,
    Clock,
)
from hatoba_plugins.checks import lacking, out_of_range, own_options, require_kind
from hatoba_plugins.errors import Conflict, Fatal, Stale, Unsupported
from hatoba_plugins.feed import Feed
from hatoba_plugins.rolling import Creation, plan
from hatoba_plugins.spec import hookimpl
from hatoba_plugins.values import (
    Absent,
    BackendOptions,
    Capabilities,
    CapacitySnapshot,
    DeploymentItem,
    Exit,
    ExitKind,
    FindOutcome,
    Found,
    Handle,
    Health,
    HealthStatus,
    Launched,
    LaunchGroup,
    LaunchOutcome,
    LaunchRequest,
    LogChunk,
    NotYet,
    Observation,
    Owned,
    OwnedDeployment,
    Phase,
    Pool,
    Problem,
    Ref,
    Refused,
    Released,
    ReleaseOutcome,
    ReplicaPhase,
    ReplicaSet,
    ReplicaView,
    Share,
    StopResult,
    Target,
    WatchItem,
)

KEY = "null"
"""A specification's `backend_options.null` may give its own `delay` and `exit_code`."""

HANDLE_VERSION = 1
_encode = json.JSONEncoder(check_circular=False).encode
POOL = "null"
_MARKS = 100_000
"""Names of released and of stopped attempts that are remembered, to refuse a late launch."""

_ENDED = 10_000
"""Ended attempts that are kept when nobody asks to release them: they hold nothing."""

_FITS_ALL = Share(cpus=2.0**40, memory=2**60, gpus=0, slots=0)
"""Nothing is used, so any number of cores and bytes fits."""


@dataclass(frozen=True)
class NullOptions(BackendOptions):
    """`slots`: how many at once. Each attempt ends with `exit_code` after `delay` seconds."""

    slots: int = 10_000
    exit_code: int = 0
    delay: float = 0.0

    @classmethod
    def check(cls, options: dict[str, object]) -> list[Problem]:
        """Problems of these options."""
        return [*super().check(options), *cls.in_bounds(options)]

    @staticmethod
    def in_bounds(options: dict[str, object]) -> list[Problem]:
        """Problems of those that are numbers."""
        return [
            *out_of_range(options, "slots", 1, 1_000_000),
            *out_of_range(options, "exit_code", 0, 255),
            *out_of_range(options, "delay", 0.0, 86_400.0),
        ]


class _Identity(NamedTuple):
    """Whose attempt it is."""

    cluster_id: str
    job_uid: str
    task: int
    number: int


class _Object(NamedTuple):
    """An attempt: whose it is, when it ends, how. `ends_at` 0: it has ended."""

    name: str
    identity: _Identity
    ends_at: float
    exit: Exit
    handle: Handle

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.ends_at == 0.0

    @property
    def phase(self) -> Phase:
        """How far it is."""
        return Phase.ENDED if self.ended else Phase.RUNNING

    def owned(self) -> Owned:
        """What is listed of it."""
        return Owned(self.name, *self.identity, self.handle, self.ended, POOL)

    def observation(self) -> Observation:
        """What is seen of it."""
        return Observation(self.name, self.phase, not self.ended, self.exit if self.ended else None)


@dataclass
class _Kept:
    """A deployment: what it shall be, and its replicas, all of them ready."""

    cluster_id: str
    target: Target
    replicas: dict[str, ReplicaView] = field(default_factory=dict)

    def converge(self, rng: random.Random, now: float) -> None:
        """Make and end replicas until nothing is left to do but to retire some."""
        while created := plan(self.target, self.replicas.values(), rng).create:
            self.replicas |= {one.name: _ready(one, now) for one in created}

    def seen(self, rng: random.Random) -> ReplicaSet:
        """How it is now."""
        replicas = tuple(self.replicas.values())
        leaving = plan(self.target, replicas, rng).leaving
        return ReplicaSet(self.target.uid, self.target.generation, replicas, leaving)


@dataclass
class NullWorld:
    """Where the objects of an instance are; it outlives closing and opening the backend."""

    objects: dict[str, _Object] = field(default_factory=dict)
    ended: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Names of those objects that have ended, the oldest end first."""
    marks: OrderedDict[str, str] = field(default_factory=OrderedDict)
    kept: dict[str, _Kept] = field(default_factory=dict)
    """Deployments by uid."""

    def keep_ended(self, name: str) -> None:
        """Of those that ended so many are kept; of older ones only that their name is used up."""
        self.ended[name] = None
        if len(self.ended) > _ENDED:
            self.drop(next(iter(self.ended)), "over")

    def drop(self, name: str, why: str) -> None:
        """Forget an object; that its name is used up is remembered."""
        self.ended.pop(name, None)
        self.objects.pop(name, None)
        self.mark(name, why)

    def mark(self, name: str, why: str) -> None:
        """Remember that a name is used up; the oldest marks are forgotten."""
        self.marks[name] = why
        if len(self.marks) > _MARKS:
            self.marks.popitem(last=False)

    def recall(self, ref: Ref, now: float) -> _Object | None:
        """The object of a reference; one of an earlier process is made anew from its handle."""
        known = self.objects.get(ref.name)
        if known or ref.handle is None:
            return known
        recalled = _from_handle(ref.name, ref.handle, now)
        if ref.name not in self.marks:
            self.objects[ref.name] = recalled
            if recalled.ended:
                self.keep_ended(ref.name)
        return recalled


class NullJobs:
    """Its job role."""

    def __init__(
        self,
        options: NullOptions,
        world: NullWorld,
        ctx: BackendContext,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._options = options
        self._world = world
        self._clock = ctx.clock
        self._cluster_id = ctx.cluster_id
        self._feed: Feed[WatchItem] = Feed(limit=max(10_000, 2 * options.slots))
        self._tasks = tasks
        self._lives: set[asyncio.Task[None]] = set()
        for known in world.objects.values():
            self._begin(known)

    async def launch(self, group: LaunchGroup) -> list[LaunchOutcome]:
        """Each member exists at once, and has ended unless there is a delay."""
        require_kind(group, CAPABILITIES)
        ended: list[Observation] = []
        outcomes = [self._launch(member, ended) for member in group.members]
        self._feed.publish(ended)
        return outcomes

    def _launch(self, request: LaunchRequest, ended: list[Observation]) -> LaunchOutcome:
        name = request.name
        identity = _Identity(self._cluster_id, request.job_uid, request.index, request.number)
        known = self._world.objects.get(name)
        if known is None:
            if name in self._world.marks:
                return Refused(name, Fatal(f"{name} was {self._world.marks[name]}"))
            known = self._create(request, identity)
            if known.ended:
                ended.append(known.observation())
                return Launched(name, known.handle, known.phase, ended[-1])
        elif known.identity != identity:
            evidence = f"it belongs to {known.identity}"
            return Refused(name, Conflict(f"{name} exists", evidence=evidence))
        return Launched(name, known.handle, known.phase)

    def _create(self, request: LaunchRequest, identity: _Identity) -> _Object:
        delay, code = self._options.delay, self._options.exit_code
        if KEY in request.spec.backend_options.fields:
            given = request.spec.backend_options.fields[KEY].struct_value.fields
            delay = given["delay"].number_value if "delay" in given else delay
            code = int(given["exit_code"].number_value) if "exit_code" in given else code
        end = Exit(ExitKind.EXITED, code)
        ends_at = self._clock.time() + delay if delay else 0.0
        handle = _to_handle(identity, ends_at, end)
        created = _Object(request.name, identity, ends_at, end, handle)
        self._world.objects[request.name] = created
        if created.ended:
            self._world.keep_ended(created.name)
        self._begin(created)
        return created

    def _begin(self, known: _Object) -> None:
        if not known.ended:
            life = self._tasks.create_task(self._end_later(known), name=f"null-{known.name}")
            self._lives.add(life)
            life.add_done_callback(self._lives.discard)

    def close(self) -> None:
        """Wait for no delay any more."""
        self._feed.end()
        for life in self._lives:
            life.cancel()

    async def observe(self, refs: Sequence[Ref]) -> list[Observation]:
        """How they are now."""
        return [self._observe(ref) for ref in refs]

    def recall(self, ref: Ref) -> _Object | None:
        """What there is of a reference; what an earlier process launched goes on to its end."""
        new = ref.name not in self._world.objects
        known = self._world.recall(ref, self._clock.time())
        if new and known is not None and ref.name in self._world.objects:
            self._begin(known)
        return known

    def _observe(self, ref: Ref) -> Observation:
        known = self.recall(ref)
        if known is None:
            return Observation(ref.name, Phase.GONE, exists=False)
        seen = known.observation()
        if ref.name in self._world.objects:
            return seen
        return Observation(seen.name, seen.phase, False, seen.exit)

    def watch(self) -> AsyncIterator[WatchItem]:
        """Room, everything not released, Synced, then every end."""
        return self._feed.watch(self._now)

    def _now(self) -> Iterable[WatchItem]:
        pool = Pool(POOL, _FITS_ALL._replace(slots=self._options.slots), embedded=True)
        yield CapacitySnapshot((pool,), elastic=True, as_of=self._clock.time())
        for known in self._world.objects.values():
            yield known.observation()

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        """What still waits for its delay ends now; nothing needs the grace."""
        return [self._stop(ref) for ref in refs]

    def _stop(self, ref: Ref) -> StopResult:
        known = self.recall(ref)
        if known is None:
            self._world.mark(ref.name, "stopped before it was launched")
            return StopResult(ref.name, known=False)
        if not known.ended:
            self._end(known._replace(exit=Exit(ExitKind.STOPPED)))
        return StopResult(ref.name, known=True)

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        """Forget what ended; only that its name is used up is remembered."""
        return [self._release(ref) for ref in refs]

    def _release(self, ref: Ref) -> ReleaseOutcome:
        known = self.recall(ref)
        if known and not known.ended:
            return NotYet(ref.name, after=max(0.0, known.ends_at - self._clock.time()))
        if known:
            self._world.drop(ref.name, "released")
        return Released(ref.name)

    def _end(self, known: _Object) -> None:
        ended = known._replace(ends_at=0.0)
        self._world.objects[known.name] = ended
        self._world.keep_ended(known.name)
        self._feed.publish([ended.observation()])

    async def _end_later(self, known: _Object) -> None:
        await self._clock.sleep(known.ends_at - self._clock.time())
        if self._world.objects.get(known.name) is known:
            self._end(known)


class NullDeployments:
    """Its deployment role: replicas are ready at once, at addresses where nothing answers."""

    def __init__(self, world: NullWorld, ctx: BackendContext) -> None:
        self._world = world
        self._clock = ctx.clock
        self._cluster_id = ctx.cluster_id
        self._rng = ctx.rng
        self._feed: Feed[DeploymentItem] = Feed()

    async def apply(self, target: Target) -> Handle:
        """All that may be started is ready when it returns."""
        known = self._world.kept.get(target.uid)
        if target.uid in self._world.marks:
            raise Stale(f"deployment {target.uid} was {self._world.marks[target.uid]}")
        if known and target.generation < known.target.generation:
            raise Stale(f"generation {known.target.generation} of {target.uid} was taken in before")
        kept = self._world.kept.setdefault(target.uid, _Kept(self._cluster_id, target))
        kept.target = target
        self._converge(kept)
        return _deployment_handle(target.uid)

    def _converge(self, kept: _Kept) -> None:
        kept.converge(self._rng, self._clock.time())
        self._feed.publish([kept.seen(self._rng)])

    def watch(self) -> AsyncIterator[DeploymentItem]:
        """Every deployment, Synced, then each that changes."""
        return self._feed.watch(lambda: [k.seen(self._rng) for k in self._world.kept.values()])

    async def retire(self, uid: str, replicas: Sequence[str]) -> None:
        """They are gone at once."""
        kept = self._world.kept.get(uid)
        if kept is None:
            return
        for name in kept.seen(self._rng).leaving.intersection(replicas):
            del kept.replicas[name]
        self._converge(kept)

    async def remove(self, uid: str, handle: Handle | None) -> ReleaseOutcome:
        """All of it is gone at once; only that it was removed is remembered."""
        known = self._world.kept.pop(uid, None)
        self._world.mark(uid, "removed")
        if known is not None:
            self._feed.publish([ReplicaSet(uid, known.target.generation, ())])
        return Released(uid)

    async def owned(self, cluster_id: str) -> AsyncIterator[OwnedDeployment]:
        """Everything not removed."""
        for uid, kept in list(self._world.kept.items()):
            if kept.cluster_id == cluster_id:
                handle = _deployment_handle(uid)
                yield OwnedDeployment(uid, cluster_id, kept.target.generation, handle)

    def replica_logs(self, replica: str, stream: str, tail_lines: int) -> AsyncIterator[LogChunk]:
        """It has none."""
        raise Unsupported("replica_logs")

    def close(self) -> None:
        """End every watch."""
        self._feed.end()


CAPABILITIES = Capabilities(
    caller_interpreter=True,
    memory_limit=True,
    inputs=True,
    pretends=True,
    deployments=True,
    canary=True,
)
"""What needs nothing done can be promised; the rest would be a lie."""


class NullBackend:
    """One opened instance."""

    devices = None

    def __init__(
        self, jobs: NullJobs, deployments: NullDeployments, world: NullWorld, clock: Clock
    ) -> None:
        self.jobs = jobs
        self.deployments = deployments
        self._world = world
        self._clock = clock

    def capabilities(self) -> Capabilities:
        """What it can."""
        return CAPABILITIES

    async def health(self) -> Health:
        """Always well."""
        return Health(HealthStatus.HEALTHY)

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """What it lacks."""
        return [*lacking(spec, CAPABILITIES), *_own_problems(spec)]

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """Whether they were launched; known at once."""
        return [self._find(ref) for ref in refs]

    def _find(self, ref: Ref) -> FindOutcome:
        known = self.jobs.recall(ref)
        return Found(ref.name, known.handle, known.phase) if known else Absent(ref.name)

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """Everything not released."""
        for known in list(self._world.objects.values()):
            if known.identity.cluster_id == cluster_id:
                yield known.owned()

    def logs(self, ref: Ref, stream: str, offset: int, follow: bool) -> AsyncIterator[LogChunk]:
        """It has none."""
        raise Unsupported("logs")


class NullType:
    """The type `null`; worlds are kept per instance, so that it can be closed and opened again."""

    name = "null"
    api = API_VERSION
    options: type[BackendOptions] = NullOptions

    def __init__(self) -> None:
        self._worlds: dict[str, NullWorld] = {}

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[Backend]:
        """Open one instance."""
        if not isinstance(options, NullOptions):
            raise TypeError(f"null is opened with NullOptions, not {type(options).__name__}")
        world = self._worlds.setdefault(instance, NullWorld())
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            jobs = NullJobs(options, world, ctx, tasks)
            stack.callback(jobs.close)
            deployments = NullDeployments(world, ctx)
            stack.callback(deployments.close)
            yield NullBackend(jobs, deployments, world, ctx.clock)


def _own_problems(spec: job_pb2.JobSpec) -> list[Problem]:
    try:
        given = own_options(spec, KEY)
    except ValueError as error:
        return [Problem(f"backend_options.{KEY}", str(error))]
    return [
        Problem(f"backend_options.{KEY}.{name}", problem)
        for name, value in given.items()
        if (problem := _own_problem(name, value))
    ]


def _own_problem(name: str, value: object) -> str:
    if name not in ("delay", "exit_code"):
        return "unknown; known are delay, exit_code"
    if not isinstance(value, float) or (name == "exit_code" and not value.is_integer()):
        return "must be seconds" if name == "delay" else "must be a whole number"
    return "".join(problem.message for problem in NullOptions.in_bounds({name: value}))


def _ready(made: Creation, now: float) -> ReplicaView:
    ready, address = ReplicaPhase.READY, f"{made.name}.invalid:80"
    return ReplicaView(made.name, made.revision, ready, "null", address, since=now)


def _deployment_handle(uid: str) -> Handle:
    return Handle(HANDLE_VERSION, uid)


def _to_handle(identity: _Identity, ends_at: float, exit: Exit) -> Handle:
    return Handle(HANDLE_VERSION, _encode([*identity, ends_at, exit.code]))


def _from_handle(name: str, handle: Handle, now: float) -> _Object:
    """What an earlier process launched; its time has run on meanwhile."""
    *identity, ends_at, code = json.loads(handle.data)
    left = ends_at if ends_at > now else 0.0
    return _Object(name, _Identity(*identity), left, Exit(ExitKind.EXITED, code), handle)


class _Plugin:
    @hookimpl
    def hatoba_backend_types(self) -> list[BackendType]:
        """The type `null`."""
        return [NullType()]


plugin = _Plugin()
