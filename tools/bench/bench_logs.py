"""What a follower of a large log costs the server in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench_house import server
from bench_idle import MIB, memory, reset_peak
from bench_report import Figure, Measured
from waiting import until
from wire import Wire

from hatoba.v1 import job_pb2

LARGE = 200 * MIB
SMALL = MIB
MOST_MIB = 32.0
PATIENCE = 120.0


async def log_follower(work: Path) -> list[Figure]:
    """The server's growth while somebody follows, as the log is written and afterwards.

    Each growth is that of a fresh server process. As the log is written, what taking the log in
    costs without a follower is taken off. The floor is a follower of a log of 1 MiB.
    """
    names: dict[int, str] = {}

    async def alone(wire: Wire) -> None:
        names[LARGE] = await _written(wire, work, LARGE)

    async def small(wire: Wire) -> None:
        names[SMALL] = await _written(wire, work, SMALL)

    async def both(wire: Wire) -> None:
        job = await wire.submit(_spec(LARGE))
        async with asyncio.TaskGroup() as group:
            group.create_task(_followed(wire, job.name, LARGE), name="follower")
            await wire.ended(job.name, PATIENCE)

    taking_in = await _growth(work, alone)
    written = await _growth(work, both) - taking_in
    await _growth(work, small)
    there = await _growth(work, lambda wire: _followed(wire, names[LARGE], LARGE))
    floor = await _growth(work, lambda wire: _followed(wire, names[SMALL], SMALL))
    print(f"log_follower: written {written / MIB:.1f} MiB, there {there / MIB:.1f} MiB,")
    print(f"  taking the log in {taking_in / MIB:.1f} MiB")
    value = max(written, there)
    return [Measured("log_follower", value / MIB, "MiB", floor / MIB).at_most(MOST_MIB)]


def _spec(size: int) -> job_pb2.JobSpec:
    line = "0123456789" * 10
    return job_pb2.JobSpec(name="bench", command=["/bin/sh", "-c", f"yes {line} | head -c {size}"])


async def _growth(work: Path, act: Callable[[Wire], Awaitable[None]]) -> int:
    """How far a fresh server's memory goes above where it was before `act`, in bytes."""
    async with server(work, worker=True) as house, Wire(house) as wire:
        job = await wire.submit(job_pb2.JobSpec(name="warm", command=["/bin/echo", "warm"]))
        await wire.ended(job.name)
        await wire.log(job.name)
        reset_peak(house.pid)
        before = memory(house.pid, "VmRSS")
        await act(wire)
        return memory(house.pid, "VmHWM") - before


async def _written(wire: Wire, work: Path, size: int) -> str:
    """The name of a job that wrote so much, once all of it is in the server's directory."""
    job = await wire.submit(_spec(size))
    await wire.ended(job.name, PATIENCE)
    logs = work / "data" / "logs" / job.uid
    await until(lambda: sum(one.stat().st_size for one in logs.glob("*/stdout")) == size, PATIENCE)
    return job.name


async def _followed(wire: Wire, name: str, size: int) -> None:
    """Read a log to its end and keep none of it. Raises RuntimeError unless all of it came."""
    request = job_pb2.TailLogsRequest(job=name, stream="stdout", follow=True)
    read = 0
    async with asyncio.timeout(PATIENCE):
        async for piece in wire.stream(request, job_pb2.TailLogsResponse):
            read += len(piece.data)
    if read != size:
        raise RuntimeError(f"read {read} of {size} bytes")
