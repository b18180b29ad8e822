"""A platform whose containers are processes: each runs `hatoba-entrypoint run`, as an image would.

What it has stands in files, so that it outlives a server. A plug-in of its own distribution, which
`install` puts on a directory for a server's `PYTHONPATH`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import API_VERSION, Backend, BackendContext, BackendType
from hatoba_plugins.errors import Unsupported
from hatoba_plugins.runner import runner_environment
from hatoba_plugins.spec import hookimpl
from hatoba_plugins.values import (
    Absent,
    BackendOptions,
    Capabilities,
    CapacitySnapshot,
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
    Phase,
    Pool,
    Problem,
    Ref,
    Released,
    ReleaseOutcome,
    Share,
    StopResult,
    Synced,
    WatchItem,
)

LOOK = 0.1
# It waits again when a signal that it passes on wakes it.
SHELL = """
trap 'kill -TERM $child' TERM
"$@" & child=$!
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
echo $code > "$CODE.new"; mv "$CODE.new" "$CODE"
"""


@dataclass(frozen=True)
class ProcessOptions(BackendOptions):
    """`directory`: where it keeps what it has."""

    directory: str = ""


class ProcessImages:
    """All roles in one: jobs, look-up, health."""

    deployments = None
    devices = None

    def __init__(self, directory: Path, ctx: BackendContext) -> None:
        self._directory = directory
        self._ctx = ctx
        self.jobs = self

    def capabilities(self) -> Capabilities:
        """A runner in the image, and what that can do."""
        return Capabilities(runner="image", images=True, inputs=True, secrets=True)

    async def health(self) -> Health:
        """Always well."""
        return Health(HealthStatus.HEALTHY)

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """It takes everything."""
        return []

    async def launch(self, group: LaunchGroup) -> list[LaunchOutcome]:
        """Start the entrypoint of each, unless it was."""
        return [await asyncio.to_thread(self._launch, one) for one in group.members]

    def _launch(self, request: LaunchRequest) -> LaunchOutcome:
        home = self._directory / request.name
        if not home.exists():
            home.mkdir(parents=True)
            self._start(home, request)
        return Launched(request.name, Handle(1, request.name))

    def _start(self, home: Path, request: LaunchRequest) -> None:
        passed = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environ = {
            **passed,
            **runner_environment(self._ctx, request),
            "HATOBA_RUNNER_DIR": str(home / "runner"),
            "HATOBA_RUN": request.name,
            "HATOBA_TERM_SECONDS": "6",
            "CODE": str(home / "code"),
        }
        entrypoint = (sys.executable, "-m", "hatoba_worker.entrypoint", "run")
        with (home / "output").open("ab") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", SHELL, "sh", *entrypoint, "--", *request.spec.command],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process.returncode = 0
        (home / "pid").write_text(str(process.pid))

    async def observe(self, refs: Sequence[Ref]) -> list[Observation]:
        """Read what there is."""
        return [await asyncio.to_thread(self._seen, ref.name) for ref in refs]

    def _seen(self, name: str) -> Observation:
        home = self._directory / name
        if not home.exists():
            return Observation(name, Phase.GONE, exists=False)
        with contextlib.suppress(ChildProcessError, ValueError, OSError):
            os.waitpid(int((home / "pid").read_text()), os.WNOHANG)
        try:
            code = int((home / "code").read_text())
        except (OSError, ValueError):
            return Observation(name, Phase.RUNNING, exists=True, run=name)
        found = Exit(ExitKind.EXITED, code)
        return Observation(name, Phase.ENDED, exists=True, exit=found, run=name)

    async def watch(self) -> AsyncIterator[WatchItem]:
        """What there is, then what changes."""
        pool = Pool("processes", Share(cpus=64.0, memory=1 << 40, slots=64))
        yield CapacitySnapshot((pool,), elastic=True, as_of=self._ctx.clock.time())
        known: dict[str, Phase] = {}
        synced = False
        while True:
            for name in await asyncio.to_thread(self._names):
                seen = await asyncio.to_thread(self._seen, name)
                if known.get(name) is not seen.phase:
                    known[name] = seen.phase
                    yield seen
            if not synced:
                synced = True
                yield Synced()
            await self._ctx.clock.sleep(LOOK)

    def _names(self) -> list[str]:
        return sorted(path.name for path in self._directory.iterdir())

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        """SIGTERM, as a platform does that takes a container away."""
        return [await asyncio.to_thread(self._stop, ref.name) for ref in refs]

    def _stop(self, name: str) -> StopResult:
        try:
            os.kill(int((self._directory / name / "pid").read_text()), signal.SIGTERM)
        except (OSError, ValueError):
            return StopResult(name, (self._directory / name).exists())
        return StopResult(name, True)

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        """Forget what ended."""
        return [await asyncio.to_thread(self._release, ref.name) for ref in refs]

    def _release(self, name: str) -> ReleaseOutcome:
        if self._seen(name).phase is Phase.RUNNING:
            return NotYet(name, LOOK)
        shutil.rmtree(self._directory / name, ignore_errors=True)
        return Released(name)

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """By name."""
        there = set(await asyncio.to_thread(self._names))
        return [
            Found(ref.name, Handle(1, ref.name)) if ref.name in there else Absent(ref.name)
            for ref in refs
        ]

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """It knows of no owners."""
        for _ in ():
            yield _

    def logs(self, ref: Ref, stream: str, offset: int, follow: bool) -> AsyncIterator[LogChunk]:
        """The runner ships them."""
        raise Unsupported("logs")


class ProcessImagesType:
    """What the plug-in registers."""

    name = "process-images"
    api = API_VERSION
    options = ProcessOptions

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[Backend]:
        """Open it on its directory."""
        assert isinstance(options, ProcessOptions)
        directory = Path(options.directory)
        await asyncio.to_thread(directory.mkdir, 0o700, True, True)
        yield ProcessImages(directory, ctx)


class _Plugin:
    @hookimpl
    def hatoba_backend_types(self) -> list[BackendType]:
        """The type `process-images`."""
        return [ProcessImagesType()]


plugin = _Plugin()


def end_all(directory: Path) -> bool:
    """Ask every container to end; whether all have. Blocks."""
    left = [home for home in directory.glob("*") if not (home / "code").exists()]
    for home in left:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((home / "pid").read_text()), signal.SIGTERM)
    return not left


def install(target: Path) -> None:
    """Make `target` a place from which a server can load this plug-in. Blocks."""
    distribution = target / "process_images-1.dist-info"
    distribution.mkdir(parents=True)
    (target / "process_images.py").write_text(Path(__file__).read_text())
    (distribution / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: process-images\nVersion: 1\n"
    )
    (distribution / "entry_points.txt").write_text(
        "[hatoba.backends]\nprocess-images = process_images:plugin\n"
    )
