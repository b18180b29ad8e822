"""How much work a backend may be given now: its breaker, its rate budget, what operators say.

The planner is told whenever that changes, so that jobs go elsewhere or wait with the true reason.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from hatoba_scheduler.control.breaker import BreakerState
from hatoba_scheduler.control.instance import GROUP, Instance
from hatoba_scheduler.domain.planning.model import BackendSettings
from hatoba_scheduler.domain.records import BackendNote

LOOK_AGAIN = 0.25
UNLIMITED = 1 << 30
BACKLOG = 2_000
"""Launches that may wait here; what is more waits in its queue, where it can still go elsewhere."""


class Supply:
    """Says how many launches a backend takes, and holds them up while it takes none."""

    def __init__(self, instance: Instance, cost_per_hour: float) -> None:
        self._instance = instance
        self._clock = instance.clock
        self.cost_per_hour = cost_per_hour
        self.note = BackendNote(instance.name, cordoned=False)
        """What an operator said last."""
        self.elastic = False
        limits = dict(instance.backend.capabilities().limits)
        self._rate = limits.get("launch")
        self._tokens = float(self._rate.burst) if self._rate else math.inf
        self._filled = self._clock.monotonic()
        self._held_until = 0.0
        self._held_for = ""
        self._told: BackendSettings | None = None
        self._changed = asyncio.Event()
        self.waiting: Callable[[], int] = lambda: 0
        """Launches that were decided and not made yet."""

    # -- for the launcher -----------------------------------------------------------------------

    def hold(self, seconds: float, why: str) -> None:
        """The backend wants to be asked less often: no launch for so long."""
        self._held_until = max(self._held_until, self._clock.monotonic() + seconds)
        self._held_for = why
        self._changed.set()

    @property
    def group(self) -> int:
        """How many launches to make in one call."""
        return min(GROUP, self._rate.burst) if self._rate else GROUP

    async def until_allowed(self, count: int) -> None:
        """Take so many launches from the budget; returns when they may be made."""
        while (wait := self._held_until - self._clock.monotonic()) > 0:
            await self._clock.sleep(wait)
        self._fill()
        self._tokens -= count
        self._changed.set()
        if self._rate is not None and self._tokens < 0:
            await self._clock.sleep(-self._tokens / self._rate.per_second)

    def _fill(self) -> None:
        now = self._clock.monotonic()
        if self._rate is not None:
            earned = (now - self._filled) * self._rate.per_second
            self._tokens = min(float(self._rate.burst), self._tokens + earned)
        self._filled = now

    # -- for the planner ------------------------------------------------------------------------

    def take(self, note: BackendNote) -> None:
        """An operator keeps work away, or lets it come."""
        self.note = note
        self.tell()

    def settings(self) -> BackendSettings:
        """What the planner is told now."""
        reason = self._why_not()
        return BackendSettings(
            self._instance.name,
            available=not reason,
            reason=reason,
            cost_per_hour=self.cost_per_hour,
            elastic=self.elastic,
            slots=self._slots(),
        )

    def _why_not(self) -> str:
        name = self._instance.name
        if self.note.cordoned:
            reason = self.note.cordon_reason
            return f"Backend {name!r} is cordoned" + (f": {reason}." if reason else ".")
        if self._instance.calls["launch"].state is BreakerState.OPEN:
            return f"Launches on backend {name!r} keep failing; it is tried again soon."
        if self._held_until > self._clock.monotonic():
            return f"Backend {name!r} wants to be asked less often: {self._held_for}."
        return ""

    def _slots(self) -> int:
        """One where a single launch tries; else what budget and backlog allow."""
        waiting = self.waiting()
        launches = self._instance.calls["launch"]
        if launches.state is BreakerState.HALF_OPEN:
            return max(0, 1 - waiting - launches.under_way)
        if self._rate is None:
            return UNLIMITED if waiting < BACKLOG else 0
        self._fill()
        return max(0, min(BACKLOG, int(self._tokens)) - waiting)

    def tell(self) -> None:
        """Tell the planner, when something is not as it was told last."""
        now = self.settings()
        if now != self._told:
            self._told = now
            self._instance.ctx.set_backend(now)

    async def tell_forever(self) -> None:
        """Tell the planner whenever something changes, by an event or with time."""
        while True:
            self.tell()
            if self._passing():
                await self._clock.sleep(LOOK_AGAIN)
            else:
                self._changed.clear()
                await self._changed.wait()

    def wake(self) -> None:
        """Something may have changed."""
        self._changed.set()

    def _passing(self) -> bool:
        """Whether time alone will change what there is to tell."""
        self._fill()
        filling = self._rate is not None and self._tokens < self._rate.burst
        full = self.waiting() >= BACKLOG
        held = self._held_until > self._clock.monotonic()
        broken = self._instance.calls["launch"].state is not BreakerState.CLOSED
        return filling or full or held or broken
