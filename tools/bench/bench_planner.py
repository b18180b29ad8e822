"""The planner alone: a round over 10,000 nodes with 1,000,000 jobs queued, and what they take."""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from pathlib import Path

from bench_idle import MIB, memory
from bench_report import Figure, Measured

from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.model import Assignment, Needs, Place, Running
from hatoba_scheduler.domain.planning.planner import Planner
from hatoba_scheduler.domain.records import Resources

NODES = 10_000
FREE_NODES = 1000
QUEUED = 1_000_000
QUEUES = 100
SHAPES = 1000
ROUNDS = 5
ROUND_MS = 100.0
SLICE_MS = 1.0
FEED_MICROS = 3.0
BYTES_A_JOB = 120.0
BEGAN = 1_700_000_000_000
GIB = 1 << 30


async def planner(work: Path) -> list[Figure]:
    """One round that fills 1,000 free slots, its slices, the feeding and what a job takes.

    The slots are on as many of 10,000 nodes that are full otherwise; the jobs are of 1,000 shapes
    in 100 queues. Figures of time are processor time, without the pauses of the garbage collector,
    which are of a whole process: of rounds the median, of slices the 99th percentile.
    """
    del work
    yard = _full_cluster()
    gc.collect()
    before = memory(os.getpid(), "VmRSS")
    fed = _feed(yard)
    gc.collect()
    taken = memory(os.getpid(), "VmRSS") - before
    gc.disable()
    rounds = [_round(yard) for _ in range(ROUNDS)]
    gc.enable()
    slices = sorted(took for one, _ in rounds for took in one)
    whole = statistics.median(sum(took) / placed * FREE_NODES for took, placed in rounds)
    return [
        Measured("planner_round", whole * 1e3, "ms").at_most(ROUND_MS),
        Measured("planner_slice", slices[len(slices) * 99 // 100] * 1e3, "ms").at_most(SLICE_MS),
        Measured("planner_feed", fed / QUEUED * 1e6, "us/job").at_most(FEED_MICROS),
        Measured("planner_memory", taken / QUEUED, "bytes/job").at_most(BYTES_A_JOB),
        Measured("planner_rss", memory(os.getpid(), "VmRSS") / MIB, "MiB").at_most(700.0),
    ]


def _full_cluster() -> Planner:
    """Nodes of three sizes; each runs four jobs, on some of them a few cores are free."""
    yard, chance = Planner(), random.Random(5)
    sizes = [chance.choice((16, 32, 64)) for _ in range(NODES)]
    names = [f"node-{number:05d}" for number in range(NODES)]
    rooms = [Resources(float(size), 4 * size * GIB) for size in sizes]
    yard.describe("bench", map(PoolRoom, names, rooms))
    roomy = set(chance.sample(range(NODES), FREE_NODES))
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        for part in range(4):
            spare = 4.0 if part == 0 and number in roomy else 0.0
            amount = Resources(size / 4 - spare, chance.randrange(1, size) * GIB)
            yard.started(
                Running(
                    f"running-{number}-{part}",
                    f"job-{number}-{part}",
                    0,
                    ("default", f"queue-{number % QUEUES}"),
                    Place("bench", name),
                    amount,
                    0,
                )
            )
    return yard


def _feed(yard: Planner) -> float:
    """Queue the jobs; the processor seconds it took, without those that made their uids."""
    shapes = [
        Needs(("bench",), Resources(4.0, (number + 1) * (1 << 20))) for number in range(SHAPES)
    ]
    queues = [("default", f"queue-{number}") for number in range(QUEUES)]
    uids = list(map(_uid, range(QUEUED // 10)))
    began = time.process_time()
    for number, uid in enumerate(uids):
        yard.put_plain(uid, queues[number % QUEUES], shapes[number % SHAPES], 0)
    took = time.process_time() - began
    for number in range(len(uids), QUEUED):
        yard.put_plain(_uid(number), queues[number % QUEUES], shapes[number % SHAPES], 0)
    return took * 10


def _uid(number: int) -> str:
    millis = BEGAN + number // 100
    return f"{millis >> 16:08x}-{millis & 0xFFFF:04x}-7000-8000-{number:012x}"


def _round(yard: Planner) -> tuple[list[float], int]:
    """Seconds of each slice of one round, and how many jobs it placed; all end then."""
    placed: list[Assignment] = []
    slices: list[float] = []
    more = True
    while more:
        began = time.process_time()
        found = yard.plan(BEGAN * 1000)
        slices.append(time.process_time() - began)
        more = found.more
        placed += found.assignments
    for one in placed:
        running = Running(one.uid, one.uid, 0, one.queue, one.places[0], one.needs.resources, 0)
        yard.confirm(one, [running])
    for one in placed:
        yard.ended(one.uid)
    return slices, len(placed)
