"""Everything that is asked of one backend, and everything it says, for as long as it is open.

Launches go out in groups; what may or may not have happened is looked up until it is known, never
launched again before. Stops and releases are repeated until they took effect. All of it is this
backend's own: one that hangs holds up none of the others.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from hatoba_plugins.backend import Backend
from hatoba_plugins.values import Health, HealthStatus
from hatoba_scheduler.control.calls import Calls, CallSettings
from hatoba_scheduler.control.disconnects import Recalls, was_lost
from hatoba_scheduler.control.ending import Ender
from hatoba_scheduler.control.instance import AGAIN, Instance, LoopContext
from hatoba_scheduler.control.launching import Launcher
from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.control.pulled_logs import PulledLogs
from hatoba_scheduler.control.reaping import Reaper
from hatoba_scheduler.control.supply import Supply
from hatoba_scheduler.control.watching import Observer
from hatoba_scheduler.domain.records import Attempt, Event
from hatoba_scheduler.domain.states import AttemptState, Release

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What is configured of an instance beside its own options."""

    cost_per_hour: float = 0.0
    calls: CallSettings = CallSettings()
    reap_after: float = 300.0
    """Seconds for which something of ours that nobody wants is left alone."""


class BackendLoop:
    """One backend's launcher, observer, ender and supply of work."""

    def __init__(
        self,
        name: str,
        backend: Backend,
        ctx: LoopContext,
        settings: LoopSettings = LoopSettings(),
    ) -> None:
        self._instance = Instance(name, backend, ctx, settings.calls)
        self._ctx = ctx
        self._held: dict[str, str] = {}
        """Attempts that hold something, and the pool where each is."""
        self._on: defaultdict[str, dict[str, None]] = defaultdict(dict)
        """By pool: a thousand hosts that come back are asked after their own alone."""
        self.supply = Supply(self._instance, settings.cost_per_hour)
        self._launcher = Launcher(self._instance, self.supply)
        self.pulled = self._pulled()
        self._ender = Ender(self._instance, self._comes_first)
        self._recalls = Recalls(self._instance)
        self._observer = Observer(self._instance, self._launcher, self.supply, self._attempts)
        self._reaper = Reaper(self._instance, self._launcher, settings.reap_after)
        ctx.ledger.listen(self._on_commit)

    def _pulled(self) -> PulledLogs | None:
        if self._ctx.logs is None:
            return None
        pulled = PulledLogs(self._instance, self._ctx.logs, lambda name: self._ender.let_go(name))
        if not pulled.able:
            return None
        self._ctx.logs.sources[self.name] = pulled
        return pulled

    def _comes_first(self, attempt: Attempt) -> bool:
        return self.pulled is not None and self.pulled.note(attempt)

    @property
    def name(self) -> str:
        """The instance's name."""
        return self._instance.name

    @property
    def backend(self) -> Backend:
        """The opened instance."""
        return self._instance.backend

    @property
    def health(self) -> Health:
        """What it said last of how it is."""
        return self._observer.health

    @property
    def ailing(self) -> str:
        """What it said last of why it does not work; empty while it does."""
        return self.health.message if self.health.status is HealthStatus.UNHEALTHY else ""

    @property
    def calls(self) -> Calls:
        """Its bulkhead, to read."""
        return self._instance.calls

    # -- taking note ----------------------------------------------------------------------------

    def launch(self, attempt: Attempt) -> None:
        """Take over a committed intent."""
        self._launcher.launch(attempt.name)

    def recall(self, attempt: Attempt) -> None:
        """Have ended, once it can be reached, what was taken for lost."""
        self._recalls.add(attempt)

    def recover(self) -> None:
        """After a restart: what was being launched is doubtful, what was being ended goes on."""
        for rows in self._ctx.ledger.all_rows():
            for attempt in rows.attempts.values():
                if attempt.backend == self.name:
                    self._recover(attempt)

    def _recover(self, attempt: Attempt) -> None:
        unclaimed = attempt.state is AttemptState.LAUNCHING and not attempt.claim_time
        if unclaimed or not (attempt.handle or attempt.state.terminal):
            self._launcher.doubt(attempt.name)
        if attempt.state.terminal and was_lost(attempt):
            self._recalls.add(attempt)
        self._note(attempt)

    def _on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        del events
        for commit in commits:
            take = self._recover if commit.found else self._note
            for attempt, _ in commit.change.attempts:
                if attempt.backend == self.name:
                    take(attempt)

    def _note(self, attempt: Attempt) -> None:
        self._keep(attempt)
        if attempt.state.terminal:
            self._instance.ends.forget(attempt.name)
        self._ender.note(attempt)

    def _keep(self, attempt: Attempt) -> None:
        """Keep where it is, or that it is nowhere any more."""
        name, before = attempt.name, self._held.get(attempt.name)
        pool = None if attempt.release is Release.RELEASED else attempt.host
        if pool == before:
            return
        if before is not None:
            del self._held[name], self._on[before][name]
            if not self._on[before]:
                del self._on[before]
        if pool is not None:
            self._held[name] = pool
            self._on[pool][name] = None

    def _attempts(self, pool: str = "") -> list[Attempt]:
        """Those that hold something, of a pool or all, each with what its row asks for noted once
        more."""
        names = list(self._on.get(pool, ()) if pool else self._held)
        current = [attempt for _, attempt in self._instance.current(names)]
        for attempt in current:
            self._note(attempt)
        return current

    # -- the loops ------------------------------------------------------------------------------

    async def run(self) -> None:
        """All loops of this backend; ends by cancellation."""
        pulls = (self.pulled.ship_forever, self.pulled.follow_forever) if self.pulled else ()
        async with asyncio.TaskGroup() as group:
            for loop in (
                *pulls,
                self.supply.tell_forever,
                self._observer.ask_health_forever,
                self._launcher.launch_forever,
                self._launcher.look_up_forever,
                self._observer.watch_forever,
                self._observer.observe_forever,
                self._observer.observe_ends_forever,
                self._ender.stop_forever,
                self._ender.release_forever,
                self._recalls.recall_forever,
                self._reaper.reap_forever,
            ):
                group.create_task(self._forever(loop), name=f"{self.name}:{loop.__name__}")

    async def _forever(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """No failure of a backend ends its loops: they begin again."""
        while True:
            try:
                await loop()
            except Exception:
                log.exception("backend.loop.failed", backend=self.name, loop=loop.__name__)
            await self._ctx.clock.sleep(AGAIN)
