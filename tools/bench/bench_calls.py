"""Submitting, against the same calls to a server that does nothing behind the same front."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import bench_load
import grpc.aio
from bench_house import (
    LOAD_CORE,
    NULL,
    SERVER_CORE,
    batch,
    count_jobs,
    floor_server,
    held_spec,
    pin,
    server,
)
from bench_idle import cpu_seconds
from bench_load import Target
from bench_report import Figure, Measured
from bench_statistics import abba
from wire import Wire

from hatoba.v1 import job_pb2

AT_ONCE = 50
CALLS = 2_000
WARM_CALLS = 500
RUNS = 5
SHARE = 0.75
CPU_TIMES = 2.0

BATCH = 1_000
BATCHES = 10
BATCHES_AT_ONCE = 2
BATCH_RUNS = 5
BATCHED_RATE = 25_000.0

SUBMIT_JOB = "/hatoba.v1.JobService/SubmitJob"
SUBMIT_JOBS = "/hatoba.v1.JobService/SubmitJobs"
Load = Callable[[Target, int], Awaitable[float]]


async def submit_job(work: Path) -> list[Figure]:
    """Durable SubmitJob with 50 in flight; every call must have made a job.

    Its rate is compared with an empty call's through the same interceptors, and what it costs the
    server's processor with an empty call's without any.
    """
    load = loader(work)
    async with (
        server(work, config=NULL, core=SERVER_CORE) as house,
        floor_server(work, core=SERVER_CORE) as floor,
        floor_server(work / "bare", core=SERVER_CORE, bare=True) as bare,
        Wire(house) as wire,
    ):
        ours = Target(house.address, SUBMIT_JOB, house.token())
        empty = Target(floor.address, SUBMIT_JOB, floor.token)

        async def durable(count: int) -> float:
            before = await count_jobs(wire)
            rate = await load(ours, count)
            made = await count_jobs(wire) - before
            if made != count:
                raise RuntimeError(f"{count} calls made {made} jobs")
            return rate

        await durable(WARM_CALLS)
        await load(empty, WARM_CALLS)
        nothing = Target(bare.address, SUBMIT_JOB, bare.token)
        await load(nothing, WARM_CALLS)
        value, least = await _medians(lambda: durable(CALLS), lambda: load(empty, CALLS), RUNS)
        cpu, least_cpu = await _medians(
            lambda: _cpu(house.pid, lambda: durable(CALLS)),
            lambda: _cpu(bare.pid, lambda: load(nothing, CALLS)),
            RUNS,
        )
    return [
        Measured("submit_job", value, "calls/s", least).share_of_floor(SHARE),
        Measured("submit_job_cpu", cpu, "us/call", least_cpu).at_most_times_floor(CPU_TIMES),
    ]


async def _cpu(pid: int, calls: Callable[[], Awaitable[object]]) -> float:
    """Microseconds of a server's processor for each call."""
    before = cpu_seconds(pid)
    await calls()
    return (cpu_seconds(pid) - before) / CALLS * 1e6


def loader(work: Path) -> Load:
    """Loads a method with 50 calls in flight."""
    message = job_pb2.SubmitJobRequest(spec=held_spec()).SerializeToString()
    if bench_load.have_h2load():
        loader = bench_load.H2load(message, AT_ONCE, LOAD_CORE, work)

        async def by_h2load(target: Target, count: int) -> float:
            return await asyncio.to_thread(loader.run, target, count)

        return by_h2load
    print("submit_job: no h2load here; a Python client makes the load and limits the floor")
    pin(LOAD_CORE)
    return lambda target, count: bench_load.python_load(target, message, count, AT_ONCE)


async def _medians(
    ours: Callable[[], Awaitable[float]], floor: Callable[[], Awaitable[float]], runs: int
) -> tuple[float, float]:
    """The medians of both, measured in turn."""
    rates: dict[str, list[float]] = {"A": [], "B": []}
    for turn in abba(runs):
        rates[turn].append(await (ours if turn == "A" else floor)())
    return statistics.median(rates["A"]), statistics.median(rates["B"])


# -- batches --------------------------------------------------------------------------------------


async def submit_jobs(work: Path) -> list[Figure]:
    """SubmitJobs of a thousand, each with a request id, results looked at after the time is up."""
    pin(LOAD_CORE)
    per_run = BATCHES * BATCH
    made = iter(range(0, 10_000_000, BATCH))
    async with (
        server(work, config=NULL, core=SERVER_CORE) as house,
        floor_server(work, core=SERVER_CORE) as floor,
        Wire(house) as wire,
    ):
        ours = Target(house.address, SUBMIT_JOBS, house.token())
        empty = Target(floor.address, SUBMIT_JOBS, floor.token)

        async def durable() -> float:
            seconds, replies = await _send(ours, _batches(made, BATCHES))
            _check(replies)
            return per_run / seconds

        async def nothing() -> float:
            seconds, _ = await _send(empty, _batches(made, BATCHES))
            return per_run / seconds

        await _send(ours, _batches(made, 2))
        await _send(empty, _batches(made, 2))
        before = await count_jobs(wire)
        value, least = await _medians(durable, nothing, BATCH_RUNS)
        stored = await count_jobs(wire) - before
        if stored != BATCH_RUNS * per_run:
            raise RuntimeError(f"{BATCH_RUNS * per_run} items made {stored} jobs")
    return [Measured("submit_jobs", value, "jobs/s", least).at_least(BATCHED_RATE)]


def _batches(first: Iterator[int], count: int) -> list[bytes]:
    spec = held_spec()
    return [batch(spec, next(first), BATCH).SerializeToString() for _ in range(count)]


async def _send(target: Target, messages: Sequence[bytes]) -> tuple[float, list[bytes]]:
    """Send messages, two in flight; the seconds it took, and the replies as they came."""
    left, replies = iter(messages), list[bytes]()
    options = [("grpc.max_receive_message_length", 32 << 20)]
    async with grpc.aio.insecure_channel(target.address, options=options) as channel:
        method = bench_load.method_of(channel, target)
        metadata = (("authorization", f"Bearer {target.token}"),)
        await channel.channel_ready()

        async def caller() -> None:
            for message in left:
                replies.append(await method(message, metadata=metadata))

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(BATCHES_AT_ONCE):
                group.create_task(caller(), name=f"caller-{number}")
        return time.perf_counter() - began, replies


def _check(replies: Sequence[bytes]) -> None:
    for reply in replies:
        results = job_pb2.SubmitJobsResponse.FromString(reply).results
        bad = [one for one in results if one.code or one.deduplicated or not one.name]
        if bad or len(results) != BATCH:
            raise RuntimeError(
                f"{len(results)} results, {len(bad)} of them not new jobs: {bad[:1]}"
            )
