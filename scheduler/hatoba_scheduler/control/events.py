"""The newest events in memory, and who follows them; older ones are read from the store.

Watchers pull by position, so a slow one costs nothing and delays nobody. Positions have no gaps,
which is how commits that are told out of order are put back in order. Each event is converted to
its message once, however many are told of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.event_filters import facts_of, stored_facts
from hatoba_scheduler.control.fanout import TICK_SECONDS, Fanout, Place, Told, Wants
from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.convert import event_to_proto
from hatoba_scheduler.domain.records import Event
from hatoba_scheduler.store.base import Store

KEPT = 20_000
PAGE = 200
MESSAGES = 1_024
MOST_BEHIND = 1_000_000

Response = job_pb2.WatchJobsResponse


class EventLog:
    """The tail of the event log."""

    def __init__(self, store: Store, newest: int, most_behind: int = MOST_BEHIND) -> None:
        self._store = store
        self._ring: list[Told | None] = [None] * KEPT
        self._first = newest + 1
        self._early: dict[int, Told] = {}
        self._newest = newest
        self._moved = asyncio.Event()
        self._fanout = Fanout()
        self._messages: dict[int, Response] = {}
        self.most_behind = most_behind
        """A watcher that is further behind is told to read the state anew."""

    @property
    def newest(self) -> int:
        """Position of the newest event that watchers may see."""
        return self._newest

    @property
    def watchers(self) -> int:
        """How many follow now."""
        return len(self._fanout)

    # -- what comes -----------------------------------------------------------------------------

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed events; a listener of the ledger."""
        facts = {commit.change.job.uid: facts_of(commit.change.job) for commit in commits}
        come: list[Told] = []
        for event in events:
            told = Told(event, facts.get(event.job_uid))
            if event.seq == self._newest + 1:
                self._come(told, come)
            else:
                self._early[event.seq] = told
        while self._early and (early := self._early.pop(self._newest + 1, None)) is not None:
            self._come(early, come)
        if come:
            self._first = max(self._first, self._newest - KEPT + 1)
            self._moved.set()
            self._moved = asyncio.Event()
            self._fanout.tell(come)

    def _come(self, told: Told, come: list[Told]) -> None:
        self._newest += 1
        self._ring[self._newest % KEPT] = told
        come.append(told)

    async def wait_beyond(self, seq: int) -> None:
        """Return once there is an event after this position."""
        while self._newest <= seq:
            await self._moved.wait()

    # -- reading --------------------------------------------------------------------------------

    def kept(self, seq: int) -> Told | None:
        """The event of this position while it is in memory."""
        return self._ring[seq % KEPT] if self._first <= seq <= self._newest else None

    async def read(self, after: int) -> list[Event]:
        """The next events after a position, at most a page; empty when there are none yet."""
        if after >= self._newest:
            return []
        if after + 1 < self._first:
            return await self._store.events(after, PAGE)
        return [told.event for told in self._kept_after(after)]

    async def read_for(self, wants: Wants, after: int) -> tuple[list[Told], int]:
        """What comes next for a watcher, and up to which position that is all of it."""
        newest = self._newest
        if after >= newest:
            return [], after
        if after + 1 >= self._first and (not wants.uids or newest - after <= PAGE):
            page = self._kept_after(after)
            await asyncio.sleep(0)
            return page, page[-1].event.seq
        stored = await self._store.events(after, PAGE, sorted(wants.uids))
        # What is stored and was told to nobody yet comes to all followers at once.
        events = [event for event in stored if event.seq <= newest]
        facts = await stored_facts(self._store, events) if wants.filter.asks_the_job else {}
        upto = events[-1].seq if len(events) == PAGE else newest
        return [Told(event, facts.get(event.job_uid)) for event in events], upto

    def _kept_after(self, after: int) -> list[Told]:
        last = min(after + PAGE, self._newest)
        found = (self._ring[seq % KEPT] for seq in range(after + 1, last + 1))
        return [told for told in found if told is not None]

    def message(self, event: Event) -> Response:
        """The message that tells of an event, shared by all that are told: not to be changed."""
        known = self._messages.get(event.seq)
        if known is None:
            known = Response(cursor=self.cursor(event.seq), event=event_to_proto(event))
            if len(self._messages) >= MESSAGES:
                del self._messages[next(iter(self._messages))]
            self._messages[event.seq] = known
        return known

    def cursor(self, seq: int) -> str:
        """What a watcher resumes with after this position."""
        return f"{self._store.identity.store_epoch}.{seq}"

    # -- followers ------------------------------------------------------------------------------

    @contextmanager
    def following(self, wants: Wants) -> Iterator[Place]:
        """A watcher's place while it follows."""
        place = Place(wants)
        slot = self._fanout.add(place)
        try:
            yield place
        finally:
            self._fanout.remove(place, slot)

    async def run(self, clock: Clock, stopping: asyncio.Event) -> None:
        """See to it that silent watchers hear something, and all of them of the server's stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick(clock), name="watchers:tick")
            await stopping.wait()
            self._fanout.wake_all()

    async def _tick(self, clock: Clock) -> None:
        number = 0
        while True:
            await self._fanout.some()
            await clock.sleep(TICK_SECONDS)
            self._fanout.tick(number)
            number += 1
