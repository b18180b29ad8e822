"""Everything that is asked of one backend, and everything it says, for as long as it is open.

Launches go out in groups; what may or may not have happened is looked up until it is known, never
launched again before. Stops and releases are repeated until they took effect.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from hatoba_plugins.backend import Backend, Clock, JobBackend
from hatoba_plugins.errors import BackendError, Retry
from hatoba_plugins.values import (
    Absent,
    Ambiguous,
    CapacitySnapshot,
    Found,
    Gap,
    GroupKind,
    Health,
    HealthStatus,
    Launched,
    LaunchGroup,
    LaunchOutcome,
    LaunchRequest,
    Observation,
    Pool,
    Refused,
    Released,
    Synced,
    Unsure,
    WatchItem,
)
from hatoba_scheduler.control.launches import launch_request, ref_of
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.control.observe import (
    Step,
    handle_step,
    never_arrived,
    never_was_step,
    observation_step,
    of_attempt,
    refused_step,
    told_before,
)
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.records import Attempt, Event, Resources
from hatoba_scheduler.domain.states import AttemptState, Release
from hatoba_scheduler.domain.transitions import Now, Rows, released
from hatoba_scheduler.failpoints import hit

log = structlog.get_logger(__name__)

GROUP = 100
LAUNCH_DEADLINE = 30.0
CALL_DEADLINE = 30.0
STOP_AGAIN = 10.0
OBSERVE_FIRST = 1.0
OBSERVE_AGAIN = 30.0
WATCH_AGAIN = 1.0
HEALTH_AGAIN = 30.0
Asked = asyncio.Future[Any] | None
DescribePools = Callable[[str, Sequence[PoolRoom]], None]


@dataclass(frozen=True, slots=True)
class LoopContext:
    """What every backend's loop shares."""

    ledger: Ledger
    specs: SpecCache
    clock: Clock
    rng: random.Random
    cluster_id: str
    describe: DescribePools


