"""Speed and memory, each figure beside its floor of the same run; see `make bench`.

Prints a table and writes build/bench.json. Exit code 0 unless a figure could not be measured: one
that misses its goal, or that this machine cannot have, is told, not an error. Each figure has a
process and directories of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from bench_house import ROOT, workplace  # isort: skip - finds the modules of the tests
from bench_agent import agent
from bench_backends import bulkhead
from bench_blobs import big_file, small_files
from bench_calls import submit_job, submit_jobs
from bench_devices import devices
from bench_idle import help_time, idle_server
from bench_jobs import idle_latency, null_jobs, true_jobs
from bench_kubernetes import kubernetes
from bench_logs import log_follower
from bench_million import million, tenth
from bench_planner import planner
from bench_report import Figure, Skipped, table, write
from bench_router import router
from bench_serving import replica_start
from bench_share import fair_share
from bench_tracing import tracing
from bench_waits import waits
from bench_watch import watchers

Measure = Callable[[Path], Awaitable[list[Figure]]]
MEASURES: dict[str, Measure] = {
    "submit_job": submit_job,
    "submit_jobs": submit_jobs,
    "waits": waits,
    "null_end_to_end": null_jobs,
    "true_through_worker": true_jobs,
    "idle_submit_latency": idle_latency,
    "bulkhead": bulkhead,
    "million": million,
    "hundred_thousand": tenth,
    "planner": planner,
    "watchers": watchers,
    "fair_share": fair_share,
    "tracing": tracing,
    "idle_server": idle_server,
    "log_follower": log_follower,
    "big_file": big_file,
    "small_files": small_files,
    "help": help_time,
    "devices": devices,
    "agent": agent,
    "router": router,
    "replica_start": replica_start,
    "kubernetes": kubernetes,
}
QUICK = {"million": "hundred_thousand"}
ONE_WITHIN = 420.0
LONG = {"kubernetes": 1_800.0}
"""Seconds for those that take longer: the first time a cluster is built as well."""
MARK = "figures: "
SKIPPED = "skipped: "


def main(arguments: list[str] | None = None) -> int:
    """Measure as the command line says; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)}")
    parser.add_argument(
        "--quick", action="store_true", help="a hundred thousand in line stand for the million"
    )
    parser.add_argument("--here", action="store_true", help="one, in this process")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(MEASURES)
    if unknown:
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    if options.here:
        _measure_here(options.names[0])
        return 0
    names = options.names or [name for name in MEASURES if name != QUICK["million"]]
    if options.quick:
        names = [QUICK.get(name, name) for name in names]
    return _measure_all(names, options.out)


def _measure_all(names: list[str], out: Path) -> int:
    figures: list[Figure] = []
    unmeasured: list[str] = []
    for name in names:
        began = time.monotonic()
        found = _measure(name)
        figures += found or []
        if found is None:
            unmeasured.append(name)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        write(figures, out)  # what is measured stays, should a later one be cut short
    print(table(figures))
    if unmeasured:
        print(f"not measured: {', '.join(unmeasured)}", file=sys.stderr)
    return 1 if unmeasured else 0


def _measure(name: str) -> list[Figure] | None:
    """The figures of one measurement, made in a process of its own: none where this machine cannot
    have it; None when it failed.
    """
    within = LONG.get(name, ONE_WITHIN)
    command = [sys.executable, __file__, "--here", name]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=within, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: not done after {within:.0f} s", file=sys.stderr)
        return None
    found: list[Figure] | None = None
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            found = [Figure(**one) for one in json.loads(line.removeprefix(MARK))]
        elif line.startswith(SKIPPED):
            print(f"{name}: {line}")
            found = []
        else:
            print(line)
    return found if done.returncode == 0 else None


def _measure_here(name: str) -> None:
    with workplace() as work:
        try:
            figures = asyncio.run(_run(MEASURES[name], work))
        except Skipped as skipped:
            print(f"{SKIPPED}{skipped}")
            return
    print(MARK + json.dumps([asdict(one) for one in figures]))


async def _run(measure: Measure, work: Path) -> list[Figure]:
    return await measure(work)


if __name__ == "__main__":
    sys.exit(main())
