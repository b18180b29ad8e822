"""One reader of logs: what is stored, and with follow what comes, to the attempt's recorded end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.logs import STREAMS, LogStore
from hatoba_scheduler.domain.records import Attempt, Job
from hatoba_scheduler.errors import NotFound
from hatoba_scheduler.store.base import Store

Response = job_pb2.TailLogsResponse
LOOK_AGAIN = 1.0
SILENT_LOOKS = 60
"""An ended attempt of which nothing came for so many looks in a row sends no more: what had it is
gone. What is missing is named as a gap, and the stream ends."""


class LogTail:
    """Answers one TailLogs call."""

    def __init__(
        self, store: Store, ledger: Ledger, logs: LogStore, stopping: asyncio.Event
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._logs = logs
        self._stopping = stopping

    async def tail(self, job: Job, request: job_pb2.TailLogsRequest) -> AsyncIterator[Response]:
        """Pieces in order of each stream; `end` when the attempt's end was reached."""
        if request.index >= job.size:
            raise NotFound(f"{job.name} has tasks 0 to {job.size - 1}, not {request.index}")
        attempt = await self._begun(job, request)
        if attempt is None:
            # Of a job that has not ended something may come yet: there is no end to tell of.
            if await self._job_ended(job):
                yield Response(end=True)
            return
        async for response in self._tail_attempt(attempt, request):
            yield response

    async def _begun(self, job: Job, request: job_pb2.TailLogsRequest) -> Attempt | None:
        """The attempt; with follow, once there is one; None when there will be none."""
        while True:
            grown = self._logs.growth(f"{job.uid}:{request.index}")
            attempt = await self._attempt(job, request)
            over = not request.follow or self._stopping.is_set() or await self._job_ended(job)
            if attempt is not None or over:
                return attempt
            await _wait(grown)

    async def _job_ended(self, job: Job) -> bool:
        now = await self._store.job(job.uid)
        return now is None or now.state.terminal

    async def _attempt(self, job: Job, request: job_pb2.TailLogsRequest) -> Attempt | None:
        number = request.attempt or await self._newest(job, request.index)
        found = await self._store.attempts(job.uid, request.index, (request.index, number - 1), 1)
        if not request.attempt:
            return found[0] if found else None
        if not found or found[0].number != request.attempt:
            raise NotFound(f"{job.name}[{request.index}] has no attempt {request.attempt}")
        return found[0]

    async def _newest(self, job: Job, index: int) -> int:
        """Number of the task's newest attempt; 1 when there is none yet."""
        tasks = await self._store.tasks(job.uid, index - 1, 1)
        return tasks[0].attempt if tasks and tasks[0].index == index else 1

    async def _tail_attempt(
        self, attempt: Attempt, request: job_pb2.TailLogsRequest
    ) -> AsyncIterator[Response]:
        source = self._logs.sources.get(attempt.backend)
        if source is not None:
            await source.fresh(attempt.name)
        at = await self._start(attempt, request)
        silent = 0
        while True:
            grown = self._logs.growth(attempt.name)
            if source is not None and request.follow:
                source.read(attempt.name)
            attempt = await self._store.attempt(attempt.name) or attempt
            comes = source is not None and source.expects(attempt.name)
            before = sum(at.values())
            for stream in at:
                async for response in self._read(attempt, stream, at):
                    yield response
            still = attempt.state.terminal and not comes and sum(at.values()) == before
            silent = silent + 1 if still else 0
            if request.follow and silent > SILENT_LOOKS:
                for response in self._missing(attempt, at):
                    yield response
            if attempt.state.terminal and not comes and self._complete(attempt, at):
                yield Response(attempt=attempt.number, end=True)
                return
            if not request.follow:
                return
            if self._stopping.is_set():
                return
            await _wait(grown)

    async def _start(self, attempt: Attempt, request: job_pb2.TailLogsRequest) -> dict[str, int]:
        """From where on each stream is told."""
        streams = [request.stream] if request.stream else list(STREAMS)
        at = dict.fromkeys(streams, request.offset)
        if request.tail_lines:
            for stream in streams:
                at[stream] = await self._logs.tail_offset(attempt, stream, request.tail_lines)
        return at

    def _missing(self, attempt: Attempt, at: dict[str, int]) -> list[Response]:
        """What never came of an ended attempt, named as gaps up to its recorded end."""
        found = []
        for stream, size in attempt.log_sizes:
            if stream in at and at[stream] < size:
                gap = size - at[stream]
                found.append(
                    Response(
                        attempt=attempt.number, stream=stream, offset=at[stream], gap_bytes=gap
                    )
                )
                at[stream] = size
        return found

    def _complete(self, attempt: Attempt, at: dict[str, int]) -> bool:
        final = dict(attempt.log_sizes)
        return all(offset >= final.get(stream, 0) for stream, offset in at.items())

    async def _read(
        self, attempt: Attempt, stream: str, at: dict[str, int]
    ) -> AsyncIterator[Response]:
        while (piece := await self._logs.read(attempt, stream, at[stream])) is not None:
            yield Response(
                attempt=attempt.number,
                stream=stream,
                offset=piece.offset,
                data=piece.data,
                gap_bytes=piece.gap,
            )
            at[stream] = piece.offset + len(piece.data) + piece.gap


async def _wait(grown: asyncio.Event) -> None:
    """Until something moved, or for a while."""
    try:
        async with asyncio.timeout(LOOK_AGAIN):
            await grown.wait()
    except TimeoutError:
        return
