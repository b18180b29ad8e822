"""Drains: what runs on a host, or of a queue, goes elsewhere, at nobody's charge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.domain.preempting import drained, give_way
from hatoba_scheduler.domain.records import Attempt, Job
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.domain.transitions import Now
from hatoba_scheduler.failpoints import hit

Within = Callable[[Job, Attempt], bool]
"""Whether a job's attempt is in what is drained."""


class Drainer:
    """Makes attempts give way."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def drain_host(self, host: str, actor: str, reason: str) -> int:
        """As `drain`, of all on a host."""
        return await self.drain(
            lambda _, attempt: attempt.host == host, f"Host {host!r}", actor, reason
        )

    async def drain(self, within: Within, what: str, actor: str, reason: str) -> int:
        """Have all of it give way, and return how many jobs that is; they end in their own time.

        `what` names the place in a sentence. Raises StorageFull, StorageFailed, Unavailable: then
        some of it may not have been told, and the call can be made again.
        """
        cause = drained(what, actor, reason)
        now = Now(round(self._clock.time() * 1e6), actor)
        found = {
            rows.job.uid: indices
            for rows in self._ledger.all_rows()
            if (
                indices := [
                    index
                    for index, attempt in rows.attempts.items()
                    if attempt.state < AttemptState.STOPPING and within(rows.job, attempt)
                ]
            )
        }
        hit("drain.before")
        asked = [
            self._ledger.ask(uid, partial(give_way, indices=indices, cause=cause, now=now))
            for uid, indices in found.items()
        ]
        await asyncio.gather(*asked)
        hit("drain.after")
        return len(asked)
