"""Jobs to their end: through `null`, and as processes through worker and keeper."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench_house import HERE, NULL, batch, position, server
from bench_report import Figure, Measured
from bench_statistics import percentile
from waiting import until
from wire import Wire

from hatoba.v1 import job_pb2

NULL_JOBS = 6_000
NULL_RUNS = 5
NULL_RATE = 3_000.0
NULL_LOOK_SECONDS = 0.05
BATCH = 1_000
COMMIT_ROWS = 500
EVENT_BYTES = 200

TRUE_JOBS = 10_000
TRUE_SHARE = 0.8
LOOK_SECONDS = 0.25
LIVE = frozenset({"QUEUED", "LAUNCHING", "WAITING", "STARTING", "RUNNING", "STOPPING"})
SPAWNS_AT_ONCE = (1, 8, 32)
TRIED_SPAWNS = 500

LATENCIES = 100
LATENCY_SECONDS = 0.005
LATENCY_P99_SECONDS = 0.020
WARM_LATENCIES = 5


# -- null -----------------------------------------------------------------------------------------


async def null_jobs(work: Path) -> list[Figure]:
    """Jobs of the null backend from the first submit until all are done; the median of five.

    The floor stores as many rows of an event's size, a commit for each batch, and does no more.
    """
    spec = job_pb2.JobSpec(name="bench", backend="null", command=["/bin/true"])
    async with server(work, config=NULL) as house, Wire(house) as wire:
        await _through(wire, spec, 0, BATCH)
        firsts = range(BATCH, BATCH + NULL_RUNS * NULL_JOBS, NULL_JOBS)
        runs = [await _through(wire, spec, first, NULL_JOBS) for first in firsts]
    value = statistics.median(rate for rate, _ in runs)
    floor = NULL_JOBS / _store_rows(work / "floor.db", runs[-1][1])
    return [Measured("null_end_to_end", value, "jobs/s", floor).at_least(NULL_RATE)]


async def _through(wire: Wire, spec: job_pb2.JobSpec, first: int, count: int) -> tuple[float, int]:
    """Submit jobs all at once; the rate until all are seen to have succeeded, and their events.

    Nobody watches meanwhile: what it costs to tell watchers is measured by itself.
    """
    requests = [batch(spec, number, BATCH) for number in range(first, first + count, BATCH)]
    before = await position(wire)
    began = time.perf_counter()
    for request in requests:
        await _submit(wire, request)
    await _all_succeeded(wire, NULL_LOOK_SECONDS)
    seconds = time.perf_counter() - began
    return count / seconds, _place(await position(wire)) - _place(before)


async def _unwatched(wire: Wire, spec: job_pb2.JobSpec, first: int, count: int) -> float:
    """As `_through`, hardly looked at: the last end is read from the jobs' records."""
    requests = [batch(spec, number, BATCH) for number in range(first, first + count, BATCH)]
    began = time.time()
    for request in requests:
        await _submit(wire, request)
    await _all_succeeded(wire, LOOK_SECONDS)
    query = job_pb2.ListJobsRequest(page_size=1000, filter="state = SUCCEEDED")
    page = await wire.once(query, job_pb2.ListJobsResponse)
    last = max(job.end_time.ToNanoseconds() for job in page.jobs)
    return count / (last / 1e9 - began)


