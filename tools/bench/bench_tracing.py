"""What kept traces cost: durable SubmitJob with a tenth and with all of them kept, against none."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path

from bench_calls import CALLS, SUBMIT_JOB, loader
from bench_house import NULL, SERVER_CORE, server
from bench_load import Target
from bench_report import Figure, Measured

RUNS = 5
LOST_OF_A_TENTH = 0.03
LOST_OF_ALL = 0.15


async def tracing(work: Path) -> list[Figure]:
    """The rates as shares of that without traces; measured in turn on three servers."""
    load = loader(work)
    rates: dict[float, list[float]] = {0.0: [], 0.1: [], 1.0: []}
    async with contextlib.AsyncExitStack() as stack:
        targets = {}
        for share in rates:
            own = work / f"share-{share}"
            own.mkdir()
            config = f"[server]\ntrace_full_below = 0.0\ntrace_share = {share}\n{NULL}"
            house = await stack.enter_async_context(server(own, config=config, core=SERVER_CORE))
            targets[share] = Target(house.address, SUBMIT_JOB, house.token())
            await load(targets[share], CALLS // 2)
        order = list(rates)
        for _ in range(RUNS):
            for share in order:
                rates[share].append(await load(targets[share], CALLS))
            order.reverse()
    none, tenth, every = (statistics.median(rates[share]) for share in rates)
    return [
        Measured("tracing_tenth", tenth, "calls/s", none).share_of_floor(1 - LOST_OF_A_TENTH),
        Measured("tracing_all", every, "calls/s", none).share_of_floor(1 - LOST_OF_ALL),
    ]
