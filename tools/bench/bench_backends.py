"""A good backend beside bad ones: how much of its rate is left."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

from bench_house import all_ended, batch, position, server
from bench_report import Figure, Measured
from wire import Wire

from hatoba.v1 import job_pb2

GOOD_JOBS = 3_000
BATCH = 500
RUNS = 5
BAD_JOBS = 200
APART = 1_000_000
"""Between the numbers of requests for one backend and for the next."""
KEPT = 0.9
BAD = """
[backends.hung]
type = "mock"
deadline = 2.0
options = { trouble = "hangs" }
[backends.busy]
type = "mock"
options = { trouble = "throttles", trouble_every = 2 }
[backends.flaky]
type = "mock"
options = { trouble = "fails", trouble_every = 2 }
"""
GOOD = '[defaults]\ntrain = "good"\n[backends.good]\ntype = "null"\n'


async def bulkhead(work: Path) -> list[Figure]:
    """Jobs a second through `null`: alone, and beside backends that hang, throttle and fail.

    Both servers have all four backends; one of them has work for the bad ones. Runs take turns.
    """
    (work / "alone").mkdir()
    (work / "beside").mkdir()
    async with (
        server(work / "alone", config=GOOD + BAD) as calm,
        server(work / "beside", config=GOOD + BAD) as busy,
        Wire(calm) as alone,
        Wire(busy) as beside,
    ):
        await _trouble(beside)
        rates: dict[str, list[float]] = {"alone": [], "beside": []}
        for number in range(RUNS + 1):
            for name, wire in (("alone", alone), ("beside", beside)):
                rate = await _rate(wire, number * GOOD_JOBS)
                if number:
                    # The first one warms up.
                    rates[name].append(rate)
    value, floor = (statistics.median(rates[name]) for name in ("beside", "alone"))
    return [Measured("bulkhead", value, "jobs/s", floor).share_of_floor(KEPT)]


async def _trouble(wire: Wire) -> None:
    """Work for each of the bad backends, which goes on for as long as the bench."""
    for number, name in enumerate(("hung", "busy", "flaky"), 1):
        spec = job_pb2.JobSpec(name="bad", backend=name, command=["true"])
        spec.backend_options.update({"mock": {"run_for": 600}})
        await wire.call(batch(spec, number * APART, BAD_JOBS), job_pb2.SubmitJobsResponse)


async def _rate(wire: Wire, first: int) -> float:
    spec = job_pb2.JobSpec(name="good", backend="good", command=["true"])
    requests = [batch(spec, n, BATCH) for n in range(first, first + GOOD_JOBS, BATCH)]
    cursor = await position(wire)
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        group.create_task(all_ended(wire, GOOD_JOBS, cursor), name="ended")
        for request in requests:
            await wire.call(request, job_pb2.SubmitJobsResponse)
    return GOOD_JOBS / (time.perf_counter() - began)
