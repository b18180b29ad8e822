"""From the spools of attempts to the server: metrics, progress, checkpoints; models for later."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from hatoba.v1 import runner_pb2, worker_pb2
from hatoba_worker import spool, tinyfiles
from hatoba_worker.attempts import Attempt, Book, Checkpoint
from hatoba_worker.session import Outlet
from hatoba_worker.transfers import TransferFailed, Transfers

log = structlog.get_logger(__name__)

POLL = 0.2
WINDOW = 4
PROGRESS_EVERY = 1.0


class Reporter:
    """Reads the spools of running attempts, and keeps at most `WINDOW` reports of each unanswered.

    What the server has not stored stays in the spool: a server that is away costs no memory.
    """

    def __init__(
        self,
        book: Book,
        session: Outlet,
        transfers: Transfers,
        tasks: asyncio.TaskGroup,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._book = book
        self._session = session
        self._transfers = transfers
        self._tasks = tasks
        self._sleep = sleep
        self._progress_sent: dict[str, float] = {}
        self._uploads: dict[str, asyncio.Task[None]] = {}
        self._moved: dict[str, asyncio.Event] = {}

    async def poll(self) -> None:
        """Look at the spools of what runs five times a second, until cancelled."""
        while True:
            await self._sleep(POLL)
            read = [self.read(attempt) for attempt in self._book.live.values() if attempt.running]
            if any(read):
                self._book.save()

    def read(self, attempt: Attempt) -> bool:
        """Take in what is new, as far as the window goes; True when there was something."""
        path = attempt.path(spool.FILE)
        reports = attempt.reports
        start = reports.read
        while len(reports.ends) < WINDOW and tinyfiles.size(path) > reports.read:
            lines = spool.read(path, reports.read)
            if lines.end == reports.read:
                break
            self._take(attempt, lines)
        return reports.read > start

    def resume(self, attempt: Attempt) -> None:
        """Make the reports that a dead worker had cut and not seen stored, and go on."""
        start = attempt.reports.acked_end
        for number, end in sorted(attempt.reports.ends.items()):
            self._report(attempt, number, spool.read(attempt.path(spool.FILE), start, end))
            start = end
        self._begin_upload(attempt)

    def stored(self, attempt: Attempt, number: int) -> None:
        """The server has stored the reports up to `number`."""
        for each in [each for each in attempt.reports.ends if each <= number]:
            attempt.unanswered.pop(f"metrics {each}", None)
        self._book.acked(attempt, number)
        self.read(attempt)
        self._moved.setdefault(attempt.name, asyncio.Event()).set()

    def checkpoint_stored(self, attempt: Attempt, step: int) -> None:
        """The server has recorded, or refused, a checkpoint."""
        attempt.unanswered.pop("checkpoint", None)
        self._book.stored(attempt, step)
        self._moved.setdefault(attempt.name, asyncio.Event()).set()

    async def drain(self, attempt: Attempt) -> None:
        """Read an ended attempt's spool to its end; return when all is stored."""
        while self.read(attempt) or attempt.reports.ends or self._owes_checkpoint(attempt):
            moved = self._moved.setdefault(attempt.name, asyncio.Event())
            moved.clear()
            # What a full disk keeps from the journal, the next worker reports once more.
            with contextlib.suppress(OSError):
                self._book.save()
            await moved.wait()

    def forget(self, name: str) -> None:
        """Be done with an attempt."""
        self._progress_sent.pop(name, None)
        self._moved.pop(name, None)
        upload = self._uploads.pop(name, None)
        if upload:
            upload.cancel()

    def _take(self, attempt: Attempt, lines: spool.Lines) -> None:
        attempt.reports.malformed += lines.malformed
        if lines.malformed:
            log.warning("spool.malformed", attempt=attempt.name, lines=lines.malformed)
        # Before the cut, of which the next worker believes that all up to it is known.
        for model in lines.models:
            self._book.logged(attempt, model)
        self._report(attempt, self._book.cut(attempt, lines.end), lines)
        if lines.progress is not None:
            attempt.progress = lines.progress
            self._send_progress(attempt)
        if lines.checkpoint is not None:
            self._book.announced(attempt, lines.checkpoint)
            self._begin_upload(attempt)

    def _report(self, attempt: Attempt, number: int, lines: spool.Lines) -> None:
        report = runner_pb2.ReportMetricsRequest(
            attempt=attempt.name, fence=attempt.fence, samples=lines.samples, report=number
        )
        item = worker_pb2.WorkerItem(metrics=report)
        attempt.unanswered[f"metrics {number}"] = item
        self._session.send(item)

    def _send_progress(self, attempt: Attempt) -> None:
        now = time.monotonic()
        if now - self._progress_sent.get(attempt.name, 0.0) >= PROGRESS_EVERY:
            self._progress_sent[attempt.name] = now
            self._session.send(worker_pb2.WorkerItem(heartbeat=heartbeat(attempt)))

    # -- checkpoints ----------------------------------------------------------------------------

    def _owes_checkpoint(self, attempt: Attempt) -> bool:
        found = attempt.checkpoint
        return found is not None and found.step != attempt.stored_step

    def _begin_upload(self, attempt: Attempt) -> None:
        if self._owes_checkpoint(attempt) and attempt.name not in self._uploads:
            task = self._tasks.create_task(self._upload(attempt), name=f"checkpoint {attempt.name}")
            self._uploads[attempt.name] = task

    async def _upload(self, attempt: Attempt) -> None:
        """Bring out the newest checkpoint, and the next newest, until there is none."""
        try:
            while self._owes_checkpoint(attempt):
                found = attempt.checkpoint
                if found is not None and not await self._bring_out(attempt, found):
                    self.checkpoint_stored(attempt, found.step)
        finally:
            self._uploads.pop(attempt.name, None)

    async def _bring_out(self, attempt: Attempt, found: Checkpoint) -> bool:
        root = Path(attempt.path("checkpoints")) / found.directory
        try:
            manifest = await self._transfers.upload(root)
        except (TransferFailed, OSError) as error:
            # The job may have replaced or removed it meanwhile.
            log.warning("checkpoint.failed", attempt=attempt.name, error=str(error))
            return False
        request = runner_pb2.CommitCheckpointRequest(
            attempt=attempt.name,
            fence=attempt.fence,
            step=found.step,
            manifest=manifest,
            metrics=found.metrics,
        )
        item = worker_pb2.WorkerItem(checkpoint=request)
        attempt.unanswered["checkpoint"] = item
        self._session.send(item)
        while attempt.stored_step != found.step:
            moved = self._moved.setdefault(attempt.name, asyncio.Event())
            moved.clear()
            await moved.wait()
        return True


def heartbeat(attempt: Attempt) -> runner_pb2.HeartbeatRequest:
    """What is known of a running attempt: newest progress, highest use."""
    request = runner_pb2.HeartbeatRequest(attempt=attempt.name, fence=attempt.fence)
    if attempt.progress is not None:
        request.progress.CopyFrom(attempt.progress)
    request.usage.cpu_seconds = attempt.cpu_seconds
    request.usage.memory_peak_bytes = attempt.memory_peak
    request.usage.gpu_peak = attempt.gpu_peak
    if attempt.begun is not None and attempt.begun.limit_by != "none":
        request.usage.memory_limit_by = attempt.begun.limit_by
    if attempt.begun is not None:
        request.usage.image = attempt.begun.image
    return request
