"""An attempt's course in a pod: one container stages, another sees to the end of a third."""

from __future__ import annotations

import time

from hatoba.v1 import job_pb2, runner_pb2
from hatoba_worker import exits
from hatoba_worker.attempts import Attempt, Start
from hatoba_worker.course import Course, Parts
from hatoba_worker.exits import Ending
from hatoba_worker.failures import AttemptFailed
from hatoba_worker.keeper.messages import Exit, Usage

_BEGAN = frozenset({exits.EXITED, exits.SIGNALED, exits.OUT_OF_MEMORY, exits.PREEMPTED})


class PodCourse(Course):
    """Takes the pod's attempt along; how its container ended is told by the server."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._told: runner_pb2.AwaitExitResponse | None = None

    async def bring(self, attempt: Attempt, restore: job_pb2.Checkpoint | None) -> bool:
        """Stage it; False when that is over and committed: it failed, or was not wanted."""
        try:
            staged = await self._stage(attempt, restore)
        except AttemptFailed as failure:
            await self._finish(attempt, exits.of_failure(failure))
            return False
        if staged is not None and not attempt.unwanted:
            return True
        await self._finish(attempt, exits.not_started(attempt))
        return False

    async def fail(self, attempt: Attempt, ending: Ending) -> None:
        """What was staged cannot be used: commit that."""
        await self._finish(attempt, ending)

    async def take_up(self, attempt: Attempt) -> None:
        """From the first sign of the user's code to its end; again after a sidecar's death."""
        self._parts.reporter.resume(attempt)
        await self.follow(attempt)

    def ended(self, attempt: Attempt, told: runner_pb2.AwaitExitResponse) -> None:
        """Its container ended, as the backend saw it."""
        self._told = told
        at = told.time.ToNanoseconds() / 1e9 or time.time()
        if attempt.begun is None and told.kind in _BEGAN:
            attempt.begun = Start(at, 0, "none")
        attempt.exit = Exit(
            exit_code=None if told.signal else told.exit_code,
            signal=told.signal or None,
            oom=told.kind == exits.OUT_OF_MEMORY,
            reason="stop" if attempt.why else "exited",
            ended_at=at,
            usage=Usage(attempt.cpu_seconds, 0.0, attempt.memory_peak),
        )
        attempt.is_gone.set()
        attempt.ended.set()

    def ending_of(self, attempt: Attempt) -> Ending:
        """How it ended: what we ended ourselves ended for our reason."""
        told = self._told
        assert told is not None
        if attempt.why and told.kind in (exits.EXITED, exits.SIGNALED):
            return exits.of_exit(attempt, attempt.exit)
        return Ending(told.kind, told.exit_code, told.signal, told.message)
