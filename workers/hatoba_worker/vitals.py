"""What is told every few seconds: that the host lives, what its attempts use, and their spans."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hatoba.v1 import worker_pb2
from hatoba_worker import gpus
from hatoba_worker.absence import Absence
from hatoba_worker.attempts import Attempt, Book
from hatoba_worker.executors import Executor
from hatoba_worker.reports import heartbeat
from hatoba_worker.session import Outlet
from hatoba_worker.spans import Spans

BEAT = 10.0
SPANS_EVERY = 0.2


class Vitals:
    """Measures attempts, keeping their peaks, and sends heartbeats and spans."""

    def __init__(
        self,
        book: Book,
        executor: Executor,
        session: Outlet,
        spans: Spans,
        absence: Absence,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._book = book
        self._executor = executor
        self._session = session
        self._spans = spans
        self._absence = absence
        self._sleep = sleep

    async def beat(self) -> None:
        """Every 10 s: measure what runs, and say that it lives; until cancelled."""
        while True:
            before = self._session.sent
            await self._sleep(BEAT)
            await self.measure()
            for attempt in self._book.live.values():
                if _beats(attempt):
                    self._session.send(worker_pb2.WorkerItem(heartbeat=heartbeat(attempt)))
            if self._session.sent == before:
                self._session.send(worker_pb2.WorkerItem(alive=worker_pb2.WorkerAlive()))

    async def listen(self) -> None:
        """Have the server answer often enough for who may not be without it; until cancelled."""
        while True:
            names, seconds = await self._absence.next_beat()
            for name in names:
                attempt = self._book.live.get(name)
                if attempt is not None and _beats(attempt):
                    self._session.send(worker_pb2.WorkerItem(heartbeat=heartbeat(attempt)))
            await self._sleep(seconds)

    async def measure(self) -> None:
        """Look at what everything uses now."""
        for sample in await self._executor.sample():
            attempt = self._book.live.get(sample.attempt)
            if attempt is not None:
                attempt.cpu_seconds = max(attempt.cpu_seconds, sample.cpu_seconds)
                attempt.memory_peak = max(attempt.memory_peak, sample.rss_bytes)
        holders = [each for each in self._book.live.values() if each.running and each.launch.gpus]
        used = await asyncio.to_thread(gpus.use) if holders else {}
        for attempt in holders:
            now = max((used.get(gpu, 0.0) for gpu in attempt.launch.gpus), default=0.0)
            attempt.gpu_peak = max(attempt.gpu_peak, now)

    async def send_spans(self) -> None:
        """Send what was made five times a second, until cancelled."""
        while True:
            await self._sleep(SPANS_EVERY)
            item = self._spans.take() if self._session.greeted else None
            if item is not None:
                self._session.send(item)


def _beats(attempt: Attempt) -> bool:
    return attempt.granted and not attempt.committed.is_set() and not attempt.dropped
