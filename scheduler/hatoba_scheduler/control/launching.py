"""Launches of one backend: from a stored intent to a stored handle or refusal.

What may or may not have happened is looked up until it is known, and never launched again before.
The members of a gang are launched together or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import structlog

from hatoba_plugins.errors import BackendError, Throttled
from hatoba_plugins.values import (
    Absent,
    Ambiguous,
    Found,
    GroupKind,
    Launched,
    LaunchGroup,
    LaunchOutcome,
    LaunchRequest,
    Observation,
    Refused,
    Unsure,
)
from hatoba_scheduler.control.calls import LANES
from hatoba_scheduler.control.instance import AGAIN, GROUP, Instance
from hatoba_scheduler.control.launches import launch_request, ref_of
from hatoba_scheduler.control.observe import Step, handle_step, launched_step, refused_step
from hatoba_scheduler.control.supply import Supply
from hatoba_scheduler.control.todo import Todo
from hatoba_scheduler.domain.records import Attempt
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.domain.transitions import Now, Rows
from hatoba_scheduler.failpoints import hit

log = structlog.get_logger(__name__)
Members = list[tuple[Rows, Attempt]]


class Launcher:
    """Launches, and look-ups of what is in doubt."""

    def __init__(self, instance: Instance, supply: Supply) -> None:
        self._instance = instance
        self._supply = supply
        self._launches = Todo(instance.clock)
        self._doubtful = Todo(instance.clock)
        self._seen: dict[str, Observation] = {}
        """What launches saw of attempts, while it is being stored."""
        self._turns = asyncio.Semaphore(LANES["launch"])
        supply.waiting = lambda: len(self._launches)

    def launch(self, name: str) -> None:
        """Launch what has a stored intent, or was proven not to be there."""
        self._launches.add(name)

    def doubt(self, name: str) -> None:
        """Look up what may or may not exist."""
        self._doubtful.add(name)

    # -- launching ------------------------------------------------------------------------------

    async def launch_forever(self) -> None:
        """Launch what is there to launch, a few groups at once."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._turns.acquire()
                names = await self._launches.take(self._supply.group)
                await self._supply.until_allowed(len(names))
                group.create_task(self._launch(names), name=f"{self._instance.name}:launch")

    async def _launch(self, names: Sequence[str]) -> None:
        try:
            await self._instance.calls["launch"].until_open()
            for group in await self._groups(names):
                await self._launch_group(group)
        except Exception:
            log.exception("launch.failed", backend=self._instance.name)
            for name in names:
                self._doubtful.add_later(name, AGAIN)
        finally:
            self._turns.release()
            self._supply.wake()

    async def _groups(self, names: Sequence[str]) -> list[LaunchGroup]:
        """What is still to be launched: the single ones together, each gang by itself."""
        singles: Members = []
        gangs: dict[tuple[str, int], Members] = {}
        for rows, attempt in self._instance.current(names):
            if attempt.state is not AttemptState.LAUNCHING:
                continue
            if not rows.job.terms.gang:
                singles.append((rows, attempt))
            elif members := _whole_gang(rows, attempt.generation):
                gangs[(rows.job.uid, attempt.generation)] = members
        groups = [LaunchGroup(GroupKind.GANG, await self._requests(m)) for m in gangs.values()]
        if singles:
            groups.insert(0, LaunchGroup(GroupKind.SINGLE, await self._requests(singles)))
        return [group for group in groups if group.members]

    async def _requests(self, members: Members) -> tuple[LaunchRequest, ...]:
        ctx = self._instance.ctx
        specs = await ctx.specs.get([rows.job.uid for rows, _ in members])
        return tuple(
            launch_request(
                rows.job,
                attempt,
                specs[rows.job.uid],
                ctx.cluster_id,
                self._instance.credential(attempt),
                rows.tasks[attempt.index].adapted.spot_losses,
            )
            for rows, attempt in members
            if rows.job.uid in specs
        )

    async def _launch_group(self, group: LaunchGroup) -> None:
        outcomes = await self._call(group)
        answered = {outcome.name for outcome in outcomes}
        missing = [
            Ambiguous(request.name, "the backend did not answer for it")
            for request in group.members
            if request.name not in answered
        ]
        hit("launch.stored.before")
        seen = {one.name: one.seen for one in outcomes if isinstance(one, Launched) and one.seen}
        self._seen |= seen
        try:
            now = self._instance.now()
            told = (*outcomes, *missing)
            await self._settle([(one.name, self._outcome(one, now)) for one in told])
        finally:
            for name in seen:
                self._seen.pop(name, None)
        hit("launch.stored.after")

    def stores(self, seen: Observation) -> bool:
        """Whether a launch's answer told the same, and is being stored."""
        return self._seen.get(seen.name) == seen

    async def _settle(self, steps: Iterable[tuple[str, Step | None]]) -> None:
        """Have what was told stored; what could not be is in doubt."""
        told = [(name, step) for name, step in steps if step is not None]
        for name in await self._instance.settle(told):
            self._doubtful.add_later(name, AGAIN)

    async def _call(self, group: LaunchGroup) -> Sequence[LaunchOutcome]:
        async def made() -> list[LaunchOutcome]:
            hit("launch.call.before")
            outcomes = await self._instance.jobs.launch(group)
            hit("launch.call.after")
            return outcomes

        try:
            return await self._instance.calls["launch"].call(made, _answered)
        except BackendError as error:
            return [Refused(request.name, error) for request in group.members]
        except Exception as error:  # noqa: BLE001 - whatever it was, it perhaps happened
            log.warning("launch.ambiguous", backend=self._instance.name, error=repr(error))
            return [Ambiguous(request.name, repr(error)) for request in group.members]

    def _outcome(self, outcome: LaunchOutcome, now: Now) -> Step | None:
        if isinstance(outcome, Launched):
            return launched_step(outcome, self._instance.seen, now)
        if isinstance(outcome, Refused):
            if isinstance(outcome.error, Throttled):
                self._supply.hold(outcome.error.after or AGAIN, outcome.error.message)
            return refused_step(outcome.error, now)
        self._doubtful.add(outcome.name)
        return None

    # -- looking up -----------------------------------------------------------------------------

    async def look_up_forever(self) -> None:
        """Look up what may or may not exist, until it is known."""
        while True:
            names = await self._doubtful.take(GROUP)
            await self._look_up([a for _, a in self._instance.current(names)])

    async def _look_up(self, attempts: Iterable[Attempt]) -> None:
        live = [attempt for attempt in attempts if not attempt.state.terminal]
        if not live:
            return
        refs = [ref_of(attempt) for attempt in live]

        async def made() -> list[Found | Absent | Unsure]:
            hit("find.call.before")
            found = await self._instance.backend.find(refs)
            hit("find.call.after")
            return found

        try:
            found = await self._instance.calls["find"].call(made)
        except Exception as error:  # noqa: BLE001 - not knowing is what this loop is for
            log.warning("find.failed", backend=self._instance.name, error=repr(error))
            found = []
        await self._settle([(one.name, self._resolved(one)) for one in found])
        for name in {ref.name for ref in refs} - {one.name for one in found}:
            self._doubtful.add_later(name, AGAIN)
        hit("find.stored.after")

    def _resolved(self, outcome: Found | Absent | Unsure) -> Step | None:
        if isinstance(outcome, Found):
            return handle_step(outcome.handle, outcome.phase, self._instance.now())
        if isinstance(outcome, Absent):
            self._launches.add(outcome.name)
        else:
            self._doubtful.add_later(outcome.name, outcome.after)
        return None


def _answered(outcomes: Sequence[LaunchOutcome]) -> bool:
    """Whether a launch was answered at all: that everything is in doubt is no answer."""
    return any(not isinstance(one, Ambiguous) for one in outcomes)


def _whole_gang(rows: Rows, generation: int) -> Members:
    """All members of a generation; none while one is missing, or when one is being ended."""
    members = [one for one in rows.attempts.values() if one.generation == generation]
    live = [one for one in members if one.state < AttemptState.STOPPING]
    if len(live) < rows.job.size:
        return []
    return [(rows, one) for one in sorted(live, key=lambda one: one.index)]
