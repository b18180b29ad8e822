"""The course of one attempt, from the granted claim to the moment it is forgotten.

Each step can be taken again: a worker that was killed looks at journal and keeper, and goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from hatoba.scopes import lapse
from hatoba.v1 import common_pb2, job_pb2, runner_pb2, worker_pb2
from hatoba_worker import exits, logged, tinyfiles
from hatoba_worker.absence import Absence
from hatoba_worker.attempts import Attempt, Book, Start, Why
from hatoba_worker.burials import Burials
from hatoba_worker.executors import Executor
from hatoba_worker.exits import Ending
from hatoba_worker.failures import AttemptFailed, output_failed
from hatoba_worker.keeper.messages import Spawn, Spawned, SpawnFailed
from hatoba_worker.logs import FILES, LogShipper
from hatoba_worker.reports import Reporter, heartbeat
from hatoba_worker.session import Outlet
from hatoba_worker.spans import Spans
from hatoba_worker.staging import SAVE_FILE, STOP_FILE, Stager
from hatoba_worker.streams_in import InputStreams
from hatoba_worker.tails import last_lines
from hatoba_worker.timeouts import Timeouts
from hatoba_worker.transfers import TransferFailed, Transfers

log = structlog.get_logger(__name__)

Way = Coroutine[Any, Any, None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a course needs of the worker."""

    book: Book
    executor: Executor
    session: Outlet
    stager: Stager
    shipper: LogShipper
    reporter: Reporter
    transfers: Transfers
    spans: Spans
    timeouts: Timeouts
    absence: Absence
    burials: Burials
    streams: InputStreams


