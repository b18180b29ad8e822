"""What nobody tells: that time goes by. Pods that will never begin are ended, faults remembered."""

from __future__ import annotations

import contextlib

import structlog

from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu.board import Board
from hatoba_plugins.backends.k8s_gpu.client import Refusal, Unreached
from hatoba_plugins.backends.k8s_gpu.jobs import KubeJobs
from hatoba_plugins.backends.k8s_gpu.objects import SeenJob
from hatoba_plugins.backends.k8s_gpu.states import Doom, doom
from hatoba_plugins.values import ExitKind

log = structlog.get_logger(__name__)
LOOK_EVERY = 1.0


class Faults:
    """Nodes on which a GPU failed, for a while."""

    def __init__(self, ctx: BackendContext, pause: float) -> None:
        self._clock = ctx.clock
        self._pause = pause
        self._until: dict[str, float] = {}

    def note(self, node: str) -> None:
        """A GPU failed there."""
        if node:
            self._until[node] = self._clock.monotonic() + self._pause

    def now(self) -> frozenset[str]:
        """Nodes that are not to be asked for GPUs."""
        at = self._clock.monotonic()
        self._until = {node: until for node, until in self._until.items() if until > at}
        return frozenset(self._until)


class Tender:
    """Looks once a second at what the watches told."""

    def __init__(self, board: Board, jobs: KubeJobs, ctx: BackendContext, faults: Faults) -> None:
        self._board = board
        self._jobs = jobs
        self._clock = ctx.clock
        self._faults = faults
        self._doomed: dict[str, tuple[float, Doom]] = {}
        """By Job: since when, and what its pod waits for in vain."""
        board.changed = self._changed

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._clock.sleep(LOOK_EVERY)
            self._board.tick()
            for name in self._due():
                await self._end(name)

    def _changed(self, job: SeenJob) -> None:
        """Look at one Job's pods."""
        self._note_faults(job)
        found = None
        if not job.verdict and not job.finished:
            pods = [pod for pod in self._board.pods_of(job.name) if not pod.over]
            found = next((one for pod in pods if (one := doom(pod))), None)
        if found is None:
            self._doomed.pop(job.name, None)
            return
        since, before = self._doomed.get(job.name, (self._clock.monotonic(), found))
        # A pull that is tried again says so between two errors; the worse news stays.
        worse = min(before, found, key=lambda one: one.after)
        self._doomed[job.name] = (since, worse)

    def _note_faults(self, job: SeenJob) -> None:
        for member in job.members:
            told = self._board.told(member)
            if told and told.exit and told.exit.kind is ExitKind.DEVICE_FAULT:
                self._faults.note(told.host)

    def _due(self) -> list[str]:
        now = self._clock.monotonic()
        return [name for name, (since, why) in self._doomed.items() if since + why.after <= now]

    async def _end(self, name: str) -> None:
        _, why = self._doomed.pop(name)
        job = self._board.jobs.get(name)
        if job is None:
            return
        with contextlib.suppress(Refusal, Unreached):
            log.info("k8s.never_begins", job=name, why=why.exit.message)
            await self._jobs.end(job, why.exit, 0.0)
