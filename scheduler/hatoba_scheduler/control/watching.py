"""What one backend says of its attempts: its watch as it comes, and answers to our own questions.

"Cannot reach it" never ends anything here: it is noted, and what to make of it is the job's own
choice (`control.disconnects`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from hatoba_plugins.values import (
    CapacitySnapshot,
    Gap,
    Health,
    HealthStatus,
    Observation,
    Phase,
    Pool,
    Synced,
    WatchItem,
)
from hatoba_scheduler.control.awaited_ends import Place
from hatoba_scheduler.control.breaker import BreakerState
from hatoba_scheduler.control.instance import GROUP, Instance
from hatoba_scheduler.control.launches import ref_of
from hatoba_scheduler.control.launching import Launcher
from hatoba_scheduler.control.ledger import Answer
from hatoba_scheduler.control.observe import Step, never_arrived, told_before
from hatoba_scheduler.control.supply import Supply
from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.rooms import ENGINE
from hatoba_scheduler.domain.records import Attempt, Resources
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.failpoints import hit

log = structlog.get_logger(__name__)

OBSERVE_FIRST = 1.0
OBSERVE_AGAIN = 30.0
HEALTH_AGAIN = 30.0


class Observer:
    """Watch, questions and health of one backend. `held` are attempts not released yet, of a pool
    or, without a name, all."""

    def __init__(
        self,
        instance: Instance,
        launcher: Launcher,
        supply: Supply,
        held: Callable[[str], Sequence[Attempt]],
    ) -> None:
        self._instance = instance
        self._launcher = launcher
        self._supply = supply
        self._held = held
        self.health = Health(HealthStatus.DEGRADED, "not asked yet")

    # -- the watch ------------------------------------------------------------------------------

    async def watch_forever(self) -> None:
        """Follow the backend; after a gap, or when the watch ends, observe everything."""
        async for item in self._instance.jobs.watch():
            await self._watched(item)
        await self.observe_all()

    async def _watched(self, item: WatchItem) -> None:
        if isinstance(item, Observation):
            self._take_note(item)
        elif isinstance(item, CapacitySnapshot):
            self._supply.elastic = item.elastic
            self._supply.wake()
            # Hosts say themselves which of them run images.
            elsewhere = self._instance.place is not Place.HOST
            runs_images = elsewhere and self._instance.backend.capabilities().images
            rooms = [_room(pool, runs_images=runs_images) for pool in item.pools]
            self._instance.ctx.describe(self._instance.name, rooms)
        elif isinstance(item, Gap):
            await self.observe_all(item.pool)
        else:
            assert isinstance(item, Synced)

    def _take_note(self, seen: Observation) -> None:
        """Have it decided; not waited for, so that the decisions on all that comes go together."""
        step = self._seen(seen)
        if step is not None:
            self._instance.request(seen.name, step, self._note_failure)

    def _note_failure(self, answer: Answer) -> None:
        """What was seen and not stored is asked after again by `observe_forever`."""
        if isinstance(answer, BaseException):
            name = self._instance.name
            log.warning("observation.not_stored", backend=name, error=repr(answer))

    def _seen(self, seen: Observation) -> Step | None:
        self._instance.ends.saw(seen)
        if self._launcher.stores(seen):
            return None
        for _, attempt in self._instance.current((seen.name,)):
            if never_arrived(attempt, seen):
                self._launcher.launch(seen.name)
                return None
            self._instance.foresee(attempt, seen)
            if told_before(attempt, seen):
                return None
        return self._instance.seen(seen, self._instance.now())

    # -- questions ------------------------------------------------------------------------------

    async def observe_forever(self) -> None:
        """Ask after everything soon after a start, then now and then, whatever the watch says."""
        await self._instance.clock.sleep(OBSERVE_FIRST)
        while True:
            await self.observe_all()
            await self._instance.clock.sleep(OBSERVE_AGAIN)

    async def observe_ends_forever(self) -> None:
        """Look anew at ends whose runners have had their time to commit."""
        while True:
            await self._observe(await self._instance.ends.due(GROUP))

    async def observe_all(self, pool: str = "") -> None:
        """Ask after everything that is there (of one pool, or of all)."""
        names = [attempt.name for attempt in self._held(pool) if _may_be_seen(attempt)]
        for start in range(0, len(names), GROUP):
            await self._observe(names[start : start + GROUP])

    async def _observe(self, names: Sequence[str]) -> None:
        refs = [ref_of(attempt) for _, attempt in self._instance.current(names)]
        if not refs:
            return

        async def made() -> list[Observation]:
            hit("observe.call.before")
            seen = await self._instance.jobs.observe(refs)
            hit("observe.call.after")
            return seen

        operation = self._instance.calls["observe"]
        try:
            seen = await operation.call(made)
        except Exception as error:
            if operation.state is BreakerState.CLOSED:
                raise
            log.warning("observe.failed", backend=self._instance.name, error=repr(error))
            seen = [Observation(r.name, Phase.EXISTS, exists=True, reachable=False) for r in refs]
        steps = [(one.name, self._seen(one)) for one in seen]
        await self._instance.settle([(name, step) for name, step in steps if step is not None])
        hit("observe.stored.after")

    async def ask_health_forever(self) -> None:
        """Ask now and then how the backend is."""
        while True:
            try:
                self.health = await self._instance.calls["health"].call(
                    self._instance.backend.health
                )
            except Exception as error:  # noqa: BLE001 - that it failed is the answer
                self.health = Health(HealthStatus.UNHEALTHY, repr(error))
            await self._instance.clock.sleep(HEALTH_AGAIN)


def _may_be_seen(attempt: Attempt) -> bool:
    """Whether it is there as far as is known, and not over."""
    there = attempt.handle or attempt.state > AttemptState.LAUNCHING
    return bool(there) and not attempt.state.terminal


def _room(pool: Pool, *, runs_images: bool) -> PoolRoom:
    """A pool as the planner sees it."""
    labels = (*pool.labels, (ENGINE, "native")) if runs_images else pool.labels
    return PoolRoom(
        pool.name,
        Resources(*pool.total),
        pool.gpu_ids,
        pool.accepting,
        pool.embedded,
        pool.secrets,
        labels,
    )
