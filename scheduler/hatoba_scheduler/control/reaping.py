"""Finds what a backend has of ours that nobody wants, and has it ended.

The backend is listed first and the store read after, so that what is launched meanwhile is never
taken for unwanted. What does not carry our labels is not looked at; what an earlier epoch of the
store launched and this one does not know is left to people, who were told of it at the adoption.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from hatoba_plugins.values import Owned, Ref
from hatoba_scheduler.control.instance import GROUP, Instance
from hatoba_scheduler.control.launching import Launcher
from hatoba_scheduler.domain.naming import parse_attempt
from hatoba_scheduler.domain.records import Attempt
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.failpoints import hit

log = structlog.get_logger(__name__)

STOP_GRACE = 10.0
AT_ONCE = 500
"""Names that the store is asked for in one read."""
MOST_OFTEN, LEAST_OFTEN = 1.0, 60.0
"""Seconds between two looks, at least and at most."""


class Reaper:
    """The audited end of orphans. `after`: seconds for which one is left alone, from the first
    look that found it unwanted.
    """

    def __init__(self, instance: Instance, launcher: Launcher, after: float) -> None:
        self._instance = instance
        self._launcher = launcher
        self._after = after
        self._since: dict[str, float] = {}

    async def reap_forever(self) -> None:
        """Look now and then."""
        pause = min(max(self._after / 5, MOST_OFTEN), LEAST_OFTEN)
        while True:
            await self._instance.clock.sleep(pause)
            await self.look()

    async def look(self) -> None:
        """Look once, and end what has been unwanted for long enough."""
        listed = await self._list()
        unwanted: list[Owned] = []
        for start in range(0, len(listed), AT_ONCE):
            unwanted += await self._unwanted(listed[start : start + AT_ONCE])
        now = self._instance.clock.monotonic()
        self._since = {one.name: self._since.get(one.name, now) for one in unwanted}
        due = [one for one in unwanted if now - self._since[one.name] >= self._after]
        for start in range(0, len(due), GROUP):
            await self._end(due[start : start + GROUP])

    async def _list(self) -> list[Owned]:
        async def made() -> list[Owned]:
            hit("list.call.before")
            cluster = self._instance.ctx.cluster_id
            found = [one async for one in self._instance.backend.list_owned(cluster)]
            hit("list.call.after")
            return [one for one in found if one.cluster_id == cluster]

        return await self._instance.calls["list"].call(made)

    async def _unwanted(self, some: Sequence[Owned]) -> list[Owned]:
        """Those of them that nobody wants; of the rest, those that are wanted are adopted."""
        ctx, strangers = self._instance.ctx, list[Owned]()
        for owned in some:
            if ctx.ledger.find_attempt(owned.name) is not None:
                self._adopt(owned)
            else:
                strangers.append(owned)
        names = [owned.name for owned in strangers]
        rows = await ctx.store.attempts_by_name(names) if names else {}
        return [owned for owned in strangers if self._is_over(owned.name, rows.get(owned.name))]

    def _is_over(self, name: str, row: Attempt | None) -> bool:
        """Whether something that no live task has ended long ago, or was never stored."""
        if row is not None:
            return row.state.terminal
        named, ours = parse_attempt(name), self._instance.ctx.store.identity.store_epoch
        return named is not None and named.epoch == ours

    def _adopt(self, owned: Owned) -> None:
        """It is wanted: have its handle stored, when it is not."""
        for _, attempt in self._instance.current((owned.name,)):
            if not attempt.handle and attempt.state is not AttemptState.STOPPING:
                self._launcher.doubt(owned.name)

    async def _end(self, orphans: Sequence[Owned]) -> None:
        for one in orphans:
            log.warning(
                "orphan.reaped",
                backend=self._instance.name,
                attempt=one.name,
                job=one.job_uid,
                was="ended" if one.ended else "running",
            )
        live = [_ref(one) for one in orphans if not one.ended]
        over = [_ref(one) for one in orphans if one.ended]
        if live:
            hit("reap.call.before")
            await self._instance.calls["stop"].call(
                lambda: self._instance.jobs.stop(live, STOP_GRACE)
            )
            hit("reap.call.after")
        if over:
            await self._instance.calls["release"].call(lambda: self._instance.jobs.release(over))


def _ref(owned: Owned) -> Ref:
    return Ref(owned.name, owned.number, owned.handle, owned.pool)
