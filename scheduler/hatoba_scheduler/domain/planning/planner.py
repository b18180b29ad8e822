"""Which task goes where, next: pure, incremental, in slices.

Jobs wait in lines of equal queue, needs and priority. What does not fit is put aside, by shape,
until something becomes free that it could use, so what waits costs nothing. Whose turn it is says
the tree of queues; where a task goes, the placer.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Mapping

from hatoba_scheduler.domain.capacity import PoolRoom, describe
from hatoba_scheduler.domain.planning.amounts import Vector, resources, share, vector
from hatoba_scheduler.domain.planning.explaining import never_fits
from hatoba_scheduler.domain.planning.kinds import Kind, Shape, Shapes
from hatoba_scheduler.domain.planning.lines import Line
from hatoba_scheduler.domain.planning.model import (
    Assignment,
    BackendSettings,
    Entry,
    Explained,
    Needs,
    Place,
    PlannerRules,
    Preemption,
    QueueKey,
    QueueSettings,
    QueueShare,
    Round,
    Running,
)
from hatoba_scheduler.domain.planning.placing import Placer
from hatoba_scheduler.domain.planning.rooms import Hold, Pool, Rooms
from hatoba_scheduler.domain.planning.shares import Tree
from hatoba_scheduler.domain.records import Micros, Resources
from hatoba_scheduler.domain.states import WaitReason

SLICE = 150
"""Units of work in about a millisecond."""


class Planner:
    """What waits, what runs, and the next assignments. Owned by one loop."""

    def __init__(self, rules: PlannerRules | None = None) -> None:
        self._rules = rules or PlannerRules()
        self._step = round(self._rules.ageing * 1000)
        self._rooms = Rooms()
        self._shapes = Shapes(self._rooms)
        self._placer = Placer(self._rooms)
        self._tree = Tree()
        self._lines: dict[tuple[QueueKey, Needs, int], Line] = {}
        self._entries: dict[str, tuple[Line, int, Entry]] = {}
        self._limited: dict[str, Entry] = {}
        """Entries of which as many run as may."""
        self._running: dict[str, Running] = {}
        self._numbers = itertools.count()

    # -- settings and room ------------------------------------------------------------------------

    def set_queue(self, settings: QueueSettings) -> None:
        """A queue was made or changed."""
        self._let_go(self._tree.configure(settings))

    def drop_queue(self, key: QueueKey) -> None:
        """A queue is gone."""
        self._let_go(self._tree.drop(key))

    def set_backend(self, settings: BackendSettings) -> None:
        """A backend's settings or its slots are new."""
        self._rooms.set_backend(settings)

    def describe(self, backend: str, pools: Iterable[PoolRoom]) -> None:
        """A backend told of all its pools; what is held of them stays held."""
        self._rooms.describe(backend, pools)

    def pools(self, backend: str) -> list[PoolRoom]:
        """A backend's pools by name, with what is held of them now."""
        return [pool.told() for _, pool in sorted(self._rooms.site(backend).pools.items())]

    def total(self) -> Resources:
        """All that accepting pools have, free or not."""
        return resources(self._rooms.total)

    # -- what waits -------------------------------------------------------------------------------

    def put_plain(self, uid: str, queue: QueueKey, needs: Needs, priority: int) -> None:
        """A job of one task that never started waits; twice is once."""
        line = self._lines.get((queue, needs, priority)) or self._line(queue, needs, priority)
        if line.put(uid):
            line.node.waiting += 1
            if line.rank is None or uid < line.rank.uid:
                self._rank(line)

    def remove_plain(self, uid: str, queue: QueueKey, needs: Needs, priority: int) -> None:
        """It waits no more; nothing when it did not."""
        line = self._lines.get((queue, needs, priority))
        if line is not None and line.drop(uid):
            line.node.waiting -= 1
            if line.rank is not None and line.rank.uid == uid:
                self._rank(line)

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
        self._rank(line)

    def remove(self, uid: str) -> None:
        """Forget a job of which there was an entry."""
        self._limited.pop(uid, None)
        known = self._entries.pop(uid, None)
        if known is not None:
            line, number, _ = known
            line.leave(number)
            line.node.waiting -= 1
            self._rank(line)

    def _line(self, queue: QueueKey, needs: Needs, priority: int) -> Line:
        key = (queue, needs, priority)
        line = self._lines.get(key)
        if line is None:
            node, shape = self._tree.node(queue), self._shapes.shape(needs)
            line = self._lines[key] = Line(node, shape, priority, self._step)
            node.lines[needs, priority] = line
        return line

    def _rank(self, line: Line) -> None:
        """The head of a line is another: it stands elsewhere in its queue, or is gone."""
        line.rank = line.head_rank()
        if line.rank is None:
            self._end(line)
            return
        if not line.live:
            line.live = True
            self._shapes.begin(line.shape)
        if not line.parked:
            self._tree.enter(line)

    def _end(self, line: Line) -> None:
        """Nothing waits in a line: it is forgotten."""
        shape = line.shape
        if line.live:
            line.live = False
            self._shapes.end(shape)
        if not shape.waiting:
            self._shapes.forget(shape)
        del self._lines[line.node.queue, shape.needs, line.priority]
        del line.node.lines[shape.needs, line.priority]

    def _let_go(self, lines: Iterable[Line]) -> None:
        """Lines that were put aside may be placed again."""
        for line in lines:
            line.parked = False
            if line.live:
                self._tree.enter(line)

    # -- what runs --------------------------------------------------------------------------------

    def started(self, running: Running) -> None:
        """An attempt holds something; known already is nothing new."""
        if running.name in self._running:
            return
        hold = _hold_of(running)
        self._rooms.hold(running.place.backend, running.place.pool, running.name, hold)
        self._tree.recharge(self._tree.node(running.queue), hold.amount)
        self._running[running.name] = running

    def changed(
        self,
        name: str,
        *,
        start: Micros | None = None,
        saved: Micros | None = None,
        leaving: bool | None = None,
        priority: int | None = None,
        queue: QueueKey | None = None,
    ) -> None:
        """Something of an attempt that holds something is another; None leaves it."""
        running = self._running.get(name)
        if running is None:
            return
        running.start = running.start if start is None else start
        running.saved = running.saved if saved is None else saved
        running.leaving = running.leaving if leaving is None else leaving
        running.priority = running.priority if priority is None else priority
        if queue is not None and queue != running.queue:
            amount = vector(running.amount)
            self._let_go(self._tree.discharge(self._tree.node(running.queue), amount))
            self._tree.recharge(self._tree.node(queue), amount)
            running.queue = queue

    def ended(self, name: str) -> None:
        """An attempt holds nothing any more."""
        running = self._running.pop(name, None)
        if running is not None:
            self._rooms.let_go(running.place.backend, running.place.pool, name)
            node = self._tree.node(running.queue)
            self._let_go(self._tree.discharge(node, vector(running.amount)))
            if running.start:
                self._tree.learn((self._tree.now - running.start) / 1e6)

    def confirm(self, assignment: Assignment, runnings: Iterable[Running]) -> None:
        """The intents are committed: what was planned is held by the attempts."""
        told = {running.index: running for running in runnings}
        amount = vector(assignment.needs.resources)
        for task, place in zip(assignment.tasks, assignment.places, strict=True):
            running = told.get(task)
            planned = planned_name(assignment.uid, task)
            if running is not None and self._same(assignment, place, running, planned):
                self._running[running.name] = running
                continue
            self._rooms.let_go(place.backend, place.pool, planned)
            self._let_go(self._tree.discharge(self._tree.node(assignment.queue), amount))
            if running is not None:
                self.started(running)

    def _same(self, assignment: Assignment, place: Place, running: Running, planned: str) -> bool:
        """Whether an attempt is just what was planned; then it holds it."""
        if running.queue != assignment.queue or running.place[:2] != place[:2]:
            return False
        hold = _hold_of(running)
        return self._rooms.rename(place.backend, place.pool, planned, running.name, hold)

    def reject(self, assignment: Assignment) -> None:
        """Nothing came of it: its places are free. What still waits is to be put again."""
        amount = vector(assignment.needs.resources)
        for task, place in zip(assignment.tasks, assignment.places, strict=True):
            self._rooms.let_go(place.backend, place.pool, planned_name(assignment.uid, task))
        node = self._tree.node(assignment.queue)
        for _ in assignment.tasks:
            self._let_go(self._tree.discharge(node, amount))

    # -- rounds -----------------------------------------------------------------------------------

    def plan(self, now: Micros, work: int = SLICE) -> Round:
        """What is to be done next, for about so many units of work.

        Each place is held until the assignment is confirmed or rejected.
        """
        self._tree.begin(now, self._rooms.total)
        assignments: list[Assignment] = []
        preemptions: list[Preemption] = []
        left = float(work)
        while left > 0:
            if self._rooms.grown or self._rooms.grown_kept:
                left -= self._look_again()
                continue
            line = self._tree.pick() if self._shapes.opened else None
            if line is None:
                return Round(tuple(assignments), tuple(preemptions), more=False)
            before = self._placer.looked
            assignment = self._try(line)
            if assignment is not None:
                assignments.append(assignment)
            left -= 3 + (self._placer.looked - before) / 8
        return Round(tuple(assignments), tuple(preemptions), more=True)

    def _look_again(self) -> float:
        """Open the shapes that something that became free would do for; the work it was."""
        rooms = self._rooms
        if not rooms.grown:
            pool, _ = rooms.grown_kept.popitem()
            return self._open(pool.free, pool)
        bucket, _ = rooms.grown.popitem()
        if not bucket.pools:
            return 0.1
        return self._open(bucket.free, bucket.profile)

    def _open(self, free: Vector, where: object) -> float:
        work = 1.0
        for kind in self._shapes.kinds():
            if not kind.suits(where):  # type: ignore[arg-type]
                continue
            if not isinstance(where, Pool):
                self._shapes.grown(kind)
            work += 0.2 + len(kind.stuck) / 50
            for shape in _that_fit(kind, free):
                self._let_go(self._shapes.free(shape))
        return work

    def _try(self, line: Line) -> Assignment | None:
        """Place the head of a line; None: there is no leave or no room, and it is put aside."""
        shape = line.shape
        for node in line.node.path:
            if node.limits and not node.allows(shape.whole, shape.members):
                line.parked = True
                node.capped.append(line)
                return None
        places = self._placer.places(shape)
        if not places:
            self._shapes.miss(shape)
            return None
        return self._take(line, places)

    def _take(self, line: Line, places: tuple[Place, ...]) -> Assignment:
        shape, node = line.shape, line.node
        uid, tasks = self._take_head(line)
        for task, place in zip(tasks, places, strict=True):
            hold = Hold(shape.amount, place.gpus, uid)
            self._rooms.hold(place.backend, place.pool, planned_name(uid, task), hold)
            self._rooms.site(place.backend).slots -= 1
        self._tree.charge(node, shape.whole, shape.members)
        self._rank(line)
        return Assignment(uid, tasks, places, node.queue, shape.needs)

    def _take_head(self, line: Line) -> tuple[str, tuple[int, ...]]:
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

    # -- what is said -----------------------------------------------------------------------------

    def never_fits(self, needs: Needs) -> str:
        """Why no known pool could ever hold it; empty: some could, or nothing is known yet."""
        return never_fits(self._rooms, self._shapes.apart(needs))

    def explain(
        self, uid: str, queue: QueueKey, needs: Needs, priority: int, now: Micros
    ) -> Explained:
        """Why a job waits that was put, by the rules that `plan` goes by."""
        del uid, priority, now
        shape, node = self._shapes.apart(needs), self._tree.node(queue)
        if never := never_fits(self._rooms, shape):
            return Explained(WaitReason.NEVER_FITS, never)
        if not all(one.allows(shape.whole, shape.members) for one in node.path):
            return Explained(WaitReason.QUOTA, "Its queue uses as much as it may.")
        if not self._placer.places(shape):
            return Explained(WaitReason.NO_ROOM, f"Needs {describe(needs.resources)}; not free.")
        return Explained(WaitReason.NEXT, "The planner is about to place it.")

    def explain_new(self, entry: Entry, now: Micros) -> Explained:
        """What would become of a job if it were put now."""
        return self.explain(entry.uid, entry.queue, entry.needs, entry.priority, now)

    # -- what is shown ----------------------------------------------------------------------------

    def share(self, key: QueueKey) -> QueueShare:
        """What a queue may claim, uses and used."""
        tree = self._tree
        node = tree.node(key)
        oldest = min((line.oldest() for line in node.lines.values()), default="")
        return QueueShare(
            fair=tree.fair(node),
            used=share(node.used, tree.total),
            decayed=tree.decayed(node),
            reserved=resources(node.used),
            waiting=node.waiting,
            oldest=oldest,
        )

    def usage(self) -> dict[QueueKey, tuple[float, Micros]]:
        """Shares averaged over the past, as of a time, to be stored."""
        return self._tree.usage()

    def restore_usage(self, usage: Mapping[QueueKey, tuple[float, Micros]]) -> None:
        """Take over what was stored."""
        self._tree.restore_usage(usage)


def planned_name(uid: str, index: int) -> str:
    """Under what a place is held from its planning until the attempt has a name."""
    return f"plan:{uid}:{index}"


def _hold_of(running: Running) -> Hold:
    return Hold(vector(running.amount), running.place.gpus, running.uid, running.labels)


def _that_fit(kind: Kind, free: Vector) -> list[Shape]:
    """Stuck shapes that so much would do for; what they name beside is looked at later."""
    cpus, memory, gpus, slots, _ = free
    return [
        shape
        for shape in kind.stuck
        if (amount := shape.amount)[0] <= cpus
        and amount[1] <= memory
        and amount[2] <= gpus
        and amount[3] <= slots
    ]


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
