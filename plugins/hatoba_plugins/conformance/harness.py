"""What the kit needs of a backend's author: how to open it, what it can run, how to break it."""

from __future__ import annotations

import asyncio
import random
import shlex
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pytest

from hatoba.v1 import deployment_pb2, job_pb2, worker_pb2
from hatoba_plugins.backend import (
    Backend,
    BackendContext,
    BackendType,
    Clock,
    HostRoom,
    JobBackend,
)
from hatoba_plugins.clock import FakeClock, SystemClock
from hatoba_plugins.errors import BackendError, Retry
from hatoba_plugins.values import Gap, LogChunk, Observation, Owned, Phase, Ref, Synced, WatchItem

ASK_EVERY = 0.2
PATIENCE = 120.0
"""Real seconds after which something that was waited for is taken not to come: a pod may have to
wait for others to be taken down.
"""


class Command(Enum):
    """What the kit wants to run."""

    SUCCEEDS = "succeeds"
    FAILS = "fails"
    """With exit code 3."""
    RUNS = "runs"
    """Until it is stopped; it ends at the polite signal."""
    IGNORES_STOP = "ignores_stop"
    """Until it is killed."""
    PRINTS = "prints"
    """`hello from the kit` and a newline on its standard output, then succeeds."""


class Life(Enum):
    """What the kit wants of a replica."""

    READY = "ready"
    """It becomes ready and stays so."""
    NEVER_READY = "never_ready"
    CRASHES = "crashes"
    """It becomes ready and ends by itself, at least once; then it is started again."""


class GatedBudget:
    """The `ctx.budget` of the kit: counts what was asked for and can hold it back."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.asked = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()

    async def __call__(self, operation: str) -> None:
        """Wait until the gate is open."""
        self.asked.set()
        await self._open.wait()
        self.taken[operation] += 1

    def close(self) -> None:
        """Let nothing through."""
        self.asked.clear()
        self._open.clear()

    def open(self) -> None:
        """Let everything through."""
        self._open.set()


class NoWorkers:
    """A hub with no worker, for backends that need none."""

    def ready_hosts(self) -> list[str]:
        """No host is there."""
        return []

    def send_launch(self, host: str, launch: worker_pb2.LaunchAttempt) -> bool:
        """No host is there."""
        return False

    def send_stop(self, host: str, name: str, fence: int, grace: float) -> bool:
        """No host is there."""
        return False

    def seen(self, name: str, host: str) -> Observation | None:
        """Nothing is known."""
        return None

    def owned(self) -> list[Owned]:
        """Nothing is there."""
        return []

    def forget(self, name: str) -> None:
        """Nothing was known."""

    async def watch(self) -> AsyncIterator[WatchItem]:
        """Nothing to tell."""
        yield Synced()

    def hosts_for_replicas(self) -> list[HostRoom]:
        """No host is there."""
        return []

    def order_replicas(self, host: str, replicas: Sequence[worker_pb2.ReplicaSpec]) -> bool:
        """No host is there."""
        return False

    def replicas(self, host: str) -> Mapping[str, deployment_pb2.Replica] | None:
        """Nothing is known."""
        return None

    async def watch_replicas(self) -> AsyncIterator[str]:
        """Nothing to tell."""
        for host in self.ready_hosts():
            yield host

    async def replica_tail(
        self, host: str, replica: str, stream: str, lines: int
    ) -> LogChunk | None:
        """No host answers."""
        return None

    async def attach(
        self,
        host: str,
        order: worker_pb2.AttachAttempt,
        said: AsyncIterator[job_pb2.AttachInput],
    ) -> AsyncGenerator[job_pb2.AttachOutput, None]:
        """No host does. Raises Retry."""
        nothing: tuple[job_pb2.AttachOutput, ...] = ()
        for piece in nothing:
            yield piece
        raise Retry("no host is connected")


class FaultInjector:
    """Breaks the outside world on demand. Override what you can; what is left skips its test.

    Where it says launch, it is the next `apply` for a deployment role, the next `desire` for a
    device role.
    """

    async def reply_lost_after_effect(self) -> None:
        """The next launch takes effect, and its reply is lost."""
        self._missing("reply_lost_after_effect")

    async def delay_reply(self, seconds: float) -> None:
        """The next launch takes effect, and its reply comes so much later."""
        self._missing("delay_reply")

    async def double_reply(self) -> None:
        """The transport carries the next launch twice."""
        self._missing("double_reply")

    async def land_late(self, seconds: float) -> None:
        """The next launch is not answered, and takes effect so much later."""
        self._missing("land_late")

    async def until_called(self) -> None:
        """Return when the fault was met. Override it where a launch makes other calls first."""

    async def conflict(self, name: str) -> None:
        """Something of this name exists that is not ours."""
        self._missing("conflict")

    async def hide_for(self, seconds: float) -> None:
        """What is launched from now on cannot be seen for so long."""
        self._missing("hide_for")

    async def throttle(self) -> None:
        """The next call is turned away for coming too soon."""
        self._missing("throttle")

    async def overload(self) -> None:
        """The next launch is answered that the provider has too much to do just now."""
        self._missing("overload")

    async def disguise_denial(self) -> None:
        """The next call that finds and the next that observes are denied by somebody before the
        provider, who says 404."""
        self._missing("disguise_denial")

    async def expire_pages(self) -> None:
        """Listings come in pages of one, and the next further page has expired."""
        self._missing("expire_pages")

    async def unreachable_for(self, seconds: float) -> None:
        """Nothing can be reached for so long; what runs goes on."""
        self._missing("unreachable_for")

    async def delete_behind(self, name: str) -> None:
        """Somebody else removes the object."""
        self._missing("delete_behind")

    async def double_run(self) -> None:
        """The provider starts the next launch twice; the loser is seen first."""
        self._missing("double_run")

    async def gap(self) -> None:
        """Open watches miss something and notice it."""
        self._missing("gap")

    async def end_watches(self) -> None:
        """Open watches end without a word."""
        self._missing("end_watches")

    def _missing(self, fault: str) -> None:
        pytest.skip(f"the harness cannot inject {fault}")


class JobHarness(Protocol):
    """A backend with its outside world, as the kit sees it: a context in which it is open."""

    cluster_id: str
    faults: FaultInjector | None
    budget: GatedBudget
    options: dict[str, object]

    @property
    def backend_type(self) -> BackendType:
        """What the plug-in registers."""
        ...

    @property
    def backend(self) -> Backend:
        """The opened instance."""
        ...

    async def __aenter__(self) -> Self:
        """Open it."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        ...

    async def reopen(self) -> None:
        """Close and open the backend, as a restart of the core does; the outside world goes on."""
        ...

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        """A specification for the attempt `name` that does this."""
        ...

    async def wait(self, ref: Ref, phase: Phase) -> Observation:
        """The first thing seen of it that is at least so far. TimeoutError when it never is."""
        ...

    async def until_started(self, ref: Ref) -> None:
        """Return when the user's code has begun."""
        ...

    async def starts(self, name: str) -> int | None:
        """How often the user's code of this attempt was started; None: nobody can know."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds of the backend's clock go by."""
        ...


