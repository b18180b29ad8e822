"""The contract, method by method, over folders and keepers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hatoba.v1 import job_pb2
from hatoba_backend_hello import keep
from hatoba_backend_hello.folders import Folder, folders
from hatoba_plugins.backend import API_VERSION, Backend, BackendContext
from hatoba_plugins.checks import lacking, out_of_range, require_kind
from hatoba_plugins.errors import BackendError, Conflict, Fatal
from hatoba_plugins.feed import Feed
from hatoba_plugins.values import (
    Absent,
    Ambiguous,
    BackendOptions,
    Capabilities,
    CapacitySnapshot,
    FindOutcome,
    Found,
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

T = TypeVar("T")
AGAIN = 0.05
CHUNK = 65_536
CAPABILITIES = Capabilities(
    caller_interpreter=True, logs=True, limits=(("spawn", Rate(per_second=200.0, burst=200)),)
)


@dataclass(frozen=True)
class HelloOptions(BackendOptions):
    """`directory`: where attempts are kept. `slots`: how many at once."""

    directory: str = "hello"
    slots: int = 64

    def path(self) -> Path:
        """The directory, whatever the working directory is later."""
        return Path(self.directory).absolute()

    @classmethod
    def check(cls, options: dict[str, object]) -> list[Problem]:
        """Unknown names and wrong types are found by the base."""
        return [*super().check(options), *out_of_range(options, "slots", 1, 10_000)]


class HelloJobs:
    """Its job role."""

    def __init__(self, directory: Path, slots: int, ctx: BackendContext) -> None:
        self._directory = directory
        self._slots = slots
        self._ctx = ctx
        self._feed: Feed[WatchItem] = Feed()
        self._known: dict[str, Observation] = {}
        self._followed: dict[str, int] = {}
        self._kills: dict[str, asyncio.Task[None]] = {}
        self._starting: set[str] = set()
        self._one_by_one = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()

    def folder(self, name: str) -> Folder:
        """Where an attempt is kept."""
        return Folder(self._directory / name)

    # -- launch: every call may be cancelled, so what has begun is brought to its end -------------

    async def launch(self, group: LaunchGroup) -> list[LaunchOutcome]:
        """Take the name, then start a keeper; both happen once."""
        require_kind(group, CAPABILITIES)
        outcomes = []
        for member in group.members:
            await self._ctx.budget("spawn")
            self._starting.add(member.name)
            outcomes.append(await self._to_the_end(self._launch(member)))
        return outcomes

    async def _launch(self, request: LaunchRequest) -> LaunchOutcome:
        try:
            async with self._one_by_one:
                return await self._create_or_adopt(request)
        except BackendError as error:
            return Refused(request.name, error)
        except OSError as error:
            return Ambiguous(request.name, repr(error))
        finally:
            self._starting.discard(request.name)

    async def _create_or_adopt(self, request: LaunchRequest) -> LaunchOutcome:
        folder, wanted = self.folder(request.name), self._wanted(request)
        known = await asyncio.to_thread(folder.wanted)
        if known is None and await asyncio.to_thread(folder.kill_at) is not None:
            raise Fatal(f"{request.name} was stopped before it was launched")
        if known is None:
            await asyncio.to_thread(folder.launch, wanted)
            await self._start(folder)
        elif known["owner"] != wanted["owner"]:
            raise Conflict(f"{request.name} exists", evidence=str(known["owner"]))
        return Launched(request.name, folder.handle)

    def _wanted(self, request: LaunchRequest) -> dict[str, Any]:
        env = dict(request.spec.env)
        env |= {"HATOBA_ATTEMPT": request.name, "TRACEPARENT": request.traceparent}
        owner = {
            "cluster_id": self._ctx.cluster_id,
            "job_uid": request.job_uid,
            "index": request.index,
            "number": request.number,
        }
        return {"command": list(request.spec.command), "env": env, "owner": owner}

    async def _start(self, folder: Folder) -> None:
        """Start a keeper, which soon stands on its own, and follow it."""
        keeper = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-E", keep.__file__, str(folder.path)
        )
        await keeper.wait()
        await self._follow(folder)

    # -- observe and watch: a keeper's end wakes us, nothing is polled ----------------------------

    async def observe(self, refs: Sequence[Ref]) -> list[Observation]:
        """Read from the disk; a watch is never behind what was told here."""
        seen = [await asyncio.to_thread(self.folder(ref.name).observe) for ref in refs]
        for one in seen:
            self._note(one)
        return seen

    def watch(self) -> AsyncIterator[WatchItem]:
        """Room, all attempts, Synced, then what changes."""
        return self._feed.watch(self._now)

    def _now(self) -> Iterable[WatchItem]:
        total = Share(cpus=float(os.cpu_count() or 1), memory=_memory(), slots=self._slots)
        pool = Pool("this-machine", total, embedded=True)
        yield CapacitySnapshot((pool,), elastic=False, as_of=self._ctx.clock.time())
        yield from self._known.values()

    async def _follow(self, folder: Folder) -> None:
        """Tell how it is now, and when its keeper ends."""
        pid = await asyncio.to_thread(folder.keeper)
        try:
            watched = os.pidfd_open(pid) if pid is not None else None
        except ProcessLookupError:
            watched = None
        seen = await asyncio.to_thread(folder.observe)
        self._known[folder.name] = seen
        self._feed.publish([seen])
        if watched is not None:
            self._followed[folder.name] = watched
            loop = asyncio.get_running_loop()
            loop.add_reader(watched, self._keeper_ended, folder)

    def _keeper_ended(self, folder: Folder) -> None:
        self._unfollow(folder.name)
        self._tasks.create_task(self._tell(folder), name=f"tell-{folder.name}")

    def _unfollow(self, name: str) -> None:
        watched = self._followed.pop(name, None)
        if watched is not None:
            asyncio.get_running_loop().remove_reader(watched)
            os.close(watched)
        kill = self._kills.pop(name, None)
        if kill is not None:
            kill.cancel()

    async def _tell(self, folder: Folder) -> None:
        self._note(await asyncio.to_thread(folder.observe))

    def _note(self, seen: Observation) -> None:
        """Tell what is new of an attempt that is not released."""
        known = self._known.get(seen.name)
        if known is not None and known.phase < seen.phase:
            self._known[seen.name] = seen
            self._feed.publish([seen])

    # -- stop and release -------------------------------------------------------------------------

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        """Note it, signal, and kill when the grace is over."""
        return [await self._to_the_end(self._stop(ref.name, grace)) for ref in refs]

    async def _stop(self, name: str, grace: float) -> StopResult:
        folder = self.folder(name)
        async with self._one_by_one:
            known = await asyncio.to_thread(folder.stop, self._ctx.clock.time() + grace)
        self._kill_later(folder)
        return StopResult(name, known)

    def _kill_later(self, folder: Folder) -> None:
        if folder.name in self._followed and folder.name not in self._kills:
            task = self._tasks.create_task(self._kill(folder), name=f"kill-{folder.name}")
            self._kills[folder.name] = task

    async def _kill(self, folder: Folder) -> None:
        kill_at = await asyncio.to_thread(folder.kill_at) or 0.0
        await self._ctx.clock.sleep(max(0.0, kill_at - self._ctx.clock.time()))
        await asyncio.to_thread(folder.signal, signal.SIGKILL)

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        """Remove the folders of what ended."""
        return [await self._to_the_end(self._release(ref.name)) for ref in refs]

    async def _release(self, name: str) -> ReleaseOutcome:
        if not await asyncio.to_thread(self.folder(name).remove):
            return NotYet(name, after=AGAIN)
        self._known.pop(name, None)
        return Released(name)

    # -- find -------------------------------------------------------------------------------------

    async def find(self, name: str) -> FindOutcome:
        """Whether it was launched; a launch under way is not known yet."""
        if name in self._starting:
            return Unsure(name, after=AGAIN)
        folder = self.folder(name)
        wanted = await asyncio.to_thread(folder.wanted)
        if wanted is None or wanted["owner"]["cluster_id"] != self._ctx.cluster_id:
            return Absent(name)
        return Found(name, folder.handle)

    # -- opening ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take up what an earlier process left, and end our own tasks, not the commands."""
        async with self._tasks:
            for folder in await asyncio.to_thread(lambda: list(folders(self._directory))):
                await self._take_up(folder)
            try:
                yield
            finally:
                for name in list(self._followed):
                    self._unfollow(name)
                self._feed.end()

    async def _take_up(self, folder: Folder) -> None:
        if await asyncio.to_thread(folder.wanted) is None:
            return
        if await asyncio.to_thread(folder.never_kept):
            await self._start(folder)
        else:
            await self._follow(folder)
        if await asyncio.to_thread(folder.kill_at) is not None:
            self._kill_later(folder)

    async def _to_the_end(self, call: Coroutine[Any, Any, T]) -> T:
        """Bring a call to its end even when whoever made it is cancelled."""
        result = await asyncio.shield(self._tasks.create_task(_caught(call)))
        if isinstance(result, OSError):
            raise result
        return result


