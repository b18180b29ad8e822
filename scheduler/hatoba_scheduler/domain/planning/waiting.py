"""What waits: lines and entries, kept in step with shapes and with the order of their queues."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence

from hatoba_scheduler.domain.planning.kinds import Shapes
from hatoba_scheduler.domain.planning.lines import Line
from hatoba_scheduler.domain.planning.model import Entry, Needs, QueueKey
from hatoba_scheduler.domain.planning.shares import Tree


class Waiting:
    """All jobs that wait. `step`: milliseconds of waiting that are worth one of priority."""

    def __init__(self, tree: Tree, shapes: Shapes, step: int) -> None:
        self._tree = tree
        self._shapes = shapes
        self.step = step
        self._lines: dict[tuple[QueueKey, Needs, int], Line] = {}
        self._entries: dict[str, tuple[Line, int, Entry]] = {}
        self._by_priority: dict[int, dict[Line, None]] = {}
        self._limited: dict[str, Entry] = {}
        """Entries of which as many run as may."""
        self._numbers = itertools.count()
        self._emptied: list[Line] | None = None
        """Lines that became empty in a rehearsal; None: it is none."""

    def __bool__(self) -> bool:
        return bool(self._lines)

    def put_plain(self, uid: str, queue: QueueKey, needs: Needs, priority: int) -> None:
        """A job of one task that never started waits; twice is once."""
        line = self._lines.get((queue, needs, priority)) or self._line(queue, needs, priority)
        if line.put(uid):
            line.node.waiting += 1
            if line.rank is None or uid < line.rank.uid:
                self.rank(line)

    def put_alike(self, uids: Sequence[str], queue: QueueKey, needs: Needs, priority: int) -> None:
        """As `put_plain`, many that are alike, each named once."""
        line = self._lines.get((queue, needs, priority)) or self._line(queue, needs, priority)
        line.node.waiting += line.put_all(uids)
        if line.head_rank() != line.rank:
            self.rank(line)

    def remove_plain(self, uid: str, queue: QueueKey, needs: Needs, priority: int) -> None:
        """It waits no more; nothing when it did not."""
        line = self._lines.get((queue, needs, priority))
        if line is not None and line.drop(uid):
            line.node.waiting -= 1
            if line.rank is not None and line.rank.uid == uid:
                self.rank(line)

    def put(self, entry: Entry) -> None:
        """Add a waiting job, or replace what was known of it."""
        known = self._entries.get(entry.uid)
        if known is not None and _same_turn(known[2], entry) and _may_go(entry):
            known[2].ready, known[2].fresh, known[2].room = entry.ready, entry.fresh, entry.room
            return
        self.remove(entry.uid)
        if not _may_go(entry):
            if entry.room <= 0:
                self._limited[entry.uid] = entry
            return
        line = self._line(entry.queue, entry.needs, entry.priority)
        number = next(self._numbers)
        self._entries[entry.uid] = (line, number, entry)
        line.add(entry, number)
        line.node.waiting += 1
        self.rank(line)

    def remove(self, uid: str) -> None:
        """Forget a job of which there was an entry."""
        self._limited.pop(uid, None)
        known = self._entries.pop(uid, None)
        if known is not None:
            line, number, _ = known
            line.leave(number)
            line.node.waiting -= 1
            self.rank(line)

    def limited(self, uid: str) -> bool:
        """As many tasks of it run as may."""
        return uid in self._limited

    def entry(self, uid: str) -> Entry | None:
        """What is known of a job of which there is an entry."""
        known = self._entries.get(uid)
        return known[2] if known else self._limited.get(uid)

    def line(self, queue: QueueKey, needs: Needs, priority: int) -> Line | None:
        """The line of a queue, shape and priority, when something waits in it."""
        return self._lines.get((queue, needs, priority))

    def above(self, priority: int) -> Iterator[Line]:
        """Lines of a priority that is higher, the highest first."""
        for one in sorted(self._by_priority, reverse=True):
            if one <= priority:
                return
            yield from self._by_priority[one]

    def _line(self, queue: QueueKey, needs: Needs, priority: int) -> Line:
        key = (queue, needs, priority)
        line = self._lines.get(key)
        if line is None:
            node, shape = self._tree.node(queue), self._shapes.shape(needs)
            line = self._lines[key] = Line(node, shape, priority, self.step)
            node.lines[needs, priority] = line
        return line

    def rank(self, line: Line) -> None:
        """The head of a line is another: it stands elsewhere in its queue, or is gone."""
        line.rank = line.head_rank()
        if line.rank is None:
            self._end(line)
            return
        if not line.live:
            line.live = True
            self._shapes.begin(line.shape)
            self._by_priority.setdefault(line.priority, {})[line] = None
        if not line.parked:
            self._tree.enter(line)

    def _end(self, line: Line) -> None:
        """Nothing waits in a line: it is forgotten."""
        shape = line.shape
        if line.live:
            line.live = False
            self._shapes.end(shape)
            lines = self._by_priority[line.priority]
            del lines[line]
            if not lines:
                del self._by_priority[line.priority]
        if self._emptied is not None:
            self._emptied.append(line)
            return
        if not shape.waiting:
            self._shapes.forget(shape)
        del self._lines[line.node.queue, shape.needs, line.priority]
        del line.node.lines[shape.needs, line.priority]

    # -- rehearsals -------------------------------------------------------------------------------

    def begin_rehearsal(self) -> None:
        """What is taken from now on is put back: lines that become empty stay."""
        self._emptied = []

    def end_rehearsal(self) -> None:
        """All is back."""
        emptied, self._emptied = self._emptied or [], None
        for line in emptied:
            if not line.live:
                self._end(line)

    def put_back(self, line: Line, entry: Entry | None, uid: str, tasks: tuple[int, ...]) -> None:
        """A job, or tasks of it, was taken out in a rehearsal."""
        if entry is None:
            self.put_plain(uid, line.node.queue, line.shape.needs, line.priority)
            return
        for task in tasks:
            heapq.heappush(entry.ready, task)
        entry.room += len(tasks)
        if uid not in self._entries:
            self._limited.pop(uid, None)
            self.put(entry)

    def let_go(self, lines: Iterable[Line]) -> None:
        """Lines that were put aside may be placed again."""
        for line in lines:
            line.parked = False
            if line.live:
                self._tree.enter(line)

    def take(self, line: Line) -> tuple[str, tuple[int, ...]]:
        """Take out what goes next of a line: the job and its tasks, all of a gang."""
        taken = self._take(line)
        self.rank(line)
        return taken

    def _take(self, line: Line) -> tuple[str, tuple[int, ...]]:
        head = line.head()
        if not isinstance(head, Entry):
            line.node.waiting -= 1
            return line.pop(), (0,)
        if head.needs.members > 1:
            tasks = tuple(sorted(head.ready))
            head.ready = []
        else:
            tasks = (heapq.heappop(head.ready),)
        head.room -= len(tasks)
        if not _may_go(head):
            _, number, _ = self._entries.pop(head.uid)
            line.leave(number)
            line.node.waiting -= 1
            if head.room <= 0:
                self._limited[head.uid] = head
        return head.uid, tasks


def _same_turn(one: Entry, other: Entry) -> bool:
    """Whether both wait at the same place of the same line."""
    mine = (one.queue, one.needs, one.priority, one.first)
    return mine == (other.queue, other.needs, other.priority, other.first)


def _may_go(entry: Entry) -> bool:
    """Whether a task of it may go now, or all of a gang; draws the next fresh one."""
    missing = entry.needs.members - len(entry.ready)
    if missing > 0 and entry.fresh is not None:
        for task in itertools.islice(entry.fresh, missing):
            heapq.heappush(entry.ready, task)
    return entry.room > 0 and len(entry.ready) >= entry.needs.members
