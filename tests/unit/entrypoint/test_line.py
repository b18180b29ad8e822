"""What is told of an attempt by unary calls, over a clock of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from waiting import turns

from hatoba.v1 import job_pb2, runner_pb2, worker_pb2
from hatoba_worker.entrypoint.calls import Calls, Malformed, Superseded
from hatoba_worker.entrypoint.line import Line
from hatoba_worker.failures import Away

HOUR = 3600.0


class Network:
    """Calls that reach nobody before `back`, on a clock that only sleeping moves."""

    def __init__(self, back: float = 0.0) -> None:
        self.now = 0.0
        self.back = back
        self.tries = 0
        self.told: list[object] = []
        self.refusal: Exception | None = None

    async def sleep(self, seconds: float) -> None:
        """Move the clock."""
        self.now += seconds
        await asyncio.sleep(0)

    def _reached(self, request: object) -> None:
        self.tries += 1
        if self.now < self.back:
            raise Away("no route")
        if self.refusal is not None:
            raise self.refusal
        self.told.append(request)

    async def heartbeat(self, request: runner_pb2.HeartbeatRequest) -> runner_pb2.HeartbeatResponse:
        self._reached(request)
        return runner_pb2.HeartbeatResponse(order=runner_pb2.RUNNER_ORDER_RUN)

    async def metrics(
        self, request: runner_pb2.ReportMetricsRequest
    ) -> runner_pb2.ReportMetricsResponse:
        self._reached(request)
        return runner_pb2.ReportMetricsResponse(acked_report=request.report)

    async def checkpoint(
        self, request: runner_pb2.CommitCheckpointRequest
    ) -> runner_pb2.CommitCheckpointResponse:
        self._reached(request)
        return runner_pb2.CommitCheckpointResponse(step=request.step, accepted=True)

    async def commit(
        self, request: runner_pb2.CommitAttemptRequest
    ) -> runner_pb2.CommitAttemptResponse:
        self._reached(request)
        return runner_pb2.CommitAttemptResponse(accepted=True)

    async def spans(self, spans: list[job_pb2.Span]) -> None:
        self._reached(spans)


class Hears:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.words: list[object] = []
        self.signs = 0

    def heard(self) -> None:
        self.signs += 1

    def ordered(self, order: runner_pb2.HeartbeatResponse) -> None:
        self.words.append(("order", order.order))

    def metrics_stored(self, number: int) -> None:
        self.words.append(("metrics", number))

    def checkpoint_stored(self, step: int) -> None:
        self.words.append(("checkpoint", step))

    def committed(self, accepted: bool) -> None:
        self.words.append(("commit", accepted))

    def superseded(self, reason: str) -> None:
        self.words.append("superseded")


@asynccontextmanager
async def telling(network: Network, hears: Hears) -> AsyncIterator[Line]:
    """A line that runs."""
    line = Line(cast(Calls, network), hears, network.sleep, lambda: 1.0)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(line.run())
        yield line
        running.cancel()


def metrics(number: int) -> worker_pb2.WorkerItem:
    request = runner_pb2.ReportMetricsRequest(attempt="a-1", report=number)
    return worker_pb2.WorkerItem(metrics=request)


def beat(done: float) -> worker_pb2.WorkerItem:
    request = runner_pb2.HeartbeatRequest(attempt="a-1")
    request.progress.done = done
    return worker_pb2.WorkerItem(heartbeat=request)


async def test_after_an_hour_without_network_everything_is_told_in_order() -> None:
    network, hears = Network(back=HOUR), Hears()
    async with telling(network, hears) as line:
        line.send(metrics(1))
        line.send(metrics(2))
        line.send(worker_pb2.WorkerItem(commit=runner_pb2.CommitAttemptRequest(attempt="a-1")))
        async with asyncio.timeout(10):
            while ("commit", True) not in hears.words:
                await turns(50)
    assert hears.words == [("metrics", 1), ("metrics", 2), ("commit", True)]
    # At most 5 s apart, and not in a rush.
    assert HOUR / 5 <= network.tries <= HOUR / 5 + 20


async def test_of_heartbeats_the_newest_is_told_and_the_start_with_each() -> None:
    network, hears = Network(back=60.0), Hears()
    async with telling(network, hears) as line:
        started = worker_pb2.AttemptStarted(attempt="a-1", fence=1)
        started.time.FromSeconds(1000)
        line.send(worker_pb2.WorkerItem(started=started))
        for done in range(100):
            line.send(beat(done))
        async with asyncio.timeout(10):
            while not hears.words:
                await turns(50)
        (told,) = cast(list[runner_pb2.HeartbeatRequest], network.told)
        assert (told.progress.done, told.start_time.seconds) == (99, 1000)


async def test_what_is_refused_for_good_is_waited_for_by_nobody() -> None:
    for refusal, extra in ((Malformed("no"), []), (Superseded("over"), ["superseded"])):
        network, hears = Network(), Hears()
        network.refusal = refusal
        async with telling(network, hears) as line:
            line.send(metrics(3))
            checkpoint = runner_pb2.CommitCheckpointRequest(attempt="a-1", step=9)
            line.send(worker_pb2.WorkerItem(checkpoint=checkpoint))
            line.send(worker_pb2.WorkerItem(commit=runner_pb2.CommitAttemptRequest()))
            await turns(100)
        words = [("metrics", 3), ("checkpoint", 9), ("commit", False)]
        assert hears.words == [word for each in words for word in (*extra, each)]


async def test_that_it_is_gone_is_not_the_runners_to_say() -> None:
    network, hears = Network(), Hears()
    async with telling(network, hears) as line:
        commit = runner_pb2.CommitAttemptRequest(attempt="a-1", gone=True)
        line.send(worker_pb2.WorkerItem(commit=commit))
        line.send(worker_pb2.WorkerItem(gone=worker_pb2.AttemptGone(attempt="a-1")))
        await turns(50)
    (told,) = cast(list[runner_pb2.CommitAttemptRequest], network.told)
    assert not told.gone
