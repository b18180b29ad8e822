"""How late thousands of watchers hear of what concerns them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from bench_house import HERE, LOAD_CORE, NULL, SERVER_CORE, held_spec, server
from bench_idle import MIB, memory
from bench_report import Figure, Measured
from server_process import HatobaServer, clean_environment
from wire import Wire

from hatoba.v1 import job_pb2

WATCHERS = 5_000
CLIENTS = 2
TEAMS = 1_000
RATE = 200.0
SECONDS = 15.0
WARM_SECONDS = 3.0
MOST_MS = 250.0
FEW = 5


async def watchers(work: Path) -> list[Figure]:
    """The 99th percentile from an event's time to its arrival, at 200 events a second.

    Each of 5,000 watchers filters by a label that a thousandth of the events have, so that each
    event goes to five of them. The floor is the same with five watchers in all.
    """
    async with server(work, config=NULL, core=SERVER_CORE) as house, Wire(house) as wire:
        floor = await _delays(house, wire, FEW, 1)
        before = memory(house.pid, "VmRSS")
        many = await _delays(house, wire, WATCHERS, TEAMS)
        grown = (memory(house.pid, "VmHWM") - before) / MIB
    value, least = _p99(many), _p99(floor)
    print(f"watchers: {len(many):,} heard, median {statistics.median(many) * 1e3:.1f} ms,")
    print(f"  the server grew by {grown:.0f} MiB for {WATCHERS:,} of them")
    return [Measured("watch_p99", value * 1e3, "ms", least * 1e3).at_most(MOST_MS)]


async def _delays(house: HatobaServer, wire: Wire, count: int, teams: int) -> list[float]:
    """Seconds by which each watcher heard of each event that concerns it."""
    sizes = [count // CLIENTS + (number < count % CLIENTS) for number in range(CLIENTS)]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(_client(house, sum(sizes[:number]), size, teams))
            for number, size in enumerate(sizes)
        ]
        for client in clients:
            await _says(client, b"ready\n")
        await _submit(wire, teams, WARM_SECONDS)
        sent = await _submit(wire, teams, SECONDS)
        told = await asyncio.gather(*(_told(client) for client in clients))
    found = [delay for one in told for delay in one]
    if len(found) < sent * (count // teams):
        raise RuntimeError(f"{len(found)} of {sent * (count // teams)} were heard")
    return found


@contextlib.asynccontextmanager
async def _client(
    house: HatobaServer, first: int, count: int, teams: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    arguments = (house.address, house.data / "admin.token", first, count, teams)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "watch_clients.py"), *map(str, arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 28,
        env=clean_environment(),
    )
    os.sched_setaffinity(process.pid, {LOAD_CORE})
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _says(client: asyncio.subprocess.Process, line: bytes) -> None:
    assert client.stdout is not None
    said = await client.stdout.readline()
    if said != line:
        raise RuntimeError(f"a client said {said!r}")


async def _told(client: asyncio.subprocess.Process) -> list[float]:
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.close()
    found: list[float] = json.loads(await client.stdout.readline())
    return found


async def _submit(wire: Wire, teams: int, seconds: float) -> int:
    """Submit jobs at an even rate, one event each; how many."""
    began = time.perf_counter()
    request, sent = job_pb2.SubmitJobRequest(spec=held_spec()), 0
    for team in _turns(teams):
        request.spec.labels["team"] = f"t{team}"
        await wire.once(request, job_pb2.Job)
        sent += 1
        ahead = sent / RATE - (time.perf_counter() - began)
        await asyncio.sleep(max(0.0, ahead))
        if sent >= seconds * RATE:
            break
    return sent


def _turns(teams: int) -> Iterator[int]:
    while True:
        yield from range(teams)


def _p99(delays: list[float]) -> float:
    return statistics.quantiles(delays, n=100)[98]
