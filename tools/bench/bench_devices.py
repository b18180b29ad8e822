"""Ten thousand devices on one server: memory, a restart, a new generation; and two thousand by TLS.

Each device has a connection of its own; their processes are on the other core. The ten thousand
come in plain text, which only the rig's server can. The floor is a bare server that has nothing but
their streams; it answers each with constants and reads what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bed_processes import free_port
from bench_house import HERE, NULL, SERVER_CORE, server
from bench_idle import MIB, cpu_seconds, memory
from bench_report import Figure, Measured
from device_yard import HOST, Enrolled, Fleet, Product, Served, bare, enroll, fleet
from server_process import HATOBA
from wire import Wire

PLAIN, BY_TLS = 10_000, 2_000
SETTLE_SECONDS = 2.0
IDLE_SECONDS = 10.0
RSS_MIB = 600.0
BACK_SECONDS = 30.0
GENERATION_SECONDS = 10.0
ROLLOUT_SECONDS = 20.0
TLS_CONNECT_SECONDS = 30.0
TLS_RSS_RATIO = 1.5

RIG = (str(HERE / "device_rig.py"),)
CONFIG = f"""{NULL}
[devices]
listen = "{HOST}:{{port}}"
[backends.edge]
type = "iot-edge-arm"
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one server: seconds, and bytes."""

    opened: float
    empty: int
    """Before a device came."""
    full: int
    """With all of them there and at rest."""
    generation: float
    rollout: float
    """Until the server knows that all run the new one."""

    def each(self, devices: int) -> float:
        """KiB that one more device takes."""
        return (self.full - self.empty) / 1024 / devices


async def devices(work: Path) -> list[Figure]:
    """All figures of devices."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return [*await _in_plain_text(work / "plain"), *await _by_tls(work / "tls")]


async def _in_plain_text(work: Path) -> list[Figure]:
    enrolled = await enroll(work / "data", PLAIN, tls=False)
    async with _product(work, enrolled, RIG) as (served, played):
        ours = await _seen(served, played, PLAIN)
        print(f"  idle, {await _idle(served.pid):.1%} of a core")
        killed = await _back(served, played, killed=True)
        stopped = await _back(served, played, killed=False)
    async with _floor(work, enrolled) as (served, played):
        floor = await _seen(served, played, PLAIN)
        least = await _back(served, played, killed=True)
    generation = Measured("devices_generation", ours.generation, "s", floor.generation)
    return [
        Measured("devices_rss", ours.full / MIB, "MiB", floor.full / MIB).at_most(RSS_MIB),
        Measured("devices_back", killed, "s", least).at_most(BACK_SECONDS),
        Measured("devices_back_after_stop", stopped, "s").at_most(BACK_SECONDS),
        generation.at_most(GENERATION_SECONDS),
        Measured("devices_rollout", ours.rollout, "s").at_most(ROLLOUT_SECONDS),
    ]


async def _by_tls(work: Path) -> list[Figure]:
    enrolled = await enroll(work / "data", BY_TLS, tls=True)
    async with _product(work, enrolled, HATOBA) as (served, played):
        ours = await _seen(served, played, BY_TLS)
    async with _floor(work, enrolled) as (served, played):
        floor = await _seen(served, played, BY_TLS)
    rss = Measured("tls_device_rss", ours.each(BY_TLS), "KiB", floor.each(BY_TLS))
    opened = Measured("tls_devices_connect", ours.opened, "s", floor.opened)
    generation = Measured("tls_devices_generation", ours.generation, "s", floor.generation)
    return [
        rss.at_most_times_floor(TLS_RSS_RATIO),
        opened.at_most(TLS_CONNECT_SECONDS),
        generation.at_most(GENERATION_SECONDS),
    ]


@contextlib.asynccontextmanager
async def _product(
    work: Path, enrolled: Enrolled, program: Sequence[str]
) -> AsyncIterator[tuple[Served, Fleet]]:
    port = free_port(HOST)
    config = CONFIG.format(port=port)
    async with (
        server(work, config=config, core=SERVER_CORE, program=program) as house,
        Wire(house) as wire,
        fleet(work, enrolled, port) as played,
    ):
        yield Product(house, wire), played


@contextlib.asynccontextmanager
async def _floor(work: Path, enrolled: Enrolled) -> AsyncIterator[tuple[Served, Fleet]]:
    port = free_port(HOST)
    async with (
        bare(work / "floor", enrolled, port) as served,
        fleet(work, enrolled, port) as played,
    ):
        yield served, played


async def _seen(served: Served, played: Fleet, count: int) -> Seen:
    """Have all come, and run one thing and then another. Raises RuntimeError unless each has a
    connection of its own.
    """
    who = type(served).__name__.lower()
    empty = memory(served.pid, "VmRSS")
    began = await played.dial()
    came = await played.back(0.0)
    print(f"{who}, {count:,} devices: connected, {came.words(began)}")
    if (there := await played.connections()) < count:
        raise RuntimeError(f"{there} connections of {count}")
    await _deployed(served, played, 1)
    generation, rollout = await _deployed(served, played, 2)
    await asyncio.sleep(SETTLE_SECONDS)
    full, most = (memory(served.pid, name) for name in ("VmRSS", "VmHWM"))
    print(f"  {full / MIB:.0f} MiB, at most {most / MIB:.0f}, {empty / MIB:.0f} without devices")
    return Seen(came.last(began), empty, full, generation, rollout)


async def _deployed(served: Served, played: Fleet, revision: int) -> tuple[float, float]:
    """Seconds until the last device had it, and until the server knows that all run it."""
    began = await served.deploy(revision)
    reached = await played.reached(revision)
    await served.settled()
    over = time.monotonic() - began
    print(f"  generation {revision}, {reached.words(began)}, known in {over:.1f} s")
    return reached.last(began), over


async def _idle(pid: int) -> float:
    """The share of a core that it takes while nothing happens."""
    before = cpu_seconds(pid)
    await asyncio.sleep(IDLE_SECONDS)
    return (cpu_seconds(pid) - before) / IDLE_SECONDS


async def _back(served: Served, played: Fleet, *, killed: bool) -> float:
    """Seconds from a server's end until the last device is back on the next one."""
    began = time.monotonic()
    await served.restart(killed=killed)
    up = time.monotonic() - began
    came = await played.back(began)
    how = "killed" if killed else "stopped"
    print(f"  {how}, up in {up:.1f} s, devices back, {came.words(began)}; {came.dials:,} dials")
    return came.last(began)
