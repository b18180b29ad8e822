"""Lines: jobs of one queue, shape and priority, in the order in which they go.

A job of which nothing more is to be known is its uid in a sorted list, about a hundred bytes.
Ageing needs no touch of what waits: with one step of priority for each interval of waiting, the
order of two jobs never changes, so that a rank is fixed when a job is put.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hatoba_scheduler.domain.planning.model import Entry

if TYPE_CHECKING:
    from hatoba_scheduler.domain.planning.kinds import Shape
    from hatoba_scheduler.domain.planning.nodes import Node

ALL_GONE_AT = 64


class Rank(NamedTuple):
    """The order of jobs over the lines of a queue, lowest first."""

    turn: int
    """Milliseconds: when it was submitted, put back by its priority."""
    uid: str


def born(uid: str) -> int:
    """Milliseconds since 1970 when a UUIDv7 was made; 0 for any other text."""
    try:
        return int(uid[:8] + uid[9:13], 16)
    except ValueError:
        return 0


def youngest(micros: int) -> str:
    """A text of the form of a UUIDv7 that goes after all that were made by then."""
    digits = f"{micros // 1000:012x}"
    return f"{digits[:8]}-{digits[8:]}-7fff-bfff-ffffffffffff"


class Line:
    """What waits of one queue with one shape and priority."""

    __slots__ = (
        "_entries",
        "_gone",
        "_head",
        "_order",
        "_uids",
        "back",
        "live",
        "node",
        "parked",
        "priority",
        "rank",
        "refused",
        "shape",
        "size",
    )

    def __init__(self, node: Node, shape: Shape, priority: int, step: int) -> None:
        self.node = node
        self.shape = shape
        self.priority = priority
        self.back = priority * step
        """Milliseconds by which its jobs are put forward."""
        self.size = 0
        """Jobs that wait."""
        self.live = False
        """Something waits in it."""
        self.rank: Rank | None = None
        """Of its head, under which it stands in its queue."""
        self.refused = 0
        """When nobody was found whose place it might take."""
        self.parked = False
        """It was put aside until there is room or leave for it."""
        self._uids: list[str] = []
        self._head = 0
        self._gone: set[str] = set()
        self._entries: dict[int, Entry] = {}
        self._order: list[tuple[bool, str, int]] = []

    # -- jobs of which only the place is known ----------------------------------------------------

    def put(self, uid: str) -> bool:
        """Take in a job; False when it is there already."""
        uids = self._uids
        if not uids or uid > uids[-1]:
            uids.append(uid)
        elif uid in self._gone:
            self._gone.discard(uid)
        else:
            at = bisect_left(uids, uid, self._head)
            if at < len(uids) and uids[at] == uid:
                return False
            if at == self._head and at:
                self._head = at - 1
                uids[at - 1] = uid
            else:
                uids.insert(at, uid)
        self.size += 1
        return True

    def put_all(self, uids: Sequence[str]) -> int:
        """Take in jobs, each named once; how many of them were not there."""
        more = sorted(uids)
        if self._uids and more[0] <= self._uids[-1]:
            return sum(map(self.put, more))
        self._uids += more
        self.size += len(more)
        return len(more)

    def drop(self, uid: str) -> bool:
        """Forget a job; False when it is not there."""
        at = bisect_left(self._uids, uid, self._head)
        if at == len(self._uids) or self._uids[at] != uid or uid in self._gone:
            return False
        self._gone.add(uid)
        self.size -= 1
        self._skip()
        if len(self._gone) > ALL_GONE_AT and len(self._gone) > len(self._uids) - self._head >> 1:
            self._tidy()
        return True

    def _skip(self) -> None:
        """Go on to the first that is still there."""
        uids, gone = self._uids, self._gone
        head = self._head
        while head < len(uids) and gone and uids[head] in gone:
            gone.discard(uids[head])
            head += 1
        self._head = head
        if head == len(uids):
            self._uids, self._head = [], 0
        elif head > 1024 and head > len(uids) >> 1:
            del uids[:head]
            self._head = 0

    def _tidy(self) -> None:
        gone = self._gone
        self._uids = [
            uid for uid in itertools.islice(self._uids, self._head, None) if uid not in gone
        ]
        self._head = 0
        self._gone = set()

    # -- jobs of which more is known --------------------------------------------------------------

    def add(self, entry: Entry, number: int) -> None:
        """Take in an entry under a number of its own."""
        self._entries[number] = entry
        heapq.heappush(self._order, (not entry.first, entry.uid, number))
        self.size += 1

    def leave(self, number: int) -> None:
        """Forget an entry."""
        if self._entries.pop(number, None) is not None:
            self.size -= 1

    def _first_entry(self) -> tuple[bool, str, int] | None:
        while self._order and self._order[0][2] not in self._entries:
            heapq.heappop(self._order)
        return self._order[0] if self._order else None

    # -- all of them ------------------------------------------------------------------------------

    def head(self) -> Entry | str | None:
        """What goes next of it."""
        first = self._first_entry()
        if first is not None:
            last, uid, number = first
            if not last or not self._uids or uid <= self._uids[self._head]:
                return self._entries[number]
        return self._uids[self._head] if self._uids else None

    def head_rank(self) -> Rank | None:
        """The rank of what goes next of it."""
        head = self.head()
        if head is None:
            return None
        uid = head if isinstance(head, str) else head.uid
        return Rank(born(uid) - self.back, uid)

    def pop(self) -> str:
        """Take out the job at the head, which is one of which only its place is known."""
        uid = self._uids[self._head]
        self._head += 1
        self.size -= 1
        self._skip()
        return uid

    def before(self, rank: Rank) -> int:
        """How many of its jobs go before that rank."""
        uids, back = self._uids, self.back
        at = bisect_left(uids, rank, self._head, key=lambda uid: Rank(born(uid) - back, uid))
        gone = sum(at == len(uids) or uid < uids[at] for uid in self._gone)
        entries = self._entries.values()
        mine = sum(Rank(born(entry.uid) - back, entry.uid) < rank for entry in entries)
        return at - self._head - gone + mine

    def uids(self) -> Iterator[str]:
        """All jobs that wait in it: entries first, then the others in their order."""
        yield from (
            self._entries[one[2]].uid for one in sorted(self._order) if one[2] in self._entries
        )
        for uid in itertools.islice(self._uids, self._head, None):
            if uid not in self._gone:
                yield uid

    def oldest(self) -> str:
        """The uid of the job that has waited longest in it; empty: none waits."""
        uids = [entry.uid for entry in self._entries.values()]
        if self._uids:
            uids.append(self._uids[self._head])
        return min(uids, default="")
