"""Stops and releases of one backend: repeated until they took effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from hatoba_plugins.errors import Retry
from hatoba_plugins.values import Released, ReleaseOutcome, StopResult
from hatoba_scheduler.control.instance import AGAIN, GROUP, Instance
from hatoba_scheduler.control.launches import ref_of
from hatoba_scheduler.control.observe import never_was_step
from hatoba_scheduler.control.todo import Todo
from hatoba_scheduler.domain.preempting import stop_at
from hatoba_scheduler.domain.records import Attempt
from hatoba_scheduler.domain.states import AttemptState, Release
from hatoba_scheduler.domain.transitions import released
from hatoba_scheduler.failpoints import hit

log = structlog.get_logger(__name__)

STOP_AGAIN = 10.0


class Ender:
    """Has attempts stopped, and what they held let go."""

    def __init__(
        self, instance: Instance, comes_first: Callable[[Attempt], bool] = lambda _: False
    ) -> None:
        """`comes_first`: whether something of what ended is brought here before its release, which
        is then asked for with `let_go`."""
        self._instance = instance
        self._comes_first = comes_first
        self._stops = Todo(instance.clock)
        self._releases = Todo(instance.clock)

    def note(self, attempt: Attempt) -> None:
        """Do what this attempt's row asks for."""
        first = self._comes_first(attempt)
        if attempt.state is AttemptState.STOPPING:
            self._stop_in_time(attempt)
        elif attempt.state.terminal and attempt.release is not Release.RELEASED and not first:
            self._releases.add(attempt.name)

    def let_go(self, name: str) -> None:
        """Nothing of what ended is to be brought here any more."""
        self._releases.add(name)

    def _stop_in_time(self, attempt: Attempt) -> None:
        """Now; one that may save a checkpoint first, when its time for that is over."""
        wait = (stop_at(attempt) - self._instance.now().time) / 1e6
        if wait > 0:
            self._stops.add_later(attempt.name, wait)
        else:
            self._stops.add(attempt.name)

    # -- stopping -------------------------------------------------------------------------------

    async def stop_forever(self) -> None:
        """Ask for each stop now, and again until it took effect: cancel is never forgotten."""
        while True:
            names = await self._stops.take(GROUP)
            for name in names:
                self._stops.add_later(name, STOP_AGAIN)
            current = [
                (rows.job.stop_grace, attempt)
                for rows, attempt in self._instance.current(names)
                if attempt.state is AttemptState.STOPPING
            ]
            for name in set(names) - {attempt.name for _, attempt in current}:
                self._stops.discard(name)
            for grace in {grace for grace, _ in current}:
                await self._stop([one for g, one in current if g == grace], grace)

    async def _stop(self, attempts: Sequence[Attempt], grace: float) -> None:
        refs = [ref_of(attempt) for attempt in attempts]

        async def made() -> list[StopResult]:
            hit("stop.call.before")
            results = await self._instance.jobs.stop(refs, grace)
            hit("stop.call.after")
            return results

        try:
            results = await self._instance.calls["stop"].call(made)
        except Exception as error:  # noqa: BLE001 - it is asked for again
            log.warning("stop.failed", backend=self._instance.name, error=repr(error))
            return
        step = never_was_step(self._instance.now())
        unknown = [one.name for one in results if not one.known]
        await self._instance.settle([(name, step) for name in unknown])

    # -- releasing ------------------------------------------------------------------------------

    async def release_forever(self) -> None:
        """Have what ended let go, until nothing of it is left."""
        while True:
            names = await self._releases.take(GROUP)
            held = [
                attempt
                for _, attempt in self._instance.current(names)
                if attempt.state.terminal and attempt.release is not Release.RELEASED
            ]
            if held:
                await self._release(held)

    async def _release(self, attempts: Sequence[Attempt]) -> None:
        refs = [ref_of(attempt) for attempt in attempts]

        async def made() -> list[ReleaseOutcome]:
            hit("release.call.before")
            results = await self._instance.jobs.release(refs)
            hit("release.call.after")
            return results

        results: list[ReleaseOutcome] = []
        wait = AGAIN
        try:
            results = await self._instance.calls["release"].call(made)
        except Exception as error:  # noqa: BLE001 - it is asked for again
            log.warning("release.failed", backend=self._instance.name, error=repr(error))
            if isinstance(error, Retry) and error.after:
                wait = error.after
        await self._settle(attempts, results, wait)

    async def _settle(
        self, attempts: Sequence[Attempt], results: Sequence[ReleaseOutcome], wait: float
    ) -> None:
        done = {one.name for one in results if isinstance(one, Released)}
        failed = await self._instance.settle([(name, released) for name in done])
        waits = {one.name: one.after for one in results if not isinstance(one, Released)}
        for name in [*failed, *({attempt.name for attempt in attempts} - done)]:
            self._releases.add_later(name, waits.get(name, wait))
        hit("release.stored.after")
