"""One backend instance, as its loops share it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from hatoba_plugins.backend import Backend, Clock, JobBackend
from hatoba_plugins.values import Observation
from hatoba_scheduler.control.awaited_ends import AwaitedEnds, Place
from hatoba_scheduler.control.calls import Calls, CallSettings
from hatoba_scheduler.control.exits import Exits
from hatoba_scheduler.control.ledger import Answer, Ledger
from hatoba_scheduler.control.logs import LogStore
from hatoba_scheduler.control.observe import Grounds, Step, foresee, observation_step, of_attempt
from hatoba_scheduler.control.places import NO_PLACES, Places
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.model import BackendSettings
from hatoba_scheduler.domain.records import Attempt
from hatoba_scheduler.domain.transitions import Now, Rows
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)

GROUP = 100
"""Attempts of one call."""
AGAIN = 1.0
"""Seconds until something that went wrong is tried again."""
DescribePools = Callable[[str, Sequence[PoolRoom]], None]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What goes between backends and runners in pods and images."""

    exits: Exits
    """How containers ended, for runners that cannot see it."""
    heard: Callable[[str], float]
    """When an attempt's runner was heard of last, in monotonic seconds; below 0: never."""
    credential: Callable[[Attempt], str]
    """With which an attempt's runner may claim it; always the same for an attempt."""


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
    places: Places = NO_PLACES
    """What its attempts were sent to."""
    elsewhere: Elsewhere | None = None
    """What runners in pods and images need; without it there are none."""
    logs: LogStore | None = None
    """Where logs are brought that backends keep; without it they stay there."""


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
        others = ctx.elsewhere or Elsewhere(Exits(ctx.clock), lambda _: -1.0, lambda _: "")
        self.place = Place(backend.capabilities().runner)
        self.ends = AwaitedEnds(ctx.clock, self.place, others.heard)
        self._grounds = Grounds(ctx.rng, self.ends, others.exits, ctx.places)
        self._credential = others.credential

    def credential(self, attempt: Attempt) -> str:
        """What an attempt's runner claims it with, where no host vouches for it."""
        return self._credential(attempt) if self.ends.elsewhere else ""

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

    def seen(self, seen: Observation, now: Now) -> Step:
        """What an observation decides."""
        return observation_step(seen, now, self._grounds)

    def foresee(self, attempt: Attempt, seen: Observation) -> None:
        """Keep what an observation says of an end to come."""
        foresee(attempt, seen, self._grounds.exits)

    def request(self, name: str, step: Step, told: Callable[[Answer], None]) -> None:
        """Have a decision on an attempt taken, as `Ledger.request`; nothing when it is not its
        task's newest."""
        where = self.ctx.ledger.find_attempt(name)
        if where is not None:
            self.ctx.ledger.request(where[0], of_attempt(where[1], name, step), told)

    async def settle(self, steps: Iterable[tuple[str, Step]]) -> list[str]:
        """Have decisions on attempts taken; the names of those that could not be stored."""
        find = self.ctx.ledger.find_attempt
        wanted = [(name, step, where) for name, step in steps if (where := find(name)) is not None]
        answers = _Answers(len(wanted))
        for name, step, (uid, index) in wanted:
            told = partial(answers.hear, name)
            self.ctx.ledger.request(uid, of_attempt(index, name, step), told)
        failed = await answers.failures()
        if failed:
            log.warning("decisions.not_stored", backend=self.name, count=len(failed))
        return failed


class _Answers:
    """Waits for many answers as for one."""

    def __init__(self, count: int) -> None:
        self._open = count
        self._failed: list[str] = []
        self._all = asyncio.Event()

    def hear(self, name: str, answer: Answer) -> None:
        """One has come."""
        self._open -= 1
        if isinstance(answer, BaseException):
            self._failed.append(name)
        if not self._open:
            self._all.set()

    async def failures(self) -> list[str]:
        """Names of those that failed, once all have come."""
        if self._open:
            await self._all.wait()
        return self._failed
