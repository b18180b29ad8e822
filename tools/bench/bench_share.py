"""Fair share: what three queues get of a backend that is always full, by their weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench_house import NULL, batch, position, server
from bench_million import cordon
from bench_report import Figure, Measured
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2, queue_pb2

WEIGHTS = {"one": 1.0, "two": 2.0, "three": 3.0}
STARTED = 1_000
QUEUED = 1_000
OFF = 0.02
BUSY = NULL + "[backends.null.options]\nslots = 60\ndelay = 0.05\n"


async def fair_share(work: Path) -> list[Figure]:
    """How far the shares of the first thousand starts are from the weights, at most."""
    async with server(work, config=BUSY) as house, Wire(house) as wire:
        await cordon(wire, cordoned=True)
        for number, (name, weight) in enumerate(WEIGHTS.items()):
            queue = queue_pb2.Queue(weight=weight)
            request = queue_pb2.CreateQueueRequest(queue_id=name, queue=queue)
            await wire.once(request, queue_pb2.Queue)
            spec = job_pb2.JobSpec(name=name, queue=name, command=["/bin/true"])
            jobs = batch(spec, number * QUEUED, QUEUED)
            await wire.once(jobs, job_pb2.SubmitJobsResponse, timeout=60.0)
        cursor = await position(wire)
        await cordon(wire, cordoned=False)
        started = await _starts(wire, cursor)
    total = sum(WEIGHTS.values())
    off = max(abs(started[name] / STARTED - weight / total) for name, weight in WEIGHTS.items())
    return [Measured("fair_share_off", off, "of all").at_most(OFF)]


async def _starts(wire: Wire, cursor: str) -> Counter[str]:
    """Of which queues the first jobs to be launched were."""
    started: Counter[str] = Counter()
    request = job_pb2.WatchJobsRequest(cursor=cursor)
    async for message in wire.stream(request, job_pb2.WatchJobsResponse):
        event = message.event
        if message.HasField("event") and event.to == common_pb2.JOB_STATE_LAUNCHING:
            name = event.job.rpartition("/")[2].rpartition("-")[0]
            started[name] += 1
        if started.total() == STARTED:
            break
    return started
