"""The backend over the mock's world: written as one would be over a real service's client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import API_VERSION, Backend, BackendContext
from hatoba_plugins.backends.mock.deployments import MockDeployments
from hatoba_plugins.backends.mock.faults import OPERATIONS, Trouble
from hatoba_plugins.backends.mock.objects import MockObject, Owner
from hatoba_plugins.backends.mock.script import script_of, script_problems
from hatoba_plugins.backends.mock.world import MockWorld, Wanted
from hatoba_plugins.checks import lacking, out_of_range, require_kind
from hatoba_plugins.errors import BackendError, Invalid, Retry, Unsupported
from hatoba_plugins.runner import runner_environment
from hatoba_plugins.settling import Settling
from hatoba_plugins.values import (
    Absent,
    Ambiguous,
    BackendOptions,
    Capabilities,
    CapacitySnapshot,
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
    Phase,
    Pool,
    Problem,
    Rate,
    Ref,
    Refused,
    Released,
    ReleaseOutcome,
    Share,
    StopResult,
    Unsure,
    WatchItem,
)

HANDLE_VERSION = 1
POOL = "mock"
_LIMIT = Rate(per_second=10_000.0, burst=10_000)
_CAPABILITIES = Capabilities(
    gpus=True,
    requirements=True,
    caller_interpreter=True,
    memory_limit=True,
    inputs=True,
    native_arrays=True,
    pretends=True,
    deployments=True,
    canary=True,
    limits=tuple((operation, _LIMIT) for operation in OPERATIONS),
)
_CAN_LACK = sorted(f.name for f in fields(Capabilities) if getattr(_CAPABILITIES, f.name) is True)


@dataclass(frozen=True)
class MockOptions(BackendOptions):
    """How the mock presents itself; what happens on it is up to scripts and `MockWorld`."""

    ledger: str = ""
    """File of what happened; with it everything survives a restart."""
    capacity: int = 1_000
    """Attempts that run at once."""
    elastic: bool = False
    """What exceeds the capacity waits there instead of being refused."""
    cpus: float = 64.0
    memory: int = 2**38
    gpus: int = 0
    settles_after: float = 1.0
    """Seconds after which a creation that is not visible did not happen."""
    lacks: list[str] = field(default_factory=list)
    """Capabilities that it shall not have."""
    trouble: str = ""
    """`hangs`, `throttles` or `fails`: what is wrong with it for good; empty: nothing."""
    trouble_every: int = 1
    """One in so many calls of an operation has the trouble."""
    architectures: list[str] = field(default_factory=list)
    """What its replicas run on, in images, see `ImageRunner`; without any it takes none."""
    runner: str = ""
    """`pod` or `image`: each attempt waits for a runner, whose environment is in the ledger."""

    @classmethod
    def check(cls, options: dict[str, object]) -> list[Problem]:
        """Problems of these options."""
        lacks = options.get("lacks")
        named: list[object] = lacks if isinstance(lacks, list) else []
        unknown = [name for name in named if name not in _CAN_LACK]
        trouble = options.get("trouble", "")
        return [
            *super().check(options),
            *out_of_range(options, "capacity", 1, 1_000_000),
            *out_of_range(options, "cpus", 0.0, 1e6),
            *out_of_range(options, "memory", 0, 2**60),
            *out_of_range(options, "gpus", 0, 1_024),
            *out_of_range(options, "settles_after", 0.0, 3_600.0),
            *out_of_range(options, "trouble_every", 1, 1_000_000),
            *([] if trouble in ("", *Trouble) else [Problem("trouble", _none_of(trouble))]),
            *_runner_problems(options.get("runner", "")),
            *(Problem("lacks", f"{n!r} is none of {', '.join(_CAN_LACK)}") for n in unknown),
        ]


def _runner_problems(runner: object) -> list[Problem]:
    if runner in ("", "pod", "image"):
        return []
    return [Problem("runner", f"{runner!r} is none of pod, image")]


def _none_of(trouble: object) -> str:
    return f"{trouble!r} is none of {', '.join(Trouble)}"


class MockType:
    """The type `mock`. A test gives it the world that it wants to hold in its hands."""

    name = "mock"
    api = API_VERSION
    options: type[BackendOptions] = MockOptions

    def __init__(self, world: MockWorld | None = None) -> None:
        self._given = world
        self._worlds: dict[str, MockWorld] = {}

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[Backend]:
        """Open one instance; its world goes on from where it was."""
        if not isinstance(options, MockOptions):
            raise TypeError(f"mock is opened with MockOptions, not {type(options).__name__}")
        world = self._world(instance, options)
        world.elsewhere = bool(options.runner)
        async with world.running(ctx.clock, options.capacity, options.elastic):
            yield MockBackend(world, options, ctx)

    def _world(self, instance: str, options: MockOptions) -> MockWorld:
        if self._given is not None:
            return self._given
        if instance not in self._worlds:
            world = MockWorld(Path(options.ledger) if options.ledger else None)
            if options.trouble:
                world.faults.stand(Trouble(options.trouble), options.trouble_every)
            self._worlds[instance] = world
        return self._worlds[instance]


class MockJobs:
    """Its job role."""

    def __init__(
        self, world: MockWorld, options: MockOptions, ctx: BackendContext, memory: Settling
    ) -> None:
        self._world = world
        self._options = options
        self._ctx = ctx
        self._memory = memory
        self._capabilities = capabilities_of(options)

    async def launch(self, group: LaunchGroup) -> list[LaunchOutcome]:
        """One native call per member, all at once."""
        require_kind(group, self._capabilities)
        async with asyncio.TaskGroup() as calls:
            launches = [
                calls.create_task(self._launch(member), name=f"launch-{member.name}")
                for member in group.members
            ]
        return [launch.result() for launch in launches]

    async def _launch(self, request: LaunchRequest) -> LaunchOutcome:
        try:
            wanted = self._wanted(request)
            await self._ctx.budget("create")
            self._memory.asked(request.name)
            made = await self._world.create(wanted)
        except BackendError as error:
            return Refused(request.name, error)
        except OSError as error:
            return Ambiguous(request.name, repr(error))
        return Launched(request.name, handle_of(made), made.phase)

    def _wanted(self, request: LaunchRequest) -> Wanted:
        try:
            script = script_of(request.spec)
        except ValueError as error:
            raise Invalid(str(error)) from error
        owner = Owner(
            self._ctx.cluster_id, request.job_uid, request.index, request.number, request.fence
        )
        timeout = request.spec.timeout.ToTimedelta().total_seconds()
        env = runner_environment(self._ctx, request) if self._options.runner else {}
        return Wanted(request.name, owner, script, timeout, tuple(sorted(env.items())))

    async def observe(self, refs: Sequence[Ref]) -> list[Observation]:
        """How they are now; none is reachable while the world is not."""
        await self._ctx.budget("describe")
        try:
            seen = await self._world.describe([ref.name for ref in refs])
        except Retry:
            return [Observation(r.name, Phase.EXISTS, exists=True, reachable=False) for r in refs]
        return [self._observation(ref, known) for ref, known in zip(refs, seen, strict=True)]

    def _observation(self, ref: Ref, known: MockObject | None) -> Observation:
        if known is not None:
            self._memory.seen(ref.name)
            return self._world.observe(known)
        if self._memory.settled_in(ref.name) > 0:
            return Observation(ref.name, Phase.EXISTS, exists=True, reachable=False)
        return Observation(ref.name, Phase.GONE, exists=False)

    def watch(self) -> AsyncIterator[WatchItem]:
        """Room, everything visible, Synced, then news."""
        return self._world.watch(self._capacity)

    def _capacity(self) -> Iterable[WatchItem]:
        options = self._options
        total = Share(options.cpus, options.memory, options.gpus, options.capacity)
        pool = Pool(POOL, total, gpu_ids=tuple(map(str, range(options.gpus))), embedded=True)
        yield CapacitySnapshot((pool,), options.elastic, as_of=self._ctx.clock.time())

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        """One native call each."""
        return [await self._stop(ref, grace) for ref in refs]

    async def _stop(self, ref: Ref, grace: float) -> StopResult:
        await self._ctx.budget("terminate")
        return StopResult(ref.name, await self._world.terminate(ref.name, grace))

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        """One native call each."""
        return [await self._release(ref) for ref in refs]

    async def _release(self, ref: Ref) -> ReleaseOutcome:
        await self._ctx.budget("delete")
        if not await self._world.delete(ref.name):
            return NotYet(ref.name, after=1.0)
        self._memory.seen(ref.name)
        return Released(ref.name)


class MockBackend:
    """One opened instance."""

    devices = None

    def __init__(self, world: MockWorld, options: MockOptions, ctx: BackendContext) -> None:
        self._world = world
        self._ctx = ctx
        self._memory = Settling(ctx.clock, options.settles_after)
        self._capabilities = capabilities_of(options)
        self._runner = options.runner
        self.jobs = MockJobs(world, options, ctx, self._memory)
        able = self._capabilities.deployments
        self.deployments = (
            MockDeployments(world, self._capabilities, ctx, options.architectures) if able else None
        )

    def capabilities(self) -> Capabilities:
        """All that it can play, less what the options take away."""
        runner = "none" if self._world.runner is None else "image"
        return replace(self._capabilities, runner=self._runner or runner)

    async def health(self) -> Health:
        """Well, unless it cannot be reached."""
        try:
            await self._ctx.budget("list")
            await self._world.list_objects()
        except BackendError as error:
            return Health(HealthStatus.UNHEALTHY, error.message)
        return Health(HealthStatus.HEALTHY)

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """What it lacks, and what is wrong with the script."""
        return [*lacking(spec, self._capabilities), *script_problems(spec)]

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """Live look-up; what is not visible may still appear for a while."""
        await self._ctx.budget("describe")
        seen = await self._world.describe([ref.name for ref in refs])
        return [self._found(ref.name, known) for ref, known in zip(refs, seen, strict=True)]

    def _found(self, name: str, known: MockObject | None) -> FindOutcome:
        if known is not None and known.owner.cluster_id == self._ctx.cluster_id:
            if not known.deleted:
                return Found(name, handle_of(known), known.phase)
        elif known is None and (after := self._memory.settled_in(name)) > 0:
            return Unsure(name, after)
        return Absent(name)

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """Everything visible with this label."""
        await self._ctx.budget("list")
        for known in await self._world.list_objects():
            own = known.owner
            if own.cluster_id == cluster_id and not known.deleted:
                handle = handle_of(known)
                ids = (own.cluster_id, own.job_uid, own.index, own.number)
                yield Owned(known.name, *ids, handle, known.ended, POOL)

    def logs(self, ref: Ref, stream: str, offset: int, follow: bool) -> AsyncIterator[LogChunk]:
        """It runs nothing, so nothing writes."""
        raise Unsupported("logs")


def handle_of(known: MockObject) -> Handle:
    """Its name is all that is needed to find it again."""
    return Handle(HANDLE_VERSION, known.name)


def capabilities_of(options: MockOptions) -> Capabilities:
    """What an instance with these options can."""
    lacks: dict[str, Any] = dict.fromkeys(options.lacks, False)
    if options.gpus == 0:
        lacks["gpus"] = False
    images = bool(options.architectures)
    return replace(_CAPABILITIES, images=images, find_settles_after=options.settles_after, **lacks)
