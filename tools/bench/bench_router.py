"""The router beside a bare replica: rates, what it adds to a request, and its memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from bench_house import HERE
from bench_idle import memory
from bench_report import Figure, Measured
from bench_statistics import abba
from router_house import RouterHouse, TinyReplica, route
from scripted_feed import USER_TOKEN
from server_process import clean_environment
from waiting import until

AT_ONCE = 20
RUNS = 3
TRIVIAL_CALLS = 3_000
WORKING_CALLS = 900
SETTLE_SECONDS = 2.0

TRIVIAL_SHARE = 0.4
WORKING_SHARE = 0.8
ADDED_MEDIAN_MS = 2.0
ADDED_P99_MS = 10.0
RSS_MB = 80.0

BODY = '{"inputs": [1, 2, 3]}'

HANDLERS = """
import time


class Trivial:
    def __init__(self, model_dir):
        pass

    def predict(self, inputs):
        return 1


class Working(Trivial):
    def predict(self, inputs):
        time.sleep(0.003)
        return 1
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of the load generator found: requests a second, and milliseconds."""

    rate: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Address:
    """Where the load goes."""

    address: str
    path: str


async def router(work: Path) -> list[Figure]:
    """Twenty connections that ask again as soon as they were answered, in turn at both."""
    async with _house(work) as house:
        rss = await _idle_memory(house)
        trivial = await _compare(house, work, "Trivial", TRIVIAL_CALLS)
        working = await _compare(house, work, "Working", WORKING_CALLS)
    ours, bare = working
    return [
        Measured("router_trivial", trivial[0].rate, "requests/s", trivial[1].rate).share_of_floor(
            TRIVIAL_SHARE
        ),
        Measured("router_3_ms", ours.rate, "requests/s", bare.rate).share_of_floor(WORKING_SHARE),
        Measured("router_p50", ours.p50, "ms", bare.p50).at_most_over_floor(ADDED_MEDIAN_MS),
        Measured("router_p99", ours.p99, "ms", bare.p99).at_most_over_floor(ADDED_P99_MS),
        Measured("router_idle_rss", rss / 1e6, "MB").at_most(RSS_MB),
    ]


@contextlib.asynccontextmanager
async def _house(work: Path) -> AsyncIterator[RouterHouse]:
    house = RouterHouse(work)
    await house.feed.start()
    try:
        await house.start()
        yield house
    finally:
        await house.close()


async def _idle_memory(house: RouterHouse) -> int:
    await house.feed.until(lambda: bool(house.feed.routers))
    await asyncio.sleep(SETTLE_SECONDS)
    return await asyncio.to_thread(memory, house.pid, "VmRSS")


async def _compare(house: RouterHouse, work: Path, handler: str, calls: int) -> tuple[Load, Load]:
    """Medians through the router, and of the replica alone."""
    async with _replica(work, handler) as replica:
        cursor = house.feed.put(route((1, 100, [replica])))
        await house.feed.acknowledged(cursor)
        through = Address(house.url.removeprefix("http://"), "/reader/predict")
        alone = Address(replica.message.address, "/predict")
        await _load(through, calls // 3)
        return await _medians(lambda: _load(through, calls), lambda: _load(alone, calls))


async def _medians(
    ours: Callable[[], Awaitable[Load]], bare: Callable[[], Awaitable[Load]]
) -> tuple[Load, Load]:
    found: dict[str, list[Load]] = {"A": [], "B": []}
    for turn in abba(RUNS):
        found[turn].append(await (ours if turn == "A" else bare)())
    return _median(found["A"]), _median(found["B"])


def _median(loads: list[Load]) -> Load:
    return Load(
        statistics.median(one.rate for one in loads),
        statistics.median(one.p50 for one in loads),
        statistics.median(one.p99 for one in loads),
    )


async def _load(to: Address, calls: int) -> Load:
    """One run, by a process of its own; raises RuntimeError unless every reply was 200."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "http_load.py"), to.address, to.path, USER_TOKEN),
        *(BODY, str(calls), str(AT_ONCE)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(err.decode())
    return Load(**json.loads(out))


@contextlib.asynccontextmanager
async def _replica(work: Path, handler: str) -> AsyncIterator[TinyReplica]:
    """A model server as hosts start it, once it is ready."""
    home = work / handler
    home.mkdir()
    (home / "bench_handlers.py").write_text(HANDLERS)
    ready = home / "ready.json"
    settings = {
        "name": handler.lower(),
        "model_dir": str(home),
        "code_dir": str(home),
        "handler": f"bench_handlers:{handler}",
        "ready_file": str(ready),
    }
    (home / "config.json").write_text(json.dumps(settings))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hatoba_worker.serving", "serve"),
        *("--config", str(home / "config.json")),
        env=clean_environment(),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await until(lambda: ready.exists() or process.returncode is not None)
        found = json.loads(await asyncio.to_thread(ready.read_text))
        yield TinyReplica(f"r-{handler.lower()}", int(found["port"]), process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
