"""Which task goes where, next: pure, incremental, in slices.

Jobs wait in classes of equal needs, per queue. A class that does not fit is skipped until room it
could use appears, so what waits costs nothing; within a queue higher priority goes first, then age.
Between queues the one that uses least for its weight goes first.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from hatoba_scheduler.domain.capacity import Capacity, Needs, Place

QueueKey = tuple[str, str]
"""(project, queue name)."""


class Waiter(NamedTuple):
    """A job with tasks to start, in the order in which they go: lowest first."""

    rank: int
    """Negated priority."""
    age: str
    """The job's uid, which is time-ordered."""
    number: int
    """Grows with every entry, so that two entries of one job never tie."""


@dataclass(slots=True)
class Entry:
    """A waiting job: the tasks of it that may start, lowest index first."""

    uid: str
    queue: QueueKey
    needs: Needs
    priority: int
    ready: list[int] = field(default_factory=list)
    """Started tasks that wait for a retry and may go now; a heap."""
    fresh: Iterator[int] | None = None
    """Tasks that never started, ascending."""
    room: int = 1 << 30
    """How many more may run at once (max_parallel)."""
    gone: bool = False

    def same_turn(self, other: Entry) -> bool:
        """Whether the other would wait at the same place of the same line."""
        mine = (self.queue, self.needs, self.priority)
        return mine == (other.queue, other.needs, other.priority)

    def spent(self) -> bool:
        """Whether nothing of it may go now: no task waits, or as many run as may."""
        if not self.ready and self.fresh is not None:
            self.ready.extend(itertools.islice(self.fresh, 1))
        return self.room <= 0 or not self.ready

    def take(self) -> int:
        """The next task of one that is not spent."""
        self.room -= 1
        return heapq.heappop(self.ready)


class Assignment(NamedTuple):
    """One task and its place."""

    uid: str
    task: int
    queue: QueueKey
    needs: Needs
    place: Place


@dataclass(slots=True)
class QueueShare:
    """A queue's settings and what runs of it."""

    weight: float = 1.0
    max_running: int = 0
    running: int = 0

    @property
    def full(self) -> bool:
        """No more of it may run now."""
        return bool(self.max_running) and self.running >= self.max_running

    @property
    def load(self) -> float:
        """Running tasks for its weight; the lowest goes first."""
        return self.running / (self.weight or 1e-9)


class Planner:
    """What waits, and the next assignments of it. Owned by one loop."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._entries: dict[str, Entry] = {}
        self._classes: dict[QueueKey, dict[Needs, list[tuple[Waiter, Entry]]]] = {}
        self._queues: dict[QueueKey, QueueShare] = {}
        self._stuck: set[Needs] = set()
        self._numbers = itertools.count()

    def share(self, key: QueueKey) -> QueueShare:
        """A queue's settings and use, to read and to set."""
        return self._queues.setdefault(key, QueueShare())

    def put(self, entry: Entry) -> None:
        """Add a waiting job, or replace what was known of it."""
        known = self._entries.get(entry.uid)
        if known is not None and known.same_turn(entry):
            known.ready, known.fresh, known.room = entry.ready, entry.fresh, entry.room
            return
        self.remove(entry.uid)
        self._entries[entry.uid] = entry
        heap = self._classes.setdefault(entry.queue, {}).setdefault(entry.needs, [])
        waiter = Waiter(-entry.priority, entry.uid, next(self._numbers))
        heapq.heappush(heap, (waiter, entry))

    def get(self, uid: str) -> Entry | None:
        """A waiting job's entry."""
        return self._entries.get(uid)

    def remove(self, uid: str) -> None:
        """Forget a job: it is over, held, or nothing of it waits any more."""
        entry = self._entries.pop(uid, None)
        if entry is not None:
            entry.gone = True

    def room_changed(self) -> None:
        """Something became free or was added: what did not fit may fit now."""
        self._stuck.clear()

    def plan(self, limit: int) -> list[Assignment]:
        """At most `limit` assignments; fewer: nothing more fits.

        Each place is held under `planned_name` until the caller lets go of it.
        """
        out: list[Assignment] = []
        while len(out) < limit:
            assignment = self._next()
            if assignment is None:
                break
            self._capacity.hold(
                assignment.needs.backend,
                assignment.place.pool,
                planned_name(assignment.uid, assignment.task),
                (assignment.needs.resources, assignment.place),
            )
            out.append(assignment)
        return out

    def _next(self) -> Assignment | None:
        for key in sorted(self._classes, key=lambda key: (self.share(key).load, key)):
            share = self.share(key)
            if share.full:
                continue
            found = self._next_of(key)
            if found is not None:
                share.running += 1
                return found
        return None

    def _next_of(self, key: QueueKey) -> Assignment | None:
        classes = self._classes[key]
        for needs in sorted(self._open(key), key=lambda needs: classes[needs][0][0]):
            place = self._capacity.place(needs)
            if place is not None:
                entry = classes[needs][0][1]
                return Assignment(entry.uid, entry.take(), key, needs, place)
            self._stuck.add(needs)
        return None

    def _open(self, key: QueueKey) -> list[Needs]:
        """Classes of a queue that may fit, each with a live head."""
        classes = self._classes[key]
        out = []
        for needs in list(classes):
            heap = classes[needs]
            while heap and self._over(heap[0][1]):
                heapq.heappop(heap)
            if not heap:
                del classes[needs]
            elif needs not in self._stuck:
                out.append(needs)
        return out

    def _over(self, entry: Entry) -> bool:
        if not entry.gone and entry.spent():
            self.remove(entry.uid)
        return entry.gone


def planned_name(uid: str, index: int) -> str:
    """Under what a place is held from its planning until the attempt has a name."""
    return f"plan:{uid}:{index}"