class OpenHarness:
    """Opens any backend type; what harnesses of all roles share."""

    cluster_id = "conformance"

    def __init__(
        self,
        backend_type: BackendType,
        options: dict[str, object] | None = None,
        *,
        clock: Clock | None = None,
        faults: FaultInjector | None = None,
    ) -> None:
        self.backend_type = backend_type
        self.options = options or {}
        self.clock = clock or SystemClock()
        self.faults = faults
        self.budget = GatedBudget()
        self._backend: Backend | None = None
        self._opened: AbstractAsyncContextManager[Backend] | None = None

    def context(self) -> BackendContext:
        """What the backend is opened with."""
        return BackendContext(
            clock=self.clock,
            rng=random.Random(0),
            cluster_id=self.cluster_id,
            store_epoch=1,
            advertise="127.0.0.1:1",
            budget=self.budget,
            secret=_no_secret,
            workers=NoWorkers(),
        )

    @property
    def backend(self) -> Backend:
        """The opened instance."""
        if self._backend is None:
            raise RuntimeError("the harness is not entered")
        return self._backend

    async def __aenter__(self) -> Self:
        """Open it."""
        options = self.backend_type.options(**self.options)
        self._opened = self.backend_type.open("conformance", options, self.context())
        self._backend = await self._opened.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        opened, self._opened, self._backend = self._opened, None, None
        if opened is not None:
            await opened.__aexit__(kind, error, trace)

    async def reopen(self) -> None:
        """Close and open it again."""
        await self.__aexit__(None, None, None)
        await self.__aenter__()

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds of the backend's clock go by."""
        if isinstance(self.clock, FakeClock):
            await self.clock.advance(seconds)
        else:
            await self.clock.sleep(seconds)


class BackendHarness(OpenHarness, ABC):
    """A harness around any job backend. Give it a `FakeClock` and it moves it as needed."""

    @abstractmethod
    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        """A specification for the attempt `name` that does this."""

    async def starts(self, name: str) -> int | None:
        """Override it where the starts of user code can be counted."""
        return None

    async def until_started(self, ref: Ref) -> None:
        """Override it where RUNNING may be told before the user's code has begun."""
        await self.wait(ref, Phase.RUNNING)

    async def wait(self, ref: Ref, phase: Phase) -> Observation:
        """The first thing seen of it that is at least so far."""
        jobs = self.backend.jobs
        if jobs is None:
            raise RuntimeError("the backend has no job role")
        async with asyncio.timeout(PATIENCE):
            if isinstance(self.clock, FakeClock):
                return await _step_until(jobs, self.clock, ref, phase)
            return await _watch_until(jobs, ref, phase)


