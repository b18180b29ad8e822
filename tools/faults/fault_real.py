"""Real components as the outside of a round: containers that tell of themselves over TCP."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from bed_place import default_directory
from fault_outside import REAP_AFTER, Outside
from fault_stand import Stand
from testbed_fixtures import DockerEngine, Testbed

from hatoba.v1 import job_pb2

FENCED = 0.1
"""Share of the jobs that have our runner beside or around them."""
PORTS = range(20_000, 32_000)
"""Below those that the kernel gives away, so that nobody has a dead server's before the next."""


class Real(Outside):
    """What they have in common: a testbed, images, and a stand where containers tell."""

    components: ClassVar[tuple[str, ...]] = ("docker",)
    """Of the testbed."""
    pace = 3.0
    at_once = 12
    # An engine that has too much to do starts what its platform gave up already.
    backoff = (1_000, 10_000)
    jobs_a_kill = 3
    breath = 4
    drained = 0.05
    nudge = 1

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.bed = Testbed(default_directory())
        self.open = AsyncExitStack()
        """What goes with the round."""
        self.gateway = ""
        """Where containers find servers of this machine."""
        self.bare_image = ""
        """For jobs without our runner."""
        self.runtime_image = ""
        """For those with it."""
        self._stand: Stand | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.bed.up, *self.components)
        engine = await asyncio.to_thread(self.bed.docker_engine)
        self.gateway, self.bare_image = engine.gateway, engine.busybox
        running = Stand.running(self.gateway, self.work / "ledger")
        self._stand = await self.open.enter_async_context(running)
        await self.prepare(engine)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await asyncio.to_thread(self.clear)
        finally:
            await self.open.aclose()

    async def prepare(self, engine: DockerEngine) -> None:
        """Make what is the round's own on the platform."""

    def clear(self) -> None:
        """Take away what the platform keeps of the round; blocks."""

    def fill(
        self, spec: job_pb2.JobSpec, milliseconds: int, code: int, dice: random.Random
    ) -> None:
        """See Outside."""
        assert self._stand is not None
        if self.runtime_image and dice.random() < FENCED:
            spec.command.extend(self._stand.python(milliseconds, code))
            self.with_runner(spec)
        else:
            spec.command.extend(self._stand.shell(milliseconds, code))
            self.without_runner(spec)

    def with_runner(self, spec: job_pb2.JobSpec) -> None:
        """Have our runner run it."""
        spec.environment.image = self.runtime_image

    def without_runner(self, spec: job_pb2.JobSpec) -> None:
        """Have the platform run it."""
        spec.environment.image = self.bare_image

    def listening(self) -> str:
        """Where all servers of the round listen, one after the other: runners outlive them."""
        return f'[server]\nlisten = "{self.gateway}:{free_port(self.gateway)}"\n'


def instance(name: str, kind: str, options: str) -> str:
    """A backend as `hatoba.toml` has it."""
    head = f'[backends.{name}]\ntype = "{kind}"\nreap_after = {REAP_AFTER}\n'
    return f"{head}[backends.{name}.options]\n{options}\n"


def free_port(host: str) -> int:
    """One that nobody listens at."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port of {host} is free")