class Course:
    """Takes attempts along. One object serves all; what differs is in the attempt."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def begin(self, attempt: Attempt, restore: job_pb2.Checkpoint | None) -> None:
        """From the granted claim to the end."""
        try:
            started = await self._start(attempt, restore)
        except AttemptFailed as failure:
            started = exits.of_failure(failure)
        if isinstance(started, Spawned):
            self._note_start(attempt, started)
        if attempt.dropped:
            await self.discard(attempt)
        elif isinstance(started, Ending):
            await self._finish(attempt, started)
        else:
            await self.follow(attempt)

    async def resume(self, attempt: Attempt) -> None:
        """From the command that an earlier worker began to the end."""
        self._parts.shipper.follow(attempt, ("stdout", "stderr", "build"), known=False)
        self._parts.reporter.resume(attempt)
        await self.follow(attempt)

    async def follow(self, attempt: Attempt) -> None:
        """From the running command to the end."""
        parts = self._parts
        parts.shipper.follow(attempt, ("stdout", "stderr"))
        parts.timeouts.watch(attempt, self.stop)
        parts.absence.watch(attempt, self.stop)
        parts.streams.begin(attempt)
        if attempt.why:
            self._end(attempt)
        await attempt.ended.wait()
        parts.timeouts.forget(attempt.name)
        parts.absence.forget(attempt.name)
        failure = await parts.streams.end(attempt.name)
        if attempt.lost:
            await attempt.is_gone.wait()
        ending = self.ending_of(attempt)
        if failure is not None and ending.kind == exits.EXITED and not ending.good:
            # What it lacked says more than how it took it.
            ending = exits.of_failure(failure)
        await self._finish(attempt, ending)

    def ending_of(self, attempt: Attempt) -> Ending:
        """How its command ended."""
        return exits.of_exit(attempt, attempt.exit)

    async def lose(self, attempt: Attempt) -> None:
        """The machine was started anew: nothing of it is left, and nobody saw its end."""
        attempt.is_gone.set()
        await self._finish(attempt, Ending(exits.LOST, message="its host was started anew"))

    async def give_up(self, attempt: Attempt, problem: str) -> None:
        """The worker itself failed on this attempt: end it, and say so."""
        if attempt.begun is not None:
            self._parts.executor.stop(attempt.name, 0.0)
            await attempt.is_gone.wait()
        attempt.is_gone.set()
        kind = exits.STAGING_FAILED if attempt.begun is None else exits.OUTPUT_FAILED
        commit = self._commit(attempt, self._end_ns(attempt))
        _fill(commit, Ending(kind, message=f"the worker failed on it: {problem}"[:4096]), ())
        commit.gone = True
        await self._tell(attempt, commit)
        self.forget(attempt, "GIVEN_UP")

    def stop(self, attempt: Attempt, why: Why, grace: float) -> None:
        """The attempt is to end, whatever it does now."""
        if attempt.ended.is_set() or attempt.committed.is_set():
            return
        self._parts.book.stopped(attempt, why, grace)
        if attempt.begun is not None:
            self._end(attempt)
        elif attempt.interrupt is not None:
            attempt.interrupt()

    def ask_to_save(self, attempt: Attempt, seconds: float) -> None:
        """The attempt may save a checkpoint; it is stopped after so long."""
        path = attempt.path(SAVE_FILE)
        if not attempt.running or attempt.why or tinyfiles.exists(path):
            return
        try:
            # Readable also for a container, whose user is another.
            tinyfiles.swap(path, f"{time.time() + seconds:.3f}".encode(), 0o644)
        except OSError as error:
            log.warning("save.file", attempt=attempt.name, error=str(error))

    def drop(self, attempt: Attempt) -> bool:
        """The server wants nothing more of it; False when nothing but `discard` is left to do."""
        if attempt.granted and attempt.begun is None and not attempt.is_gone.is_set():
            # On its way to the keeper, perhaps: its course sees the mark.
            if attempt.interrupt is not None:
                attempt.interrupt()
            return True
        return False

    def _end(self, attempt: Attempt) -> None:
        try:
            tinyfiles.write(attempt.path(STOP_FILE), b"")
        except OSError as error:
            log.warning("stop.file", attempt=attempt.name, error=str(error))
        self._parts.executor.stop(attempt.name, attempt.grace)

    # -- start ----------------------------------------------------------------------------------

    async def _start(
        self, attempt: Attempt, restore: job_pb2.Checkpoint | None
    ) -> Spawned | Ending:
        if attempt.unwanted:
            return exits.not_started(attempt)
        spawn = self._parts.stager.at_once(attempt, restore)
        if spawn is None:
            spawn = await self._stage(attempt, restore)
        if spawn is None or attempt.unwanted:
            return exits.not_started(attempt)
        started = await self._parts.executor.start(spawn)
        if isinstance(started, SpawnFailed):
            return exits.of_spawn(attempt, started)
        return started

    async def _stage(self, attempt: Attempt, restore: job_pb2.Checkpoint | None) -> Spawn | None:
        """Bring in what is needed; None when a stop came meanwhile."""
        self._parts.shipper.follow(attempt, ("build",))
        try:
            async with asyncio.timeout(None) as limit:
                attempt.interrupt = lambda: lapse(limit)
                return await self._parts.stager.bring(attempt, restore)
        except TimeoutError:
            return None
        finally:
            attempt.interrupt = None

    def _note_start(self, attempt: Attempt, started: Spawned) -> None:
        """The command runs: tell the server."""
        attempt.begun = Start(
            started.started_at, started.start_ticks, started.limit_by, started.image
        )
        self._parts.session.send(started_item(attempt))
        start = round(started.started_at * 1e9)
        self._parts.spans.add(attempt.launch, "job.stage", (attempt.launched_ns, start))

    # -- end ------------------------------------------------------------------------------------

    async def _finish(self, attempt: Attempt, ending: Ending) -> None:
        ended_ns = self._end_ns(attempt)
        self._trace_run(attempt, ending, ended_ns)
        sizes = self._parts.shipper.end(attempt)
        commit = self._commit(attempt, ended_ns)
        commit.log_sizes.update(sizes)
        if attempt.begun is not None:
            await self._parts.reporter.drain(attempt)
            ending = await self._bring_out(attempt, ending, commit)
            ending = await self._bring_out_models(attempt, ending, commit)
        _fill(commit, ending, self._lines(attempt, ending))
        if attempt.begun is None:
            attempt.is_gone.set()
        commit.gone = attempt.is_gone.is_set()
        await self._tell(attempt, commit)
        times = (ended_ns, time.time_ns())
        self._parts.spans.add(attempt.launch, "job.commit", times)
        await self._let_go(attempt, commit)

    def _commit(self, attempt: Attempt, ended_ns: int) -> runner_pb2.CommitAttemptRequest:
        commit = runner_pb2.CommitAttemptRequest(
            attempt=attempt.name, fence=attempt.fence, nonce=attempt.nonce
        )
        commit.end_time.FromNanoseconds(ended_ns)
        if attempt.begun is not None:
            commit.start_time.FromNanoseconds(round(attempt.begun.at * 1e9))
        if attempt.exit is not None:
            used = attempt.exit.usage
            attempt.cpu_seconds = max(attempt.cpu_seconds, used.utime + used.stime)
            attempt.memory_peak = max(attempt.memory_peak, used.maxrss)
        commit.usage.CopyFrom(heartbeat(attempt).usage)
        return commit

    async def _bring_out(
        self, attempt: Attempt, ending: Ending, commit: runner_pb2.CommitAttemptRequest
    ) -> Ending:
        outputs = attempt.path("outputs")
        if ending.kind == exits.LOST or tinyfiles.is_empty(outputs):
            return ending
        try:
            manifest: common_pb2.ManifestRef = await self._parts.transfers.upload(Path(outputs))
        except (TransferFailed, OSError) as error:
            log.warning("outputs.failed", attempt=attempt.name, error=str(error))
            # Another failure than this one says more.
            failure = output_failed(f"the outputs could not be brought out: {error}")
            return exits.of_failure(failure) if ending.good else ending
        commit.outputs.CopyFrom(manifest)
        return ending

    async def _bring_out_models(
        self, attempt: Attempt, ending: Ending, commit: runner_pb2.CommitAttemptRequest
    ) -> Ending:
        """Store what the job logged; nothing becomes a version of a job that did not end well."""
        if not ending.good:
            return ending
        try:
            commit.models.extend(await logged.bring_out(attempt, self._parts.transfers))
        except (TransferFailed, OSError) as error:
            log.warning("models.failed", attempt=attempt.name, error=str(error))
            failure = output_failed(f"a logged model could not be brought out: {error}")
            return exits.of_failure(failure)
        return ending

    async def _tell(self, attempt: Attempt, commit: runner_pb2.CommitAttemptRequest) -> None:
        item = worker_pb2.WorkerItem(commit=commit)
        attempt.unanswered["commit"] = item
        self._parts.session.send(item)
        await attempt.committed.wait()

    async def _let_go(self, attempt: Attempt, commit: runner_pb2.CommitAttemptRequest) -> None:
        await self._parts.shipper.shipped(attempt)
        await attempt.is_gone.wait()
        if not commit.gone:
            self._parts.session.send(gone_item(attempt.name, attempt.fence))
        attempt.outcome = commit.SerializeToString()
        self.forget(attempt, runner_pb2.ExitKind.Name(commit.kind))

    def forget(self, attempt: Attempt, outcome: str) -> None:
        """Remove all that is kept of an attempt that is over, but its name."""
        name = attempt.name
        self._parts.shipper.drop(name)
        self._parts.reporter.forget(name)
        self._parts.timeouts.forget(name)
        self._parts.absence.forget(name)
        self._parts.burials.add(attempt, outcome)

    async def discard(self, attempt: Attempt) -> None:
        """End an attempt that the server wants nothing more of, and forget it."""
        if attempt.begun is not None:
            self._parts.executor.stop(attempt.name, 0.0)
            await attempt.is_gone.wait()
        self._parts.session.send(gone_item(attempt.name, attempt.fence))
        self.forget(attempt, "DROPPED")

    def _lines(self, attempt: Attempt, ending: Ending) -> tuple[str, ...]:
        if ending.good or ending.lines or attempt.begun is None:
            return ending.lines
        lines = last_lines(attempt.path(FILES["stderr"]))
        return tuple(lines or last_lines(attempt.path(FILES["stdout"])))

    def _end_ns(self, attempt: Attempt) -> int:
        return round(attempt.exit.ended_at * 1e9) if attempt.exit else time.time_ns()

    def _trace_run(self, attempt: Attempt, ending: Ending, ended_ns: int) -> None:
        error = "" if ending.good else runner_pb2.ExitKind.Name(ending.kind)
        if attempt.begun is None:
            times = (attempt.launched_ns, ended_ns)
            self._parts.spans.add(attempt.launch, "job.stage", times, error)
            return
        times = (round(attempt.begun.at * 1e9), ended_ns)
        self._parts.spans.add(attempt.launch, "job.exec", times, error)


def started_item(attempt: Attempt) -> worker_pb2.WorkerItem:
    """Tell that the user's code began."""
    told = worker_pb2.AttemptStarted(attempt=attempt.name, fence=attempt.fence)
    if attempt.begun is not None:
        told.time.FromNanoseconds(round(attempt.begun.at * 1e9))
        if attempt.begun.limit_by != "none":
            told.memory_limit_by = attempt.begun.limit_by
    return worker_pb2.WorkerItem(started=told)


def gone_item(name: str, fence: int) -> worker_pb2.WorkerItem:
    """Tell that nothing of an attempt is left here."""
    return worker_pb2.WorkerItem(gone=worker_pb2.AttemptGone(attempt=name, fence=fence))


def _fill(commit: runner_pb2.CommitAttemptRequest, ending: Ending, lines: tuple[str, ...]) -> None:
    commit.kind = ending.kind
    commit.exit_code = ending.exit_code
    commit.signal = ending.signal
    commit.message = ending.message
    commit.last_log_lines.extend(lines)
