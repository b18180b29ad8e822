"""Lets gangs go whose members have not all claimed in time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence
from functools import partial

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.alarm import Alarm
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.domain.gangs import claims_due, timed_out
from hatoba_scheduler.domain.records import Event, Micros
from hatoba_scheduler.domain.transitions import Now, Rows
from hatoba_scheduler.failpoints import hit

AGAIN = 1.0
"""Seconds until what could not be stored is tried again."""
log = structlog.get_logger(__name__)


class GangClock:
    """Looks at each gang that waits for claims when its time is over."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._alarm = Alarm(clock)
        self._heap: list[tuple[Micros, str]] = []
        ledger.listen(self.on_commit)

    def recover(self) -> None:
        """Take up the gangs of before."""
        for rows in self._ledger.all_rows():
            self._look_at(rows)

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        del events
        for commit in commits:
            before, job = commit.before, commit.change.job
            if before is not None and before.generation != job.generation:
                self._look_at(commit.rows)

    def _look_at(self, rows: Rows) -> None:
        due = claims_due(rows)
        if due is not None:
            self._set(rows.job.uid, due)

    def _set(self, uid: str, due: Micros) -> None:
        heapq.heappush(self._heap, (due, uid))
        if self._heap[0] == (due, uid):
            self._alarm.ring()

    def _now(self) -> Micros:
        return round(self._clock.time() * 1e6)

    async def run(self) -> None:
        """Let go what is due; ends by cancellation."""
        while True:
            while self._heap and self._heap[0][0] <= self._now():
                await self._let_go(heapq.heappop(self._heap)[1])
            await self._alarm.sleep_until(self._heap[0][0] / 1e6 if self._heap else None)

    async def _let_go(self, uid: str) -> None:
        try:
            hit("gang.let_go.before")
            await self._ledger.ask(uid, partial(timed_out, now=Now(self._now())))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - it is asked for again
            log.warning("gang.not_let_go", job=uid, error=repr(error))
            self._set(uid, self._now() + round(AGAIN * 1e6))
