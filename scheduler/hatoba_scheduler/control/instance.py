"""One backend instance, as its loops share it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from hatoba_plugins.backend import Backend, Clock, JobBackend
from hatoba_scheduler.control.calls import Calls, CallSettings
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.observe import Step, of_attempt
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.model import BackendSettings
from hatoba_scheduler.domain.records import Attempt, Change, Job
from hatoba_scheduler.domain.transitions import Now, Rows
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)

GROUP = 100
"""Attempts of one call."""
AGAIN = 1.0
"""Seconds until something that went wrong is tried again."""
Asked = asyncio.Future[Change | None] | None
DescribePools = Callable[[str, Sequence[PoolRoom]], None]


@dataclass(frozen=True, slots=True)
class LoopContext:
    """What every backend's loops share."""

    ledger: Ledger
    store: Store
    specs: SpecCache
    clock: Clock
    rng: random.Random
    cluster_id: str
    describe: DescribePools
    """Takes what a backend tells of its pools."""
    set_backend: Callable[[BackendSettings], None] = lambda _: None
    """Takes whether a backend may be given work now, and how much."""
    most_memory: Callable[[Job], int] = lambda _: 0
    """Bytes of the largest place where a job may go."""


class Instance:
    """A name, a backend with its bulkhead, and the ways to rows and decisions."""

    def __init__(
        self, name: str, backend: Backend, ctx: LoopContext, settings: CallSettings
    ) -> None:
        if backend.jobs is None:
            raise ValueError(f"backend {name!r} has no job role")
        self.name = name
        self.backend = backend
        self.jobs: JobBackend = backend.jobs
        self.ctx = ctx
        self.clock = ctx.clock
        self.calls = Calls(ctx.clock, settings)

    def now(self) -> Now:
        """The time of a decision."""
        return Now(round(self.clock.time() * 1e6))

    def current(self, names: Iterable[str]) -> list[tuple[Rows, Attempt]]:
        """Those of the attempts that are still their tasks' newest."""
        ledger = self.ctx.ledger
        found = []
        for name in names:
            where = ledger.find_attempt(name)
            rows = ledger.rows(where[0]) if where else None
            if where is not None and rows is not None:
                found.append((rows, rows.attempts[where[1]]))
        return found

    def ask(self, name: str, step: Step) -> Asked:
        """Have a decision on an attempt taken; None when it is not its task's newest."""
        where = self.ctx.ledger.find_attempt(name)
        if where is None:
            return None
        return self.ctx.ledger.ask(where[0], of_attempt(where[1], name, step))

    async def settle(self, asked: Iterable[tuple[str, Asked]]) -> list[str]:
        """Wait for decisions; the names of those that could not be stored."""
        wanted = [(name, future) for name, future in asked if future is not None]
        answers = await asyncio.gather(*(f for _, f in wanted), return_exceptions=True)
        failed = [
            name
            for (name, _), answer in zip(wanted, answers, strict=True)
            if isinstance(answer, BaseException)
        ]
        if failed:
            log.warning("decisions.not_stored", backend=self.name, count=len(failed))
        return failed
