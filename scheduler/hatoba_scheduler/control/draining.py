"""Drains: what runs on a host, or of a queue, goes elsewhere, at nobody's charge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.domain.preempting import drained, give_way
from hatoba_scheduler.domain.records import Attempt, Cause, Change, Job
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.domain.transitions import Now, Rows
from hatoba_scheduler.failpoints import hit

Within = Callable[[Job, Attempt], bool]
"""Whether a job's attempt is in what is drained."""
AT_ONCE = 1_000
"""Jobs that are told at the same time."""
CARRY_ON = 5.0
"""Seconds between two looks at whether anything is left on a host that is drained."""
log = structlog.get_logger(__name__)


class Drainer:
    """Makes attempts give way."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def drain_host(self, host: str, attempts: Iterable[str], actor: str, reason: str) -> int:
        """As `drain`, of those of these attempts that are on a host."""

        def within(job: Job, attempt: Attempt) -> bool:
            del job
            return attempt.host == host

        places = (self._ledger.find_attempt(name) for name in attempts)
        uids = {place[0] for place in places if place is not None}
        found = [
            uid for uid in uids if (rows := self._ledger.rows(uid)) and _affected(rows, within)
        ]
        return await self._tell(found, within, drained(f"Host {host!r}", actor, reason), actor)

    async def drain(self, within: Within, what: str, actor: str, reason: str) -> int:
        """Have all of it give way, and return how many jobs that is; they end in their own time.

        `what` names the place in a sentence. Raises StorageFull, StorageFailed, Unavailable: then
        some of it may not have been told, and the call can be made again.
        """
        found = [rows.job.uid for rows in self._ledger.all_rows() if _affected(rows, within)]
        return await self._tell(found, within, drained(what, actor, reason), actor)

    async def _tell(self, uids: Sequence[str], within: Within, cause: Cause, actor: str) -> int:
        if not uids:
            return 0
        now = Now(round(self._clock.time() * 1e6), actor)
        decide = partial(_decide, within=within, cause=cause, now=now)
        hit("drain.before")
        told = 0
        for start in range(0, len(uids), AT_ONCE):
            some = uids[start : start + AT_ONCE]
            answers = await asyncio.gather(*[self._ledger.ask(uid, decide) for uid in some])
            told += sum(change is not None for change in answers)
        hit("drain.after")
        return told


def _affected(rows: Rows, within: Within) -> list[int]:
    """Tasks of a job that are to give way, for where they are now."""
    return [
        index
        for index, attempt in rows.attempts.items()
        if attempt.state < AttemptState.STOPPING and within(rows.job, attempt)
    ]


def _decide(rows: Rows, within: Within, cause: Cause, now: Now) -> Change | None:
    indices = _affected(rows, within)
    return give_way(rows, indices, cause, now) if indices else None


class HostDrains:
    """Carries drains of hosts on until nothing is left there.

    That a host is drained is remembered with it; so what came there while that was decided, and
    what could not be told because a disk was full or the server ended, gives way all the same.
    """

    def __init__(self, hub: Hub, drainer: Drainer, clock: Clock) -> None:
        self._hub = hub
        self._drainer = drainer
        self._clock = clock

    async def run(self) -> None:
        """Look now and then; ends by cancellation."""
        while True:
            await self._clock.sleep(CARRY_ON)
            for host in self._hub.hosts():
                if host.draining:
                    await self._carry_on(host.name, host.cordon_reason)

    async def _carry_on(self, host: str, reason: str) -> None:
        names = self._hub.attempts_on(host)
        try:
            count = await self._drainer.drain_host(host, names, "an operator", reason)
        except Exception as error:  # noqa: BLE001 - it is looked at again
            log.warning("drain.not_told", host=host, error=repr(error))
        else:
            if count:
                log.info("drain.carried_on", host=host, jobs=count)
