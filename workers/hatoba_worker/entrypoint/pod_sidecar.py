"""`hatoba-entrypoint pod-sidecar`: stands beside the user's container, and commits its end."""

from __future__ import annotations

import asyncio
import random

import structlog

from hatoba.v1 import runner_pb2
from hatoba_worker.attempts import Attempt, Start
from hatoba_worker.course import Parts, started_item
from hatoba_worker.entrypoint import codes, pod_files
from hatoba_worker.entrypoint.calls import Malformed, Superseded
from hatoba_worker.entrypoint.claims import Refused
from hatoba_worker.entrypoint.desk import Desk
from hatoba_worker.entrypoint.line import Line
from hatoba_worker.entrypoint.pod import Pod
from hatoba_worker.entrypoint.pod_course import PodCourse
from hatoba_worker.entrypoint.pod_processes import PodProcesses
from hatoba_worker.entrypoint.settings import BadSettings
from hatoba_worker.entrypoint.signals import on_end
from hatoba_worker.entrypoint.ways import along, unless
from hatoba_worker.failures import Away
from hatoba_worker.session import Backoff
from hatoba_worker.vitals import Vitals

log = structlog.get_logger(__name__)
LOOK = 0.5
ASK_AGAIN = 0.5
_ENDED = runner_pb2.EXIT_KNOWN_ENDED


class PodSidecar:
    """One life of the sidecar; the kubelet starts another when it dies, which goes on."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._asked = asyncio.Event()

    async def run(self) -> int:
        """Stay until the end is committed; returns the exit code. Raises Refused, BadSettings."""
        pod = self._pod
        on_end(self._asked.set)
        attempt = await asyncio.to_thread(self._recover)
        attempt.granted = True
        async with pod.calls.open():
            return await self._stay(attempt)

    def _recover(self) -> Attempt:
        pod = self._pod
        if not pod.keys.load() or not pod_files.is_staged(pod.private):
            raise BadSettings(
                f"nothing was staged in {pod.private}: init container and sidecar need the same"
                " volume there"
            )
        pod.book.load()
        pod.absence.load()
        pod_files.mark_ready(pod.private)
        attempt = next(iter(pod.book.live.values()), None)
        if attempt is None:
            raise Refused("what was staged here is over")
        return attempt

    async def _stay(self, attempt: Attempt) -> int:
        pod = self._pod
        desk = Desk(attempt, pod.book, pod.absence)
        line = Line(pod.calls, desk)
        async with asyncio.TaskGroup() as tasks:
            processes = PodProcesses(attempt, tasks)
            parts = pod.parts(tasks, line, processes)
            course = PodCourse(parts)
            desk.seat(course, parts.reporter)
            others = self._beside(tasks, parts, line, processes)
            exit_known = self._await_exit(course, attempt, desk, processes)
            others.append(tasks.create_task(exit_known, name="exit"))
            way = self._way(course, attempt, line, processes)
            await unless(desk.over, along(course, attempt, way))
            await pod.last_spans(parts)
            for task in others:
                task.cancel()
        return codes.REFUSED if desk.over.is_set() else 0

    def _beside(
        self, tasks: asyncio.TaskGroup, parts: Parts, line: Line, processes: PodProcesses
    ) -> list[asyncio.Task[None]]:
        pod = self._pod
        vitals = Vitals(pod.book, processes, line, parts.spans, pod.absence)
        beside = {
            "calls": line.run(),
            "poll spool": parts.reporter.poll(),
            "heartbeats": vitals.beat(),
            "signs of life": vitals.listen(),
            "spans": vitals.send_spans(),
        }
        return [tasks.create_task(way, name=name) for name, way in beside.items()]

    async def _way(
        self, course: PodCourse, attempt: Attempt, line: Line, processes: PodProcesses
    ) -> None:
        """Until the code begins, then until it has ended, and what follows."""
        start = await unless(attempt.ended, self._first_sign(processes))
        if start is not None:
            attempt.begun = attempt.begun or start
            line.send(started_item(attempt))
        await course.take_up(attempt)

    async def _first_sign(self, processes: PodProcesses) -> Start:
        while True:
            start = await processes.begun()
            if start is not None:
                return start
            await asyncio.sleep(LOOK)

    async def _await_exit(
        self, course: PodCourse, attempt: Attempt, desk: Desk, processes: PodProcesses
    ) -> None:
        """Once the kubelet says that the others have ended: how.

        Of a pod that is being deleted it tells nobody before we have ended too.
        """
        pod = self._pod
        await self._asked.wait()
        backoff = Backoff(random.random)
        while True:
            try:
                gone = not await asyncio.to_thread(processes.look)
                told = await pod.calls.await_exit(gone=gone)
            except Away as error:
                log.info("server.away", reason=str(error))
                await asyncio.sleep(backoff.next())
                continue
            except (Superseded, Malformed) as error:
                desk.superseded(str(error))
                return
            backoff.reset()
            desk.heard()
            if told.known == _ENDED:
                course.ended(attempt, told)
                return
            await asyncio.sleep(ASK_AGAIN)
