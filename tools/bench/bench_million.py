"""A million jobs in line: memory, how soon a server is back, reads and dispatch beside them.

The line is filled while the backend is cordoned: 100 queues, 1,000 shapes. Dispatch is measured
from the moment it is let go, over its first jobs; the floor is a server with few more than these.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench_house import NULL, all_ended, batch, position, server
from bench_idle import MIB, memory
from bench_report import Figure, Measured
from bench_statistics import percentile
from google.protobuf.message import Message
from server_process import HatobaServer
from waiting import until
from wire import Wire

from hatoba.v1 import admin_pb2, common_pb2, job_pb2, queue_pb2

JOBS = 1_000_000
QUICK_JOBS = 100_000
QUEUES = 100
SHAPES_PER_QUEUE = 10
PER_CALL = 1_000
AT_ONCE = 2

DISPATCHED = 10_000
RATE_SHARE = 0.95
RSS_MIB = 700.0
RESTART_SECONDS = 10.0

READY_WITHIN = 120.0
LOOK_SECONDS = 0.1
UNDER_WAY = frozenset({"LAUNCHING", "WAITING", "STARTING", "RUNNING", "STOPPING"})

READS = 200
LIST_MS = 20.0
COUNT_MS = 5.0


async def million(work: Path) -> list[Figure]:
    """All figures of a server with a million jobs queued."""
    return await of_many(work, JOBS)


async def tenth(work: Path) -> list[Figure]:
    """The same of a hundred thousand, for a quick look."""
    return await of_many(work, QUICK_JOBS)


async def of_many(work: Path, jobs: int) -> list[Figure]:
    """All figures of a server with so many jobs queued."""
    few, many = work / "few", work / "many"
    for own in (few, many):
        await asyncio.to_thread(own.mkdir)
    fewer = await _few(few)
    async with server(many, config=NULL) as house, Wire(house) as wire:
        await cordon(wire, cordoned=True)
        await fill(wire, jobs)
        figures = await _reads(wire)
        figures.append(
            Measured("million_rss", memory(house.pid, "VmRSS") / MIB, "MiB").at_most(RSS_MIB)
        )
        await house.kill()
        began = time.perf_counter()
        first = await _restarted(house, wire)
        restart = Measured("million_restart", first - began, "s")
        figures.append(restart.at_most(RESTART_SECONDS))
        rss = memory(house.pid, "VmRSS") / MIB
        figures.append(Measured("million_rss_restarted", rss, "MiB").at_most(RSS_MIB))
        await cordon(wire, cordoned=True)
        await _quiet(wire)
        rate = await _dispatched(wire)
    figures.append(Measured("million_dispatch", rate, "jobs/s", fewer).share_of_floor(RATE_SHARE))
    return figures


async def _few(work: Path) -> float:
    """The rate with no more in line than are measured."""
    async with server(work, config=NULL) as house, Wire(house) as wire:
        await cordon(wire, cordoned=True)
        await fill(wire, 2 * DISPATCHED)
        return await _dispatched(wire)


async def cordon(wire: Wire, *, cordoned: bool) -> None:
    """Keep work from the null backend, or let it go."""
    request = admin_pb2.CordonBackendRequest(name="null", cordoned=cordoned)
    await wire.once(request, admin_pb2.BackendInfo, timeout=30.0)


async def fill(wire: Wire, jobs: int) -> None:
    """Queue so many, over all queues and shapes."""
    for number in range(QUEUES):
        queue = queue_pb2.Queue()
        request = queue_pb2.CreateQueueRequest(queue_id=_queue(number), queue=queue)
        await wire.once(request, queue_pb2.Queue, timeout=30.0)
    left = iter(_requests(jobs))

    async def caller() -> None:
        for request in left:
            reply = await wire.once(request, job_pb2.SubmitJobsResponse, timeout=120.0)
            bad = [one.message for one in reply.results if one.code]
            if bad:
                raise RuntimeError(f"{len(bad)} jobs refused: {bad[0]}")

    async with asyncio.TaskGroup() as group:
        for number in range(AT_ONCE):
            group.create_task(caller(), name=f"caller-{number}")


def _requests(jobs: int) -> Iterator[job_pb2.SubmitJobsRequest]:
    shapes = itertools.cycle(
        (queue, shape) for shape in range(SHAPES_PER_QUEUE) for queue in range(QUEUES)
    )
    for first in range(0, jobs, PER_CALL):
        queue, shape = next(shapes)
        yield batch(_spec(queue, shape), first, PER_CALL)


def _spec(queue: int, shape: int) -> job_pb2.JobSpec:
    cpus = 0.5 + 0.001 * (queue * SHAPES_PER_QUEUE + shape)
    return job_pb2.JobSpec(
        name="bench",
        queue=_queue(queue),
        backend="null",
        command=["/bin/true"],
        resources=common_pb2.Resources(cpus=cpus),
    )


def _queue(number: int) -> str:
    return f"q-{number}"


async def _dispatched(wire: Wire) -> float:
    """Let the line go; the rate of its first jobs from then to their ends."""
    cursor = await position(wire)
    began = time.perf_counter()
    await cordon(wire, cordoned=False)
    await all_ended(wire, DISPATCHED, cursor)
    return DISPATCHED / (time.perf_counter() - began)


async def _restarted(house: HatobaServer, wire: Wire) -> float:
    """Start the server anew and let the line go; when its first job was dispatched."""
    await asyncio.to_thread(house.launch)
    await until(house.ready_file.exists, READY_WITHIN)
    await house.until_ready()
    cursor = await position(wire)
    await cordon(wire, cordoned=False)
    await all_ended(wire, 1, cursor)
    return time.perf_counter()


async def _quiet(wire: Wire) -> None:
    """Wait until nothing runs any more."""
    while True:
        counted = await wire.once(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
        if not UNDER_WAY.intersection(counted.by_state):
            return
        await asyncio.sleep(LOOK_SECONDS)


# -- reads ----------------------------------------------------------------------------------------


async def _reads(wire: Wire) -> list[Figure]:
    """Lists and counts of a million."""
    rng = random.Random(1)
    filters = [
        "",
        "state = QUEUED",
        "queue = q-7",
        "queue = q-7 AND state = QUEUED",
        "labels.team = none AND state = QUEUED",
    ]
    lists = [
        job_pb2.ListJobsRequest(page_size=100, filter=rng.choice(filters)) for _ in range(READS)
    ]
    listed = await _timed(wire, lists, job_pb2.ListJobsResponse)
    counts = [
        job_pb2.CountJobsRequest(filter=f"queue = {_queue(rng.randrange(QUEUES))}")
        for _ in range(READS)
    ]
    counted = await _timed(wire, counts, job_pb2.CountJobsResponse)
    return [
        Measured("million_list_p99", listed * 1e3, "ms").at_most(LIST_MS),
        Measured("million_count_p99", counted * 1e3, "ms").at_most(COUNT_MS),
    ]


async def _timed(wire: Wire, requests: Sequence[Message], reply: type[Message]) -> float:
    """Seconds of the slowest but one in a hundred; one call at a time."""
    seconds = []
    for request in requests:
        began = time.perf_counter()
        await wire.once(request, reply)
        seconds.append(time.perf_counter() - began)
    return percentile(seconds, 0.99)
