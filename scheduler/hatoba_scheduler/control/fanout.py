"""Who must be woken by which event: an index of what watchers ask for.

An event's own values find the few watchers that it may concern; all others sleep on. A watcher
that does not keep up is sent nothing more: it reads the log by itself, at its own pace.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from hatoba_scheduler.control.event_filters import EventFilter, Facts, value_of
from hatoba_scheduler.domain.records import Event

K = TypeVar("K")

AHEAD = 256
"""Positions kept for a watcher that is busy; with more it reads the log instead."""
SLOTS = 20
TICK_SECONDS = 0.25
WHOLE_PROJECT = ("", "")


class Told(NamedTuple):
    """A committed event, and what filters ask of its job; None when that is not known."""

    event: Event
    facts: Facts | None


@dataclass(frozen=True, slots=True)
class Wants:
    """What one watcher asks for: events of these jobs (uids), or of a project, that fit."""

    project: str
    uids: frozenset[str] = frozenset()
    filter: EventFilter = EventFilter()

    def admits(self, told: Told) -> bool:
        """Whether the watcher is to be told of it."""
        event = told.event
        mine = event.job_uid in self.uids if self.uids else event.project == self.project
        return mine and self.filter.admits(event, told.facts)

    def concerns(self, told: Told) -> bool:
        """Whether it must look at it: it is told of it, or a job that it follows ends."""
        return self.admits(told) or (told.event.job_terminal and told.event.job_uid in self.uids)


class Place:
    """One watcher's place: positions of events that concern it, and whether a heartbeat is due."""

    __slots__ = ("_positions", "_spoke", "_woken", "behind", "due", "wants")

    def __init__(self, wants: Wants) -> None:
        self.wants = wants
        self.behind = True
        """It reads the log by itself and is told of nothing."""
        self.due = False
        """It has been silent for a while."""
        self._positions: deque[int] = deque()
        self._woken = asyncio.Event()
        self._spoke = False

    def keeps_up(self) -> None:
        """From now on it is told of what comes; call it at the end of the log, without an await."""
        self._positions.clear()
        self.behind = False

    def falls_behind(self) -> None:
        """It reads the log by itself again."""
        self._positions.clear()
        self.behind = True

    def offer(self, told: Told) -> None:
        """Tell it of an event that may concern it."""
        if self.behind or not self.wants.concerns(told):
            return
        if len(self._positions) >= AHEAD:
            self.falls_behind()
            return
        self._positions.append(told.event.seq)
        self._woken.set()

    def take(self) -> list[int]:
        """Positions that it has not seen, in order."""
        taken = list(self._positions)
        self._positions.clear()
        return taken

    def spoke(self) -> None:
        """A message went out."""
        self._spoke, self.due = True, False

    def tick(self) -> None:
        """Called every few seconds: one that was silent since the last time is to say something."""
        if not self._spoke:
            self.due = True
            self._woken.set()
        self._spoke = False

    def wake(self) -> None:
        """Have it look around."""
        self._woken.set()

    async def woken(self) -> None:
        """Until there is something to do."""
        await self._woken.wait()
        self._woken.clear()


class Fanout:
    """All places, by what their watchers ask for."""

    def __init__(self) -> None:
        self._by_uid: dict[str, set[Place]] = {}
        self._by_value: dict[tuple[str, str, str], set[Place]] = {}
        self._columns: Counter[str] = Counter()
        self._slots: list[set[Place]] = [set() for _ in range(SLOTS)]
        self._next = 0
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._slots))

    def add(self, place: Place) -> int:
        """Tell this place from now on; returns what `remove` needs."""
        for uid in place.wants.uids:
            self._by_uid.setdefault(uid, set()).add(place)
        if not place.wants.uids:
            key = _key(place.wants)
            self._by_value.setdefault(key, set()).add(place)
            self._columns[key[1]] += 1
        self._next = (self._next + 1) % SLOTS
        self._slots[self._next].add(place)
        self._some.set()
        return self._next

    def remove(self, place: Place, slot: int) -> None:
        """Tell it no more."""
        for uid in place.wants.uids:
            _drop(self._by_uid, uid, place)
        if not place.wants.uids:
            key = _key(place.wants)
            _drop(self._by_value, key, place)
            self._columns[key[1]] -= 1
            self._columns += Counter()
        self._slots[slot].discard(place)
        if not len(self):
            self._some.clear()

    def tell(self, events: Sequence[Told]) -> None:
        """Wake whoever an event may concern."""
        if not self._some.is_set():
            return
        for told in events:
            for place in self._concerned(told):
                place.offer(told)

    def _concerned(self, told: Told) -> Iterator[Place]:
        event, facts = told
        yield from self._by_uid.get(event.job_uid, ())
        for column in self._columns:
            value = str(value_of(column, event, facts)) if column else ""
            yield from self._by_value.get((event.project, column, value), ())

    def wake_all(self) -> None:
        """Have every watcher look around."""
        for slot in self._slots:
            for place in slot:
                place.wake()

    async def some(self) -> None:
        """Until there is a watcher."""
        await self._some.wait()

    def tick(self, number: int) -> None:
        """See who of the slot of this tick has been silent."""
        for place in self._slots[number % SLOTS]:
            place.tick()


def _key(wants: Wants) -> tuple[str, str, str]:
    column, value = wants.filter.key or WHOLE_PROJECT
    return wants.project, column, value


def _drop(index: dict[K, set[Place]], key: K, place: Place) -> None:
    there = index.get(key)
    if there is not None:
        there.discard(place)
        if not there:
            del index[key]
