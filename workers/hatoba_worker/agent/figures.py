"""Figures of the device, and of what runs on it: looked at now and then, told when they moved.

A link may be slow and be paid for by the byte: what did not move by more than a figure's step and
its share of what was told last waits, for at most an hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.messages import Sample
from hatoba_worker.replicas import probe

EVERY, SOON = 300.0, 3.0
"""Seconds between two looks, and after something changed on the device."""
ANEW = 3600.0
"""Seconds after which all of them are told, moved or not."""
MEMORY, THERMAL = Path("/proc/meminfo"), Path("/sys/class/thermal")
_COUNTED = re.compile(
    r'^hatoba_serving_(?:requests_total\{code="(\d+)"\}'
    r'|request_seconds_bucket\{le="([^"]+)"\}) (\d+)$',
    re.MULTILINE,
)
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
Hear = Callable[[str, float, str], None]
Ask = Callable[[str, str], Awaitable[bytes]]


class Figure(NamedTuple):
    """How a figure is called, and by how much it moves before that is told."""

    name: str
    step: float = 0.0
    share: float = 0.0

    def moved(self, before: float, now: float) -> bool:
        """Whether it is worth a word."""
        return abs(now - before) > max(self.step, self.share * abs(before))


OF_DEVICE = (
    Figure("agent_memory_bytes", share=0.05),
    Figure("free_disk_bytes", share=0.05),
    Figure("free_memory_bytes", share=0.1),
    Figure("link_down_bytes"),
    Figure("link_up_bytes"),
    Figure("load_1m", step=0.5),
    Figure("temperature_celsius", step=2.0),
)
OF_DEPLOYMENT = (
    Figure("cpu_seconds", step=1.0),
    Figure("errors"),
    Figure("latency_p50_seconds"),
    Figure("latency_p95_seconds"),
    Figure("memory_bytes", share=0.05),
    Figure("predictions"),
    Figure("restarts"),
)
_KNOWN = {one.name: one for one in (*OF_DEVICE, *OF_DEPLOYMENT)}


class Serving(NamedTuple):
    """A model server: its deployment, its name at the fleet, `HOST:PORT` (empty: it does not
    answer) and how often it was started again."""

    deployment: str
    name: str
    address: str
    restarts: int


class Runs(Protocol):
    """Who knows what runs."""

    def serving(self) -> list[Serving]:
        """All model servers."""
        ...

    async def samples(self) -> Sequence[Sample]:
        """What their processes use now."""
        ...


class Counted(NamedTuple):
    """What a model server counted since it began; `seconds`: answers by upper bound, each with
    those below."""

    predictions: int
    errors: int
    seconds: dict[float, int]

    @classmethod
    def read(cls, text: str) -> Counted:
        """From its /metrics."""
        found = _COUNTED.findall(text)
        codes = {int(code): int(count) for code, _, count in found if code}
        seconds = {float(bound): int(count) for _, bound, count in found if bound}
        errors = sum(count for code, count in codes.items() if code >= 500)
        return cls(sum(codes.values()), errors, seconds)

    def since(self, before: Counted | None) -> dict[float, int]:
        """Answers by upper bound since then; all of them where it began anew."""
        known = before.seconds if before is not None else {}
        some = {bound: count - known.get(bound, 0) for bound, count in self.seconds.items()}
        return self.seconds if any(count < 0 for count in some.values()) else some


class Figures:
    """Looks at them. `hear` gets a name, a value and a deployment (empty: the device); `own` is
    what the agent knows, and blocks."""

    def __init__(
        self,
        hear: Hear,
        runs: Runs,
        own: Callable[[], Mapping[str, float]],
        ask: Ask = probe.body,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hear = hear
        self._runs = runs
        self._own = own
        self._ask = ask
        self._monotonic = monotonic
        self._told: dict[tuple[str, str], float] = {}
        self._anew = 0.0
        self._counted: dict[str, Counted] = {}

    async def look(self) -> None:
        """Tell those that moved."""
        if (now := self._monotonic()) >= self._anew:
            self._told, self._anew = {}, now + ANEW
        self._tell(await asyncio.to_thread(self._own), "")
        used = {one.attempt.rpartition(".")[0]: one for one in await self._runs.samples()}
        serving = self._runs.serving()
        for one in serving:
            self._tell(await self._of(one, used.get(one.name)), one.deployment)
        self._forget(serving)

    async def _of(self, one: Serving, used: Sample | None) -> dict[str, float]:
        found: dict[str, float] = {"restarts": one.restarts}
        if used is not None:
            found |= {"memory_bytes": used.rss_bytes, "cpu_seconds": used.cpu_seconds}
        if one.address and (text := await self._ask(one.address, "/metrics")):
            found |= self._served(one.name, Counted.read(text.decode(errors="replace")))
        return found

    def _served(self, name: str, now: Counted) -> dict[str, float]:
        some = now.since(self._counted.get(name))
        self._counted[name] = now
        found: dict[str, float] = {"predictions": now.predictions, "errors": now.errors}
        if any(some.values()):
            found["latency_p50_seconds"] = quantile(some, 0.5)
            found["latency_p95_seconds"] = quantile(some, 0.95)
        return found

    def _tell(self, found: Mapping[str, float], deployment: str) -> None:
        for name, value in found.items():
            before = self._told.get((name, deployment))
            if before is None or _KNOWN[name].moved(before, value):
                self._told[name, deployment] = value
                self._hear(name, value, deployment)

    def _forget(self, serving: Sequence[Serving]) -> None:
        """What does not run any more is told anew once it runs again."""
        there = {"", *(one.deployment for one in serving)}
        self._told = {key: value for key, value in self._told.items() if key[1] in there}
        names = {one.name for one in serving}
        self._counted = {name: one for name, one in self._counted.items() if name in names}


def quantile(seconds: Mapping[float, int], share: float) -> float:
    """Below which a share of the answers lies, as far as their bounds tell; of those beyond the
    last bound that bound."""
    rank, below, lower = share * seconds[math.inf], 0, 0.0
    for bound, count in sorted(seconds.items()):
        if count >= rank and bound < math.inf:
            return lower + (bound - lower) * (rank - below) / (count - below)
        if bound < math.inf:
            below, lower = count, bound
    return lower


def of_machine(memory: Path = MEMORY, thermal: Path = THERMAL) -> dict[str, float]:
    """Of the machine and this process, as far as its kernel tells; blocks."""
    found: dict[str, float] = {"load_1m": os.getloadavg()[0]}
    with contextlib.suppress(OSError):
        if free := _AVAILABLE.search(memory.read_text("ascii")):
            found["free_memory_bytes"] = 1024 * int(free[1])
    if (own := procfs.stat(os.getpid())) is not None:
        found["agent_memory_bytes"] = own.rss_bytes
    if zones := _temperatures(thermal):
        found["temperature_celsius"] = max(zones)
    return found


def _temperatures(thermal: Path) -> list[float]:
    found = []
    for zone in thermal.glob("thermal_zone*/temp"):
        # A sensor that is off cannot be read.
        with contextlib.suppress(OSError, ValueError):
            found.append(int(zone.read_text("ascii")) / 1000)
    return found
