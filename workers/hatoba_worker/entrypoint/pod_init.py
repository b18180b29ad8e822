"""`hatoba-entrypoint pod-init`: claims and stages, so that the pod's other containers may begin."""

from __future__ import annotations

import asyncio

import structlog

from hatoba.v1 import job_pb2, runner_pb2
from hatoba_worker.attempts import Attempt
from hatoba_worker.entrypoint import codes, pod_files
from hatoba_worker.entrypoint.claims import (
    Claiming,
    Meeting,
    Refused,
    assignment_of,
    granted,
)
from hatoba_worker.entrypoint.desk import Desk
from hatoba_worker.entrypoint.line import Line
from hatoba_worker.entrypoint.platform import run_of
from hatoba_worker.entrypoint.pod import Pod
from hatoba_worker.entrypoint.pod_course import PodCourse
from hatoba_worker.entrypoint.pod_processes import PodProcesses
from hatoba_worker.entrypoint.signals import on_end
from hatoba_worker.entrypoint.ways import code_of, unless
from hatoba_worker.exits import of_failure
from hatoba_worker.failures import staging_failed
from hatoba_worker.vitals import Vitals

log = structlog.get_logger(__name__)


class PodInit:
    """One life of a pod's init container. A second one after a good first is refused: it cannot
    know whether the user's code began between them.
    """

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._asked = asyncio.Event()

    async def run(self) -> int:
        """Claim and stage; returns the exit code. Raises Refused, Denied and Unreached."""
        pod = self._pod
        on_end(self._asked.set)
        await asyncio.to_thread(self._recover)
        async with pod.calls.open():
            claiming = Claiming(pod.calls, pod.settings.claim_seconds)
            with Meeting(pod.settings) as meeting:
                answer = await unless(self._asked, claiming.run(meeting.address))
            if answer is None:
                return codes.ENDED
            return await self._staged(answer)

    def _recover(self) -> None:
        pod = self._pod
        if pod_files.is_staged(pod.private):
            raise Refused("it was staged here before, and its code may have run since")
        if not pod.keys.load():
            pod.keys.make(run_of(pod.environ))
        (pod.cache / "trees").mkdir(mode=0o700, parents=True, exist_ok=True)
        pod.book.load()

    def _enter(self, answer: runner_pb2.ClaimAttemptResponse) -> Attempt:
        pod = self._pod
        launch = assignment_of(answer)
        # The image of the user's container is its environment.
        launch.ClearField("environment")
        attempt = pod.book.live.get(launch.attempt) or pod.book.enter(launch)
        if attempt is None:
            raise Refused("what it assigns is over")
        pod.book.save()
        granted(attempt, answer)
        return attempt

    async def _staged(self, answer: runner_pb2.ClaimAttemptResponse) -> int:
        pod = self._pod
        attempt = self._enter(answer)
        restore = answer.checkpoint if answer.HasField("checkpoint") else None
        desk = Desk(attempt, pod.book, pod.absence)
        line = Line(pod.calls, desk)
        async with asyncio.TaskGroup() as tasks:
            processes = PodProcesses(attempt, tasks)
            parts = pod.parts(tasks, line, processes)
            course = PodCourse(parts)
            desk.seat(course, parts.reporter)
            await asyncio.to_thread(parts.stager.prepare)
            vitals = Vitals(pod.book, processes, line, parts.spans, pod.absence)
            others = [
                tasks.create_task(line.run(), name="calls"),
                tasks.create_task(vitals.beat(), name="heartbeats"),
                tasks.create_task(self._stop_when_asked(course, attempt), name="stop"),
            ]
            staged = await unless(desk.over, self._bring(course, attempt, restore))
            for task in others:
                task.cancel()
        if staged:
            return 0
        return codes.REFUSED if staged is None else code_of(attempt, desk.accepted)

    async def _stop_when_asked(self, course: PodCourse, attempt: Attempt) -> None:
        await self._asked.wait()
        course.stop(attempt, "platform", 0.0)

    async def _bring(
        self, course: PodCourse, attempt: Attempt, restore: job_pb2.Checkpoint | None
    ) -> bool:
        """Whether the user's container may begin; if not, the end is committed."""
        pod = self._pod
        if not await course.bring(attempt, restore):
            return False
        try:
            step = restore.step if restore else None
            await asyncio.to_thread(pod_files.complete, pod.shared, step)
            await asyncio.to_thread(pod_files.mark_staged, pod.private)
        except OSError as error:
            await course.fail(attempt, of_failure(staging_failed(f"no room: {error}")))
            return False
        return True
