"""Ends jobs whose time is over: those past their deadline, and those too long in their queue.

One heap of moments; the loop sleeps until the next. Nothing is stored beyond the jobs' own rows
and events, in which a restart finds the same moments again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.alarm import Alarm
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.domain.records import Change, Event, Job, Micros
from hatoba_scheduler.domain.timing import (
    KEPT_BACK,
    Due,
    next_due,
    queues_since,
    timed,
    timed_out,
)
from hatoba_scheduler.domain.transitions import Now, Rows
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)

AGAIN = 1.0
"""Seconds until what could not be stored is tried again."""
STEP = 100
_PAGE = 1000
_SPARE = 1000
"""So many moments of jobs that ended meanwhile may lie in the heap before it is cleaned."""


class Late(NamedTuple):
    """A job whose time is over, and which has not ended."""

    job: Job
    due: Due


class Timers:
    """Looks at each timed job when its time has come."""

    def __init__(self, ledger: Ledger, store: Store, clock: Clock) -> None:
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._alarm = Alarm(clock)
        self._heap: list[tuple[Micros, str]] = []
        self._due: dict[str, Micros] = {}
        """By job: its one entry of the heap that counts."""
        self._queued_since: dict[str, Micros] = {}
        self._late: dict[str, Late] = {}
        ledger.listen(self.on_commit)

    async def recover(self) -> None:
        """Take up the timed jobs of before."""
        found = [rows for rows in self._ledger.all_rows() if timed(rows.job)]
        queueing = [rows.job for rows in found if rows.job.terms.max_queue_time]
        for start in range(0, len(queueing), STEP):
            await self._recall(queueing[start : start + STEP])
        for rows in found:
            self._look_at(rows)

    async def _recall(self, jobs: Sequence[Job]) -> None:
        """Since when these are queued: the last event that made them so tells."""
        since = {job.uid: job.create_time for job in jobs if job.state not in KEPT_BACK}
        if not since:
            return
        async for event in self._events(list(since)):
            if event.job_from in KEPT_BACK and event.job_to not in KEPT_BACK:
                since[event.job_uid] = event.time
        self._queued_since |= since

    async def _events(self, uids: Sequence[str]) -> AsyncIterator[Event]:
        after = 0
        while found := await self._store.events(after, _PAGE, uids):
            for event in found:
                yield event
            after = found[-1].seq

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        del events
        for commit in commits:
            if timed(commit.change.job):
                self._note_queue(commit)
                self._look_at(commit.rows)

    def _note_queue(self, commit: Commit) -> None:
        job = commit.change.job
        if job.state.terminal:
            self._queued_since.pop(job.uid, None)
        elif job.terms.max_queue_time:
            known = self._queued_since.get(job.uid, 0)
            self._queued_since[job.uid] = queues_since(commit.before, job, known, self._now())

    def _look_at(self, rows: Rows) -> None:
        uid = rows.job.uid
        due = next_due(rows, self._queued_since.get(uid, 0))
        if due is None or due.time > self._now():
            self._late.pop(uid, None)
        else:
            self._late[uid] = Late(rows.job, due)
        if due is None:
            self._due.pop(uid, None)
        elif self._due.get(uid) != due.time:
            self._set(uid, due.time)

    def late(self) -> list[Late]:
        """Jobs whose time is over and which have not ended, longest over first."""
        return sorted(self._late.values(), key=lambda one: one.due.time)

    def _set(self, uid: str, time: Micros) -> None:
        self._due[uid] = time
        if len(self._heap) > 2 * len(self._due) + _SPARE:
            self._heap = [(due, known) for known, due in self._due.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (time, uid))
        if self._heap[0] == (time, uid):
            self._alarm.ring()

    def _now(self) -> Micros:
        return round(self._clock.time() * 1e6)

    async def run(self) -> None:
        """End what is due; ends by cancellation."""
        while True:
            while uids := self._take_due():
                await self._end(uids)
            await self._alarm.sleep_until(self._heap[0][0] / 1e6 if self._heap else None)

    def _take_due(self) -> list[str]:
        """Jobs whose time is over, some at a time."""
        found: list[str] = []
        now = self._now()
        while self._heap and self._heap[0][0] <= now and len(found) < STEP:
            time, uid = heapq.heappop(self._heap)
            if self._due.get(uid) == time:
                del self._due[uid]
                found.append(uid)
        return found

    async def _end(self, uids: Sequence[str]) -> None:
        hit("timer.end.before")
        asked = [self._ledger.ask(uid, self._decide) for uid in uids]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        hit("timer.end.after")
        failed = [
            uid
            for uid, answer in zip(uids, answers, strict=True)
            if isinstance(answer, BaseException)
        ]
        if not failed:
            return
        log.warning("timers.not_stored", count=len(failed))
        for uid in failed:
            self._set(uid, self._now() + round(AGAIN * 1e6))

    def _decide(self, rows: Rows) -> Change | None:
        due = next_due(rows, self._queued_since.get(rows.job.uid, 0))
        now = self._now()
        if due is None or due.time > now:
            return None
        self._late[rows.job.uid] = Late(rows.job, due)
        return timed_out(rows, due.cause, Now(now))
