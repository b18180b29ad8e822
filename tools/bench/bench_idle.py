"""What doing nothing costs: an idle server, and the help of the command line."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_house import floor_server, server
from bench_report import Figure, Measured
from server_process import clean_environment
from wire import Wire

from hatoba.v1 import job_pb2

SETTLE_SECONDS = 2.0
IDLE_SECONDS = 10.0
RSS_MIB = 150.0
CPU_PERCENT = 1.0
HELP_RUNS = 15
HELP_MS = 150.0
MIB = 1 << 20


async def idle_server(work: Path) -> list[Figure]:
    """Memory and processor of a server whose worker is connected and has nothing to do.

    The floor is a server without jobs, store writes or a worker.
    """
    async with server(work, worker=True) as house, Wire(house) as wire:
        job = await wire.submit(job_pb2.JobSpec(name="bench", command=["/bin/true"]))
        await wire.ended(job.name)
        cpu, rss = await _idle(house.pid)
    async with floor_server(work) as floor:
        floor_cpu, floor_rss = await _idle(floor.pid)
    return [
        Measured("idle_server_rss", rss / MIB, "MiB", floor_rss / MIB).at_most(RSS_MIB),
        Measured("idle_server_cpu", cpu * 100, "% of a core", floor_cpu * 100).at_most(CPU_PERCENT),
    ]


async def _idle(pid: int) -> tuple[float, int]:
    """The share of a core it uses, and then its resident bytes."""
    await asyncio.sleep(SETTLE_SECONDS)
    before = cpu_seconds(pid)
    began = time.perf_counter()
    await asyncio.sleep(IDLE_SECONDS)
    share = (cpu_seconds(pid) - before) / (time.perf_counter() - began)
    return share, memory(pid, "VmRSS")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, by the scheduler's own fine count."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def memory(pid: int, name: str) -> int:
    """VmRSS, or VmHWM: the highest since reset_peak; in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} shows no {name}")


def reset_peak(pid: int) -> None:
    """Let VmHWM begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def help_time(work: Path) -> list[Figure]:
    """`hatoba --help` beside a Python that does nothing, in turn; the medians."""
    hatoba = str(Path(sys.executable).with_name("hatoba"))
    ours, floor = [], []
    for _ in range(HELP_RUNS):
        ours.append(_seconds([hatoba, "--help"]))
        floor.append(_seconds([sys.executable, "-c", "pass"]))
    value, least = statistics.median(ours[1:]), statistics.median(floor[1:])
    return [Measured("help", value * 1e3, "ms", least * 1e3).at_most(HELP_MS)]


def _seconds(command: list[str]) -> float:
    environment = {**clean_environment(), "TERM": os.environ.get("TERM", "dumb")}
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)
    return time.perf_counter() - began