class HelloBackend:
    """One opened instance."""

    def __init__(self, directory: Path, jobs: HelloJobs) -> None:
        self._directory = directory
        self.jobs = jobs
        self.deployments = None
        self.devices = None

    def capabilities(self) -> Capabilities:
        """What it can."""
        return CAPABILITIES

    async def health(self) -> Health:
        """Well while its directory can be written."""
        if await asyncio.to_thread(os.access, self._directory, os.W_OK):
            return Health(HealthStatus.HEALTHY)
        return Health(HealthStatus.UNHEALTHY, f"{self._directory} cannot be written")

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """What it lacks."""
        return lacking(spec, CAPABILITIES)

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """Whether they were launched."""
        return [await self.jobs.find(ref.name) for ref in refs]

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """All folders of this cluster."""
        for folder in await asyncio.to_thread(lambda: list(folders(self._directory))):
            owned = await asyncio.to_thread(folder.owned)
            if owned is not None and owned.cluster_id == cluster_id:
                yield owned

    async def logs(
        self, ref: Ref, stream: str, offset: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        """What the command wrote, from a byte on; with follow until it ended."""
        folder = self.jobs.folder(ref.name)
        ended = False
        while True:
            data = await asyncio.to_thread(folder.output, stream, offset, CHUNK)
            if data:
                yield LogChunk(ref.name, stream, offset, data)
                offset += len(data)
            elif ended or not follow:
                return
            else:
                seen = await asyncio.to_thread(folder.observe)
                ended = seen.phase >= Phase.ENDED
                await asyncio.sleep(0 if ended else AGAIN)


class HelloType:
    """What the plug-in registers."""

    name = "hello"
    api = API_VERSION
    options: type[BackendOptions] = HelloOptions

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[Backend]:
        """Open one instance."""
        if not isinstance(options, HelloOptions):
            raise TypeError(f"hello is opened with HelloOptions, not {type(options).__name__}")
        directory = options.path()
        jobs = HelloJobs(directory, options.slots, ctx)
        async with jobs.running():
            yield HelloBackend(directory, jobs)


async def _caught(call: Coroutine[Any, Any, T]) -> T | OSError:
    """An error of the disk as a value: raised in a task group it would end everybody's calls."""
    try:
        return await call
    except OSError as error:
        return error


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
