"""`hatoba-entrypoint run`: claims, stages, runs, ships and commits, in the job's own container."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import structlog

from hatoba.v1 import runner_pb2, worker_pb2
from hatoba_worker import host, trees
from hatoba_worker.absence import Absence
from hatoba_worker.attempts import Attempt, Book
from hatoba_worker.course import Course, Parts, Way
from hatoba_worker.entrypoint import codes
from hatoba_worker.entrypoint.calls import Calls
from hatoba_worker.entrypoint.claims import (
    Claiming,
    Meeting,
    Refused,
    assignment_of,
    granted,
)
from hatoba_worker.entrypoint.command import Command, Memory
from hatoba_worker.entrypoint.desk import Desk
from hatoba_worker.entrypoint.keys import Keys
from hatoba_worker.entrypoint.line import Line
from hatoba_worker.entrypoint.platform import run_of
from hatoba_worker.entrypoint.settings import Settings
from hatoba_worker.entrypoint.signals import on_end
from hatoba_worker.entrypoint.staging import PlatformSecrets, container_environment
from hatoba_worker.entrypoint.tee import Tee
from hatoba_worker.entrypoint.ways import NotBuried, along, code_of, grace_of, unless
from hatoba_worker.environments import Environments
from hatoba_worker.homes import Homes
from hatoba_worker.keeper.client import end_keeper
from hatoba_worker.keeper.messages import AttemptStatus, Exited, KeeperInfo
from hatoba_worker.logs import FILES, LogShipper
from hatoba_worker.reports import Reporter, heartbeat
from hatoba_worker.server_transfers import ServerTransfers
from hatoba_worker.spans import Spans
from hatoba_worker.staging import Stager
from hatoba_worker.streams_in import InputStreams
from hatoba_worker.timeouts import Timeouts
from hatoba_worker.trees import TreeCache
from hatoba_worker.vitals import Vitals

log = structlog.get_logger(__name__)
PASSED_ON = (
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
_LAST_SPANS = 2.0


class Runner:
    """One life of the runner in an image; a next one goes on from where it stands."""

    def __init__(self, settings: Settings, directory: Path, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._directory = directory
        self._environ = environ
        self._keys = Keys(directory, settings.attempt, settings.fence)
        self._calls = Calls(settings.target, self._keys, settings.attempt, settings.fence)
        boot = host.boot_id()
        self._book = Book(directory, boot, lambda: self._keys.nonce)
        self._absence = Absence(directory, boot)
        self._meeting = Meeting(settings)
        self._memory = Memory()
        self._asked = asyncio.Event()
        self._late = asyncio.Event()
        self._held: asyncio.Future[dict[str, AttemptStatus]]
        self._attempt: Attempt | None = None
        self._course: Course | None = None
        self._line: Line | None = None

    async def run(self) -> int:
        """Go the whole way; returns the exit code. Raises Refused, Denied and Unreached."""
        self._held = asyncio.get_running_loop().create_future()
        self._hear_signals()
        await asyncio.to_thread(self._recover)
        async with self._calls.open():
            attempt = next(iter(self._book.live.values()), None)
            answer = None
            if attempt is None or not self._keys.credential:
                answer = await self._claim()
                if answer is None:
                    return codes.ENDED
                attempt = attempt or self._enter(answer)
            return await self._take_along(attempt, answer)

    def _recover(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._keys.load():
            self._keys.make(run_of(self._environ))
        for name in ("attempts", "cache/trees"):
            (self._directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._book.load()
        self._absence.load()
        trees.tidy(self._directory / "cache" / "trees")

    # -- signals --------------------------------------------------------------------------------

    def _hear_signals(self) -> None:
        on_end(self._asked_to_end)

    def _asked_to_end(self) -> None:
        """The platform takes the container away, soon."""
        if self._asked.is_set():
            return
        self._asked.set()
        seconds = self._settings.term_seconds
        asyncio.get_running_loop().call_later(seconds, self._late.set)
        self._end_command()
        self._ask_why()

    def _end_command(self) -> None:
        attempt, course = self._attempt, self._course
        if attempt is None or course is None:
            return
        grace = grace_of(attempt, self._settings.term_seconds)
        course.ask_to_save(attempt, grace)
        course.stop(attempt, "platform", grace)

    def _ask_why(self) -> None:
        """The platform may only be doing what the server wants: its answer tells."""
        if self._attempt is not None and self._line is not None:
            item = worker_pb2.WorkerItem(heartbeat=heartbeat(self._attempt))
            self._line.send(item)

    # -- claim ----------------------------------------------------------------------------------

    async def _claim(self) -> runner_pb2.ClaimAttemptResponse | None:
        """The granted claim; None when we were asked to end meanwhile."""
        claiming = Claiming(self._calls, self._settings.claim_seconds)
        with self._meeting:
            return await unless(self._asked, claiming.run(self._meeting.address))

    def _enter(self, answer: runner_pb2.ClaimAttemptResponse) -> Attempt:
        attempt = self._book.enter(assignment_of(answer))
        if attempt is None:
            raise Refused("what it assigns is over")
        self._book.save()
        return attempt

    # -- the course -----------------------------------------------------------------------------

    async def _take_along(
        self, attempt: Attempt, answer: runner_pb2.ClaimAttemptResponse | None
    ) -> int:
        self._attempt = attempt
        desk = Desk(attempt, self._book, self._absence)
        line = self._line = Line(self._calls, desk)
        command = Command(self._directory, self)
        for number in PASSED_ON:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(number, command.pass_on, number)
        tee = Tee(_handles(attempt))
        async with asyncio.TaskGroup() as tasks:
            parts = await self._parts(tasks, line, command)
            course = self._course = Course(parts)
            desk.seat(course, parts.reporter)
            others = self._beside(tasks, parts, line, command)
            others.append(tasks.create_task(tee.run(), name="stdout"))
            if self._asked.is_set():
                self._end_command()
            way = await self._way(attempt, answer, command)
            code = await self._go(way, desk) if way else codes.ENDED
            await tee.finish()
            await self._last_spans(parts.spans)
            for task in others:
                task.cancel()
        await end_keeper(self._directory, 0.0)
        return code

    async def _way(
        self,
        attempt: Attempt,
        answer: runner_pb2.ClaimAttemptResponse | None,
        command: Command,
    ) -> Way | None:
        """What is left to do; None when we were asked to end before there was anything."""
        course = self._course
        assert course is not None
        status = (await self._held).get(attempt.name)
        if status is not None and status.failed is None:
            attempt.learn(status)
            attempt.granted = True
            command.pid = status.pid
            return course.resume(attempt)
        answer = answer or await self._claim()
        if answer is None:
            return None
        granted(attempt, answer)
        restore = answer.checkpoint if answer.HasField("checkpoint") else None
        return course.begin(attempt, restore)

    async def _go(self, way: Way, desk: Desk) -> int:
        attempt, course = self._attempt, self._course
        assert attempt is not None
        assert course is not None
        async with asyncio.TaskGroup() as tasks:
            going = tasks.create_task(along(course, attempt, way), name=attempt.name)
            ends = [
                tasks.create_task(self._late.wait(), name="late"),
                tasks.create_task(desk.over.wait(), name="superseded"),
            ]
            await asyncio.wait([going, *ends], return_when=asyncio.FIRST_COMPLETED)
            for task in (going, *ends):
                task.cancel()
        if desk.over.is_set() and not attempt.ended.is_set():
            await course.discard(attempt)
            return codes.REFUSED
        return code_of(attempt, desk.accepted)

    # -- what stands beside it --------------------------------------------------------------------

    async def _parts(self, tasks: asyncio.TaskGroup, line: Line, command: Command) -> Parts:
        data, book = self._directory, self._book
        transfers = ServerTransfers(self._calls)
        environments = Environments(data, self._environ, tasks, embedded=False)
        stager = Stager(
            data,
            self._environ,
            Homes(data / "attempts"),
            TreeCache(data / "cache" / "trees", transfers),
            environments,
            PlatformSecrets(data, self._environ),
            host_has_gpus=False,
            base=container_environment(self._environ),
        )
        await asyncio.to_thread(stager.prepare)
        await asyncio.to_thread(environments.tidy)
        return Parts(
            book=book,
            executor=command,
            session=line,
            stager=stager,
            shipper=LogShipper(book),
            reporter=Reporter(book, line, transfers, tasks),
            transfers=transfers,
            spans=Spans("hatoba-runner"),
            timeouts=Timeouts(),
            absence=self._absence,
            burials=NotBuried(),
            streams=InputStreams(transfers, tasks),
        )

    def _beside(
        self, tasks: asyncio.TaskGroup, parts: Parts, line: Line, command: Command
    ) -> list[asyncio.Task[None]]:
        vitals = Vitals(self._book, command, line, parts.spans, self._absence)
        beside = {
            "calls": line.run(),
            "logs": self._ship(parts.shipper),
            "keeper": command.run(),
            "poll logs": parts.shipper.poll(),
            "poll spool": parts.reporter.poll(),
            "heartbeats": vitals.beat(),
            "signs of life": vitals.listen(),
            "spans": vitals.send_spans(),
        }
        return [tasks.create_task(way, name=name) for name, way in beside.items()]

    async def _ship(self, shipper: LogShipper) -> None:
        await shipper.serve(await self._calls.link())

    async def _last_spans(self, spans: Spans) -> None:
        item = spans.take()
        if item is not None:
            await self._calls.last_spans(list(item.spans.spans), _LAST_SPANS)

    # -- the keeper -----------------------------------------------------------------------------

    def inventory(self, info: KeeperInfo, held: dict[str, AttemptStatus]) -> None:
        """The keeper is there."""
        if not self._held.done():
            self._held.set_result(held)
        elif self._attempt is not None and (status := held.get(self._attempt.name)):
            self._attempt.learn(status)

    def exited(self, event: Exited) -> None:
        """The command ended."""
        attempt = self._attempt
        if attempt is not None and event.attempt == attempt.name:
            attempt.exit = self._memory.judge(event).exit
            attempt.ended.set()
            if event.gone:
                attempt.is_gone.set()

    def gone(self, name: str) -> None:
        """Nothing of the command is left."""
        if self._attempt is not None and name == self._attempt.name:
            self._attempt.is_gone.set()


def _handles(attempt: Attempt) -> dict[str, int]:
    """Where the container's own streams get what each log has."""
    out, err = sys.stdout.fileno(), sys.stderr.fileno()
    streams = {"build": err, "stdout": out, "stderr": err}
    return {attempt.path(FILES[name]): handle for name, handle in streams.items()}