class _Todo:
    """Attempt names that something must be done about, each at most once; bounded by what lives."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._event = asyncio.Event()

    def add(self, name: str) -> None:
        self._names[name] = None
        self._event.set()

    async def take(self, limit: int) -> list[str]:
        while not self._names:
            self._event.clear()
            await self._event.wait()
        names = list(self._names)[:limit]
        for name in names:
            del self._names[name]
        return names


class BackendLoop:
    """One backend's launcher, resolver, watcher, stopper and releaser."""

    def __init__(self, name: str, backend: Backend, ctx: LoopContext) -> None:
        if backend.jobs is None:
            raise ValueError(f"backend {name!r} has no job role")
        self.name = name
        self.backend = backend
        self.health = Health(HealthStatus.DEGRADED, "not asked yet")
        self._jobs: JobBackend = backend.jobs
        self._ctx = ctx
        self._launches = _Todo()
        self._doubtful = _Todo()
        self._stops = _Todo()
        self._releases = _Todo()
        self._held: dict[str, None] = {}
        self._asked_to_stop: set[str] = set()
        self._watching = asyncio.Event()
        ctx.ledger.listen(self._on_commit)

    # -- taking note ----------------------------------------------------------------------------

    def launch(self, attempt: Attempt) -> None:
        """Take over a committed intent."""
        self._launches.add(attempt.name)

    def recover(self) -> None:
        """After a restart: what was being launched is doubtful, what was being ended goes on."""
        for rows in self._ctx.ledger.all_rows():
            for attempt in rows.attempts.values():
                if attempt.backend == self.name:
                    self._recover(attempt)

    def _recover(self, attempt: Attempt) -> None:
        unclaimed = attempt.state is AttemptState.LAUNCHING and not attempt.claim_time
        if unclaimed or not (attempt.handle or attempt.state.terminal):
            self._doubtful.add(attempt.name)
        self._note(attempt)

    def _on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        del events
        for commit in commits:
            for attempt, _ in commit.change.attempts:
                if attempt.backend == self.name:
                    self._note(attempt)

    def _note(self, attempt: Attempt) -> None:
        if attempt.release is Release.RELEASED:
            self._held.pop(attempt.name, None)
        else:
            self._held[attempt.name] = None
        if attempt.state is AttemptState.STOPPING:
            self._stops.add(attempt.name)
        elif attempt.state.terminal and attempt.release is not Release.RELEASED:
            self._releases.add(attempt.name)

    # -- the loops ------------------------------------------------------------------------------

    async def run(self) -> None:
        """All loops of this backend; ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            for loop in (
                self._launch_loop,
                self._resolve_loop,
                self._watch_loop,
                self._stop_loop,
                self._release_loop,
                self._observe_loop,
                self._health_loop,
            ):
                group.create_task(self._forever(loop), name=f"{self.name}:{loop.__name__}")

    async def _forever(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """No failure of a backend ends its loops: they begin again."""
        while True:
            try:
                await loop()
            except Exception:
                log.exception("backend.loop.failed", backend=self.name, loop=loop.__name__)
            await self._ctx.clock.sleep(WATCH_AGAIN)

    def _now(self) -> Now:
        return Now(round(self._ctx.clock.time() * 1e6))

    def _current(self, names: Iterable[str]) -> list[tuple[Rows, Attempt]]:
        """Those of the attempts that are still their tasks' newest."""
        found = []
        for name in names:
            where = self._ctx.ledger.find_attempt(name)
            rows = self._ctx.ledger.rows(where[0]) if where else None
            if where is not None and rows is not None:
                found.append((rows, rows.attempts[where[1]]))
        return found

    def _ask(self, name: str, step: Step) -> Asked:
        where = self._ctx.ledger.find_attempt(name)
        if where is None:
            return None
        return self._ctx.ledger.ask(where[0], of_attempt(where[1], name, step))

    async def _settle(self, asked: Iterable[tuple[str, Asked]], again: _Todo | None = None) -> None:
        """Wait for decisions; what could not be stored is done again after a while."""
        wanted = [(name, future) for name, future in asked if future is not None]
        answers = await asyncio.gather(*(f for _, f in wanted), return_exceptions=True)
        failed = [
            name
            for (name, _), answer in zip(wanted, answers, strict=True)
            if isinstance(answer, BaseException)
        ]
        if not failed:
            return
        log.warning("decisions.not_stored", backend=self.name, count=len(failed))
        await self._ctx.clock.sleep(WATCH_AGAIN)
        if again is not None:
            for name in failed:
                again.add(name)

    # -- launching ------------------------------------------------------------------------------

    async def _launch_loop(self) -> None:
        while True:
            names = await self._launches.take(GROUP)
            try:
                await self._launch(names)
            except BaseException:
                for name in names:
                    self._doubtful.add(name)
                raise

    async def _launch(self, names: Sequence[str]) -> None:
        requests = await self._requests(names)
        if not requests:
            return
        outcomes = await self._call_launch(requests)
        answered = {outcome.name: outcome for outcome in outcomes}
        missing = [
            Ambiguous(request.name, "the backend did not answer for it")
            for request in requests
            if request.name not in answered
        ]
        answers = [*outcomes, *missing]
        hit("launch.stored.before")
        await self._settle(
            [(one.name, self._launch_outcome(one)) for one in answers], self._doubtful
        )
        hit("launch.stored.after")

    async def _requests(self, names: Sequence[str]) -> list[LaunchRequest]:
        current = [
            (rows.job, attempt)
            for rows, attempt in self._current(names)
            if attempt.state is AttemptState.LAUNCHING
        ]
        specs = await self._ctx.specs.get([job.uid for job, _ in current])
        return [
            launch_request(job, attempt, specs[job.uid], self._ctx.cluster_id)
            for job, attempt in current
            if job.uid in specs
        ]

    async def _call_launch(self, requests: Sequence[LaunchRequest]) -> list[LaunchOutcome]:
        group = LaunchGroup(GroupKind.SINGLE, tuple(requests))
        try:
            async with asyncio.timeout(LAUNCH_DEADLINE):
                hit("launch.call.before")
                outcomes = await self._jobs.launch(group)
                hit("launch.call.after")
                return outcomes
        except BackendError as error:
            return [Refused(request.name, error) for request in requests]
        except Exception as error:  # noqa: BLE001 - whatever it was, it perhaps happened
            log.warning("launch.ambiguous", backend=self.name, error=repr(error))
            return [Ambiguous(request.name, repr(error)) for request in requests]

    def _launch_outcome(self, outcome: LaunchOutcome) -> Asked:
        if isinstance(outcome, Launched):
            return self._ask(outcome.name, handle_step(outcome.handle, outcome.phase, self._now()))
        if isinstance(outcome, Refused):
            return self._ask(outcome.name, refused_step(outcome.error, self._now()))
        self._doubtful.add(outcome.name)
        return None

    async def _resolve_loop(self) -> None:
        """Look up what may or may not exist, until it is known."""
        while True:
            names = await self._doubtful.take(GROUP)
            again = await self._resolve(names)
            if again is not None:
                await self._ctx.clock.sleep(again)

    async def _resolve(self, names: Sequence[str]) -> float | None:
        """Seconds until those that are still in doubt are looked up again; None: there are none."""
        current = [attempt for _, attempt in self._current(names) if not attempt.state.terminal]
        if not current:
            return None
        try:
            async with asyncio.timeout(CALL_DEADLINE):
                hit("find.call.before")
                found = await self.backend.find([ref_of(attempt) for attempt in current])
                hit("find.call.after")
        except Exception as error:  # noqa: BLE001 - not knowing is what this loop is for
            log.warning("find.failed", backend=self.name, error=repr(error))
            found = [Unsure(attempt.name, WATCH_AGAIN) for attempt in current]
        answered = {one.name for one in found}
        found += [Unsure(a.name, WATCH_AGAIN) for a in current if a.name not in answered]
        await self._settle([(one.name, self._resolved(one)) for one in found], self._doubtful)
        hit("find.stored.after")
        return min((one.after for one in found if isinstance(one, Unsure)), default=None)

    def _resolved(self, outcome: Found | Absent | Unsure) -> Asked:
        if isinstance(outcome, Found):
            return self._ask(outcome.name, handle_step(outcome.handle, outcome.phase, self._now()))
        if isinstance(outcome, Absent):
            self._launches.add(outcome.name)
        else:
            self._doubtful.add(outcome.name)
        return None

    # -- watching -------------------------------------------------------------------------------

    async def _watch_loop(self) -> None:
        """Follow the backend; after a gap, or when the watch ends, observe everything."""
        async for item in self._jobs.watch():
            await self._watched(item)
        await self._observe_all("")

    async def _watched(self, item: WatchItem) -> None:
        if isinstance(item, Observation):
            asked = self._seen(item)
            if asked is not None:
                asked.add_done_callback(self._note_failure)
        elif isinstance(item, CapacitySnapshot):
            self._ctx.describe(self.name, [_room(pool) for pool in item.pools])
        elif isinstance(item, Synced):
            self._watching.set()
        elif isinstance(item, Gap):
            await self._observe_all(item.pool)

    def _note_failure(self, asked: asyncio.Future[Any]) -> None:
        """What was seen and not stored is asked after again by the observe loop."""
        if not asked.cancelled() and asked.exception() is not None:
            log.warning("observation.not_stored", backend=self.name, error=repr(asked.exception()))

    def _seen(self, seen: Observation) -> Asked:
        for _, attempt in self._current([seen.name]):
            if never_arrived(attempt, seen):
                self._launches.add(seen.name)
                return None
            if told_before(attempt, seen):
                return None
        return self._ask(seen.name, observation_step(seen, self._now(), self._ctx.rng))

    async def _observe_loop(self) -> None:
        """Ask after everything soon after a start, then now and then, whatever the watch says."""
        await self._ctx.clock.sleep(OBSERVE_FIRST)
        while True:
            await self._observe_all("")
            await self._ctx.clock.sleep(OBSERVE_AGAIN)

    async def _observe_all(self, pool: str) -> None:
        current = [
            attempt
            for _, attempt in self._current(list(self._held))
            if (not pool or attempt.host == pool)
            and (attempt.handle or attempt.state > AttemptState.LAUNCHING)
            and not attempt.state.terminal
        ]
        for attempt in current:
            self._note(attempt)
        names = [attempt.name for attempt in current]
        for start in range(0, len(names), GROUP):
            refs = [ref_of(attempt) for _, attempt in self._current(names[start : start + GROUP])]
            async with asyncio.timeout(CALL_DEADLINE):
                hit("observe.call.before")
                seen = await self._jobs.observe(refs)
                hit("observe.call.after")
            await self._settle([(one.name, self._seen(one)) for one in seen])
            hit("observe.stored.after")

    async def _health_loop(self) -> None:
        while True:
            try:
                async with asyncio.timeout(CALL_DEADLINE):
                    self.health = await self.backend.health()
            except Exception as error:  # noqa: BLE001 - that it failed is the answer
                self.health = Health(HealthStatus.UNHEALTHY, repr(error))
            await self._ctx.clock.sleep(HEALTH_AGAIN)

    # -- ending ---------------------------------------------------------------------------------

    async def _stop_loop(self) -> None:
        """Ask for each stop now, and again until it took effect: cancel is never forgotten."""
        self._asked_to_stop.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                names = await self._stops.take(GROUP)
                current = [
                    (rows.job.stop_grace, attempt)
                    for rows, attempt in self._current(names)
                    if attempt.state is AttemptState.STOPPING
                ]
                for grace in {grace for grace, _ in current}:
                    await self._stop([a for g, a in current if g == grace], grace)
                again = {attempt.name for _, attempt in current} - self._asked_to_stop
                if again:
                    self._asked_to_stop |= again
                    group.create_task(self._stop_again(again), name=f"{self.name}:stop-again")

    async def _stop(self, attempts: Sequence[Attempt], grace: float) -> None:
        try:
            async with asyncio.timeout(CALL_DEADLINE):
                hit("stop.call.before")
                results = await self._jobs.stop([ref_of(attempt) for attempt in attempts], grace)
                hit("stop.call.after")
        except Exception as error:  # noqa: BLE001 - it is asked for again
            log.warning("stop.failed", backend=self.name, error=repr(error))
            return
        unknown = [one.name for one in results if not one.known]
        asked = [(name, self._ask(name, never_was_step(self._now()))) for name in unknown]
        await self._settle(asked, self._stops)

    async def _stop_again(self, names: set[str]) -> None:
        await self._ctx.clock.sleep(STOP_AGAIN)
        self._asked_to_stop -= names
        for name in names:
            self._stops.add(name)

    async def _release_loop(self) -> None:
        while True:
            names = await self._releases.take(GROUP)
            ended = [attempt for _, attempt in self._current(names) if attempt.state.terminal]
            held = [attempt for attempt in ended if attempt.release is not Release.RELEASED]
            if held:
                wait = await self._release(held)
                if wait is not None:
                    await self._ctx.clock.sleep(wait)

    async def _release(self, attempts: Sequence[Attempt]) -> float | None:
        try:
            async with asyncio.timeout(CALL_DEADLINE):
                hit("release.call.before")
                results = await self._jobs.release([ref_of(attempt) for attempt in attempts])
                hit("release.call.after")
        except Exception as error:  # noqa: BLE001 - it is asked for again
            wait = error.after if isinstance(error, Retry) and error.after else WATCH_AGAIN
            log.warning("release.failed", backend=self.name, error=repr(error))
            for attempt in attempts:
                self._releases.add(attempt.name)
            return wait
        done = [one.name for one in results if isinstance(one, Released)]
        await self._settle([(name, self._ask(name, released)) for name in done], self._releases)
        hit("release.stored.after")
        rest = [attempt.name for attempt in attempts if attempt.name not in set(done)]
        for name in rest:
            self._releases.add(name)
        waits = [one.after for one in results if not isinstance(one, Released)]
        return min(waits, default=WATCH_AGAIN) if rest else None


def _room(pool: Pool) -> PoolRoom:
    return PoolRoom(
        pool.name,
        Resources(*pool.total),
        pool.gpu_ids,
        pool.accepting,
        pool.embedded,
        pool.secrets,
    )
