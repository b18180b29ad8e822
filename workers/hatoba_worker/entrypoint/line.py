"""What a course tells, told by unary calls: an item of a worker's stream is one call here."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from hatoba.v1 import job_pb2, runner_pb2, worker_pb2
from hatoba_worker.entrypoint.calls import Calls, Malformed, Superseded
from hatoba_worker.failures import Away
from hatoba_worker.session import Backoff

log = structlog.get_logger(__name__)
T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]
MOST_SPANS = 1000


class Listener(Protocol):
    """Who hears the answers."""

    def heard(self) -> None:
        """The server said something just now."""

    def ordered(self, order: runner_pb2.HeartbeatResponse) -> None:
        """What is wanted of the attempt."""

    def metrics_stored(self, number: int) -> None:
        """Reports up to this number are stored."""

    def checkpoint_stored(self, step: int) -> None:
        """A checkpoint was recorded, or never will be."""

    def committed(self, accepted: bool) -> None:
        """The end is decided; `accepted`: by this commit."""

    def superseded(self, reason: str) -> None:
        """The attempt is not ours any more."""


class Line:
    """Two lanes, so that a sign of life does not wait for a large commit.

    Of heartbeats only the newest is kept. Facts go in order, each until it is answered. What is
    queued is bounded by what its makers leave unanswered.
    """

    def __init__(
        self,
        calls: Calls,
        listener: Listener,
        sleep: Sleep = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._calls = calls
        self._listener = listener
        self._sleep = sleep
        self._jitter = jitter
        self._facts: deque[worker_pb2.WorkerItem] = deque()
        self._fact = asyncio.Event()
        self._beat: runner_pb2.HeartbeatRequest | None = None
        self._due = asyncio.Event()
        self._start: Timestamp | None = None
        self._limit_by = ""
        self._spans: deque[job_pb2.Span] = deque(maxlen=MOST_SPANS)
        self._spanned = asyncio.Event()
        self._sent = 0

    @property
    def greeted(self) -> bool:
        """What is sent is always kept until it can go out."""
        return True

    @property
    def sent(self) -> int:
        """So many calls were answered."""
        return self._sent

    def send(self, item: worker_pb2.WorkerItem) -> None:
        """Queue what there is a call for; a host's other words have no meaning here."""
        match item.WhichOneof("item"):
            case "heartbeat":
                self._beats(item.heartbeat)
            case "started":
                self._started(item.started)
            case "metrics" | "checkpoint" | "commit":
                self._facts.append(item)
                self._fact.set()
            case "spans":
                self._spans.extend(item.spans.spans)
                self._spanned.set()

    def _beats(self, request: runner_pb2.HeartbeatRequest) -> None:
        if self._start is not None:
            request.start_time.CopyFrom(self._start)
        self._beat = request
        self._due.set()

    def _started(self, told: worker_pb2.AttemptStarted) -> None:
        self._start = told.time
        request = runner_pb2.HeartbeatRequest(attempt=told.attempt, fence=told.fence)
        request.usage.memory_limit_by = told.memory_limit_by
        self._beats(request)

    async def run(self) -> None:
        """Tell what is queued, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_beats(), name="heartbeats")
            tasks.create_task(self._tell_facts(), name="facts")
            tasks.create_task(self._tell_spans(), name="spans")

    async def _tell_beats(self) -> None:
        backoff = Backoff(self._jitter)
        while True:
            await self._due.wait()
            self._due.clear()
            if self._beat is None:
                continue
            try:
                order = await self._calls.heartbeat(self._beat)
            except Away as error:
                log.info("server.away", reason=str(error))
                await self._sleep(backoff.next())
                self._due.set()
                continue
            except Superseded as error:
                self._listener.superseded(str(error))
                continue
            except Malformed as error:
                log.error("refused", reason=str(error))
                continue
            backoff.reset()
            self._note()
            self._listener.ordered(order)

    async def _tell_facts(self) -> None:
        while True:
            while not self._facts:
                self._fact.clear()
                await self._fact.wait()
            await self._tell(self._facts[0])
            self._facts.popleft()

    async def _tell(self, item: worker_pb2.WorkerItem) -> None:
        match item.WhichOneof("item"):
            case "metrics":
                await self._tell_metrics(item.metrics)
            case "checkpoint":
                await self._tell_checkpoint(item.checkpoint)
            case "commit":
                await self._tell_commit(item.commit)

    async def _tell_metrics(self, request: runner_pb2.ReportMetricsRequest) -> None:
        stored = request.report
        with self._refusals():
            stored = (await self._patiently(lambda: self._calls.metrics(request))).acked_report
        self._listener.metrics_stored(stored)

    async def _tell_checkpoint(self, request: runner_pb2.CommitCheckpointRequest) -> None:
        with self._refusals():
            await self._patiently(lambda: self._calls.checkpoint(request))
        self._listener.checkpoint_stored(request.step)

    async def _tell_commit(self, request: runner_pb2.CommitAttemptRequest) -> None:
        # The container it stands in is still there: that it is gone is its backend's to tell.
        request.gone = False
        accepted = False
        with self._refusals():
            accepted = (await self._patiently(lambda: self._calls.commit(request))).accepted
        self._listener.committed(accepted)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What is refused for good is told as dealt with: nobody waits for it any more."""
        try:
            yield
        except Malformed as error:
            log.error("refused", reason=str(error))
        except Superseded as error:
            self._listener.superseded(str(error))

    async def _tell_spans(self) -> None:
        while True:
            await self._spanned.wait()
            self._spanned.clear()
            spans = list(self._spans)
            self._spans.clear()
            await self._add_spans(spans)

    async def _add_spans(self, spans: list[job_pb2.Span]) -> None:
        with self._refusals():
            await self._patiently(lambda: self._calls.spans(spans))

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        backoff = Backoff(self._jitter)
        while True:
            try:
                answer = await ask()
            except Away as error:
                log.info("server.away", reason=str(error))
                await self._sleep(backoff.next())
            else:
                self._note()
                return answer

    def _note(self) -> None:
        self._sent += 1
        self._listener.heard()
