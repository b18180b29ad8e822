"""What a real agent costs while nothing happens: memory, processor, and its link."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from bed_device import FarMachine

SETTLES = 8.0
"""Seconds after which what was begun is over."""
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resident bytes, share of one core, bytes of the link a minute both ways with all headers, and
    how often a second it waits for something anew.
    """

    memory: int
    share: float
    link: float
    waits: float


@dataclass(frozen=True, slots=True)
class _Seen:
    time: float
    cpu: float
    carried: int
    waits: int


async def footprint(machine: FarMachine, seconds: float) -> Footprint:
    """Look at an agent for so long, once it has come to rest."""
    await asyncio.sleep(SETTLES)
    before = await asyncio.to_thread(_look, machine)
    await asyncio.sleep(seconds)
    after = await asyncio.to_thread(_look, machine)
    took = after.time - before.time
    return Footprint(
        memory=await asyncio.to_thread(_resident, machine),
        share=(after.cpu - before.cpu) / took,
        link=(after.carried - before.carried) * 60 / took,
        waits=(after.waits - before.waits) / took,
    )


def _look(machine: FarMachine) -> _Seen:
    assert machine.link is not None
    fields = Path(f"/proc/{machine.agent_pid()}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / TICK
    return _Seen(time.monotonic(), cpu, sum(machine.link.carried()), _waits(machine))


def _waits(machine: FarMachine) -> int:
    """Switches that its threads asked for themselves."""
    told = Path(f"/proc/{machine.agent_pid()}/task").glob("*/status")
    lines = (line for one in told for line in one.read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def _resident(machine: FarMachine) -> int:
    pages = Path(f"/proc/{machine.agent_pid()}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