async def _all_succeeded(wire: Wire, pause: float) -> None:
    """Look again and again, with pauses in seconds, until all jobs have ended.

    Raises RuntimeError unless all succeeded.
    """
    while True:
        counted = await wire.once(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
        by_state = dict(counted.by_state)
        if by_state == {"SUCCEEDED": counted.total}:
            return
        if not LIVE.intersection(by_state):
            raise RuntimeError(f"the jobs ended {by_state}")
        await asyncio.sleep(pause)


async def _submit(wire: Wire, request: job_pb2.SubmitJobsRequest) -> None:
    reply = await wire.once(request, job_pb2.SubmitJobsResponse, timeout=60.0)
    bad = [result.message for result in reply.results if result.code]
    if bad:
        raise RuntimeError(f"{len(bad)} jobs refused: {bad[0]}")


def _place(cursor: str) -> int:
    return int(cursor.rpartition(".")[2])


def _store_rows(path: Path, count: int) -> float:
    """Seconds to store so many rows durably."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
        "CREATE TABLE events (seq INTEGER PRIMARY KEY, event BLOB)"
    )
    insert = "INSERT INTO events (event) VALUES " + ",".join(["(?)"] * COMMIT_ROWS)
    rows = [os.urandom(EVENT_BYTES) for _ in range(COMMIT_ROWS)]
    began = time.perf_counter()
    for _ in range(0, count, COMMIT_ROWS):
        connection.execute("BEGIN")
        connection.execute(insert, rows)
        connection.execute("COMMIT")
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


# -- processes ------------------------------------------------------------------------------------


async def true_jobs(work: Path) -> list[Figure]:
    """/bin/true through server, worker and keeper, all submitted at once.

    The floor starts as many from one bare loop, each with two log files, at the best of a few
    concurrencies; the better of two, one before and one after.
    """
    spec = job_pb2.JobSpec(name="bench", command=["/bin/true"])
    at_once = await _best_concurrency(work)
    floors = [await _spawn_all(work / "before", at_once, TRUE_JOBS)]
    async with server(work, worker=True) as house, Wire(house) as wire:
        await _through(wire, spec, 0, BATCH // 10)
        rate = await _unwatched(wire, spec, BATCH, TRUE_JOBS)
    floors.append(await _spawn_all(work / "after", at_once, TRUE_JOBS))
    measured = Measured("true_through_worker", rate, "jobs/s", max(floors))
    return [measured.share_of_floor(TRUE_SHARE)]


async def _best_concurrency(work: Path) -> int:
    rates = {
        at_once: await _spawn_all(work / f"try-{at_once}", at_once, TRIED_SPAWNS)
        for at_once in SPAWNS_AT_ONCE
    }
    return max(rates, key=lambda at_once: rates[at_once])


async def _spawn_all(logs: Path, at_once: int, count: int) -> float:
    """Run /bin/true so often with two log files each; the rate."""
    os.mkdir(logs)
    left = iter(range(count))
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(_spawn_some(logs, left), name=f"spawner-{number}")
    return count / (time.perf_counter() - began)


async def _spawn_some(logs: Path, left: Iterator[int]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number in left:
        out = os.open(logs / f"{number}.out", flags, 0o600)
        err = os.open(logs / f"{number}.err", flags, 0o600)
        process = await asyncio.create_subprocess_exec(
            "/bin/true", stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=err
        )
        os.close(out)
        os.close(err)
        await process.wait()


# -- latency --------------------------------------------------------------------------------------


async def idle_latency(work: Path) -> list[Figure]:
    """From a submit to an idle house until the program's first instruction.

    The floor is the same program spawned by this process.
    """
    program = _program(work)
    bare, ours = [], []
    async with server(work, worker=True) as house, Wire(house) as wire:
        for number in range(LATENCIES + WARM_LATENCIES):
            bare.append(await _spawned(program, work / f"bare-{number}"))
            ours.append(await _submitted(wire, program, work / f"ours-{number}"))
    return [
        _over("idle_submit_p50", (ours, bare), 0.5, LATENCY_SECONDS),
        _over("idle_submit_p99", (ours, bare), 0.99, LATENCY_P99_SECONDS),
    ]


def _over(
    name: str, seconds: tuple[Sequence[float], Sequence[float]], share: float, most: float
) -> Figure:
    """What a share of submits took, against the same share of bare spawns."""
    value, floor = (percentile(one[WARM_LATENCIES:], share) * 1e3 for one in seconds)
    return Measured(name, value, "ms", floor).at_most_over_floor(most * 1e3)


def _program(work: Path) -> list[str]:
    """A program that writes when it began, as quick to start as this machine can make one."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler:
        built = work / "first"
        subprocess.run([compiler, "-O1", "-o", built, HERE / "first.c"], check=True)
        return [str(built)]
    print("idle_submit_latency: no C compiler here; the program is a Python script")
    text = "import sys, time; now = time.time_ns(); open(sys.argv[1], 'w').write(f'{now}\\n')"
    return [sys.executable, "-I", "-S", "-c", text]


async def _spawned(program: Sequence[str], told: Path) -> float:
    began = time.time_ns()
    process = await asyncio.create_subprocess_exec(*program, str(told))
    await process.wait()
    return (_told(told) - began) / 1e9


async def _submitted(wire: Wire, program: Sequence[str], told: Path) -> float:
    spec = job_pb2.JobSpec(name="bench", command=[*program, str(told)])
    request = job_pb2.SubmitJobRequest(spec=spec)
    await wire.channel()
    began = time.time_ns()
    job = await wire.once(request, job_pb2.Job)
    await until(lambda: told.exists() and told.read_text().endswith("\n"))
    await wire.ended(job.name)
    return (_told(told) - began) / 1e9


def _told(file: Path) -> int:
    return int(file.read_text())