class DeploymentHarness(Protocol):
    """A deployment backend with its outside world, as the kit sees it."""

    cluster_id: str
    clock: Clock
    faults: FaultInjector | None
    budget: GatedBudget

    @property
    def backend(self) -> Backend:
        """The opened instance."""
        ...

    async def __aenter__(self) -> Self:
        """Open it."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        ...

    async def reopen(self) -> None:
        """Close and open the backend, as a restart of the core does; replicas go on."""
        ...

    def template(self, life: Life) -> worker_pb2.ReplicaSpec:
        """What replicas with this life are made from; `pytest.skip` for one there cannot be."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds of the backend's clock go by."""
        ...


class ReplicaHarness(OpenHarness, ABC):
    """A harness around any deployment backend. Give it a `FakeClock` and it moves it as needed."""

    @abstractmethod
    def template(self, life: Life) -> worker_pb2.ReplicaSpec:
        """What replicas with this life are made from; `pytest.skip` for one there cannot be."""


class ShellHarness(BackendHarness):
    """For backends whose commands run on this machine: each leaves a mark when it starts."""

    def __init__(
        self,
        backend_type: BackendType,
        options: dict[str, object] | None = None,
        *,
        marks: Path,
        faults: FaultInjector | None = None,
    ) -> None:
        super().__init__(backend_type, options, faults=faults)
        self._marks = marks
        marks.mkdir(parents=True, exist_ok=True)

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        """A shell script that marks its start and then does it."""
        mark = f"echo started >> {shlex.quote(str(self._mark(name)))}"
        before = "trap '' TERM; " if kind is Command.IGNORES_STOP else ""
        script = f"{before}{mark}; {_SCRIPTS[kind]}"
        return job_pb2.JobSpec(name="conformance", command=["/bin/sh", "-c", script])

    async def starts(self, name: str) -> int | None:
        """Marks that were left."""
        return await asyncio.to_thread(_lines, self._mark(name))

    async def until_started(self, ref: Ref) -> None:
        """Look for the mark."""
        await self.wait(ref, Phase.RUNNING)
        async with asyncio.timeout(PATIENCE):
            while True:
                if await self.starts(ref.name):
                    return
                await asyncio.sleep(0.005)

    def _mark(self, name: str) -> Path:
        return self._marks / name


_SCRIPTS = {
    Command.SUCCEEDS: "exit 0",
    Command.FAILS: "exit 3",
    Command.RUNS: "exec sleep 1000",
    Command.IGNORES_STOP: "exec sleep 1000",
    Command.PRINTS: "echo hello from the kit",
}


def _lines(mark: Path) -> int:
    return len(mark.read_text().splitlines()) if mark.exists() else 0


@asynccontextmanager
async def watching(jobs: JobBackend) -> AsyncIterator[AsyncIterator[WatchItem]]:
    """A watch that is closed at the end."""
    news = jobs.watch()
    try:
        yield news
    finally:
        close = getattr(news, "aclose", None)
        if close is not None:
            await close()


async def _no_secret(name: str) -> str:
    raise KeyError(name)


async def _seen(jobs: JobBackend, ref: Ref, phase: Phase) -> Observation | None:
    """How it is, when it is far enough; a backend that cannot be asked now is asked later."""
    try:
        (seen,) = await jobs.observe([ref])
    except BackendError:
        return None
    return seen if seen.reachable and seen.phase >= phase else None


async def _step_until(jobs: JobBackend, clock: FakeClock, ref: Ref, phase: Phase) -> Observation:
    while (seen := await _seen(jobs, ref, phase)) is None:
        if not await clock.advance_to_next():
            await asyncio.sleep(0.001)  # a thread of the backend is at work
    return seen


async def _watch_until(jobs: JobBackend, ref: Ref, phase: Phase) -> Observation:
    while True:
        told = False
        async with watching(jobs) as news:
            async for item in news:
                told = told or (isinstance(item, Observation) and item.name == ref.name)
                if seen := await _far_enough(jobs, item, ref, phase):
                    return seen
                if isinstance(item, Synced) and not told:
                    return await _asked_until(jobs, ref, phase)


async def _asked_until(jobs: JobBackend, ref: Ref, phase: Phase) -> Observation:
    """Of what a watch does not know at its beginning it perhaps never tells: it may be gone."""
    while True:
        if seen := await _seen(jobs, ref, phase):
            return seen
        await asyncio.sleep(ASK_EVERY)


async def _far_enough(
    jobs: JobBackend, item: WatchItem, ref: Ref, phase: Phase
) -> Observation | None:
    if isinstance(item, Observation):
        of_it = item.name == ref.name and item.reachable and item.phase >= phase
        return item if of_it else None
    return await _seen(jobs, ref, phase) if isinstance(item, Synced | Gap) else None
