"""How long one caller waits beside a batch client, planner rounds and a flow of jobs."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from bench_house import HERE, NULL, batch, held_spec, server
from bench_report import Figure, Measured
from bench_statistics import abba, percentile
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from server_process import HatobaServer, clean_environment
from wire import Wire

from hatoba.v1 import job_pb2, queue_pb2

PACE = 0.005
SECONDS = 6.0
RUNS = 5
RUN_SECONDS = 2.0

BESIDE_BATCHES_MS = 20.0
BESIDE_ROUNDS = 1.5
GET_MS = 20.0

LINES = 10_000
LINE_QUEUES = 100
FULL = NULL + "[backends.null.options]\nslots = 1\ndelay = 3600.0\n"
AGAIN_SECONDS = 0.15

FLOW_RATE = 1_000
FLOW_STEP = 0.1


async def waits(work: Path) -> list[Figure]:
    """All of them, each on a server of its own."""
    figures = []
    for name, measure in (("batches", _batches), ("rounds", _rounds), ("flow", _flow)):
        own = work / name
        await asyncio.to_thread(own.mkdir)
        figures.append(await measure(own))
    return figures


# -- beside a batch client ------------------------------------------------------------------------


async def _batches(work: Path) -> Figure:
    """SubmitJob beside a client that sends a thousand jobs at a time, as fast as it can."""
    async with server(work, config=NULL) as house, Wire(house) as wire:
        await _p99(_submitting(wire), seconds=1.0)
        floor = await _p99(_submitting(wire))
        async with _flood(house):
            value = await _p99(_submitting(wire))
    measured = Measured("submit_p99_beside_batches", value * 1e3, "ms", floor * 1e3)
    return measured.at_most(BESIDE_BATCHES_MS)


@contextlib.asynccontextmanager
async def _flood(house: HatobaServer) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "flood.py"), house.address, str(house.data / "admin.token")),
        stdout=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    assert process.stdout is not None
    if await process.stdout.readline() != b"begun\n":
        raise RuntimeError("the batch client did not begin")
    try:
        yield
        if process.returncode is not None:
            raise RuntimeError("the batch client ended before its time")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _submitting(wire: Wire) -> Callable[[], Awaitable[object]]:
    request = job_pb2.SubmitJobRequest(spec=held_spec())
    return lambda: wire.once(request, job_pb2.Job)


async def _p99(call: Callable[[], Awaitable[object]], *, seconds: float = SECONDS) -> float:
    """Seconds of the slowest but one in a hundred; a call every 5 ms, one at a time."""
    waited = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        await call()
        took = time.perf_counter() - began
        waited.append(took)
        await asyncio.sleep(max(0.0, PACE - took))
    return percentile(waited, 0.99)


# -- beside planner rounds ------------------------------------------------------------------------


async def _rounds(work: Path) -> Figure:
    """SubmitJob while rounds over ten thousand lines go on, none of which finds room.

    The floor is the same caller beside the same jobs, with nothing that would begin a round.
    """
    async with server(work, config=FULL) as house, Wire(house) as wire:
        await _fill_lines(wire)
        await _p99(_submitting(wire), seconds=1.0)
        seconds: dict[str, list[float]] = {"A": [], "B": []}
        for turn in abba(RUNS):
            async with asyncio.TaskGroup() as group:
                rounds = group.create_task(_round_after_round(wire, turn == "A"), name="rounds")
                seconds[turn].append(await _p99(_submitting(wire), seconds=RUN_SECONDS))
                rounds.cancel()
    value, floor = statistics.median(seconds["A"]), statistics.median(seconds["B"])
    measured = Measured("submit_p99_beside_rounds", value * 1e3, "ms", floor * 1e3)
    return measured.at_most_times_floor(BESIDE_ROUNDS)


async def _fill_lines(wire: Wire) -> None:
    for number in range(LINE_QUEUES):
        made = queue_pb2.CreateQueueRequest(queue_id=f"q-{number}", queue=queue_pb2.Queue())
        await wire.once(made, queue_pb2.Queue)
    await wire.submit(job_pb2.JobSpec(name="first", command=["/bin/true"]))
    specs = [
        job_pb2.JobSpec(
            name="bench",
            queue=f"q-{number % LINE_QUEUES}",
            command=["/bin/true"],
            timeout=Duration(seconds=3_600 + number),
        )
        for number in range(LINES)
    ]
    for first in range(0, LINES, 1_000):
        items = [job_pb2.SubmitJobsItem(spec=spec) for spec in specs[first : first + 1_000]]
        request = job_pb2.SubmitJobsRequest(items=items)
        reply = await wire.once(request, job_pb2.SubmitJobsResponse, timeout=60.0)
        bad = [one.message for one in reply.results if one.code]
        if bad:
            raise RuntimeError(f"{len(bad)} jobs refused: {bad[0]}")


async def _round_after_round(wire: Wire, begin: bool) -> None:
    """Change a queue again and again: each time the room of all is looked at anew."""
    weight = 1.0
    while begin:
        weight = 3.0 - weight
        queue = queue_pb2.Queue(name="projects/default/queues/q-1", weight=weight)
        mask = FieldMask(paths=["weight"])
        request = queue_pb2.UpdateQueueRequest(queue=queue, update_mask=mask)
        await wire.once(request, queue_pb2.Queue)
        await asyncio.sleep(AGAIN_SECONDS)


# -- beside a flow of jobs ------------------------------------------------------------------------


async def _flow(work: Path) -> Figure:
    """GetJob while a thousand jobs a second are submitted, run and end."""
    spec = job_pb2.JobSpec(name="flow", command=["/bin/true"])
    async with server(work, config=NULL) as house, Wire(house) as wire:
        job = await wire.submit(spec)
        request = job_pb2.GetJobRequest(name=job.name)

        async def getting() -> None:
            await wire.once(request, job_pb2.Job)

        async with asyncio.TaskGroup() as group:
            flow = group.create_task(_submit_evenly(wire, spec), name="flow")
            await asyncio.sleep(1.0)
            value = await _p99(getting)
            flow.cancel()
    return Measured("get_p99_beside_flow", value * 1e3, "ms").at_most(GET_MS)


async def _submit_evenly(wire: Wire, spec: job_pb2.JobSpec) -> None:
    began, count = time.perf_counter(), round(FLOW_RATE * FLOW_STEP)
    for number in range(1_000_000):
        request = batch(spec, number * count, count)
        await wire.once(request, job_pb2.SubmitJobsResponse, timeout=60.0)
        await asyncio.sleep(max(0.0, began + (number + 1) * FLOW_STEP - time.perf_counter()))
