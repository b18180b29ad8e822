"""One slice of planning: opens what may fit, places heads in turn, reserves and makes room."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from hatoba_scheduler.domain.capacity import describe
from hatoba_scheduler.domain.planning.amounts import Vector, minus, plus, resources, total_of
from hatoba_scheduler.domain.planning.kinds import Kind, Shape
from hatoba_scheduler.domain.planning.lines import Line, Rank, born
from hatoba_scheduler.domain.planning.model import (
    Assignment,
    Entry,
    Place,
    Preemption,
    Round,
)
from hatoba_scheduler.domain.planning.nodes import Node, lines_of
from hatoba_scheduler.domain.planning.parts import Parts
from hatoba_scheduler.domain.planning.preemption import Sacrifice
from hatoba_scheduler.domain.planning.reservations import Reservation
from hatoba_scheduler.domain.planning.rooms import Bucket, Hold, Pool
from hatoba_scheduler.domain.planning.runs import hold_of
from hatoba_scheduler.domain.planning.shares import Memory
from hatoba_scheduler.domain.records import Micros

LATER = 1_000_000
REFUSED_FOR = 1_000_000
"""Microseconds until victims are looked for again for a line that found none."""
CLAIMANTS_LOOKED = 64
CLAIMANTS = 4
"""Lines for which victims are looked for in one round."""
HEADS = 2
"""Queues whose heads are looked after at once."""
OPENED = 100
"""Shapes of one kind that are opened at once."""
REHEARSED = 200
"""So many placements are looked ahead to tell whether a job is among them."""


class Taken(NamedTuple):
    """What was placed, and what is needed to undo it."""

    line: Line
    entry: Entry | None
    memory: Memory
    assignment: Assignment


class Seen(NamedTuple):
    """What is known of heads that find no room."""

    look_at: Micros
    looked: set[Node]
    begun: int
    unrivalled: bool
    heads: dict[Node, tuple[Line, str, Micros] | None]


class Rounds:
    """Decides. What it decides is held from then on."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._look_at: Micros = 0
        """When heads of queues are looked after again."""
        self._looked: set[Node] = set()
        """Queues that had their turn in that."""
        self._begun = 0
        self._unrivalled = False
        """A head needs nothing reserved while no other shape waits."""
        self._preemptions: list[Preemption] = []
        self._journal: list[Taken] | None = None
        """What was placed in a rehearsal; None: it is none."""

    def plan(self, now: Micros, work: float) -> Round:
        """What is to be done next, for about so many units of work."""
        parts = self._parts
        parts.tree.begin(now, parts.rooms.total)
        parts.reservations.tidy(now)
        for node in parts.reservations.take_freed():
            parts.waiting.let_go(parts.tree.uncap(node))
        self._preemptions = []
        assignments: list[Assignment] = []
        left = work
        while left > 0 and parts.rooms.changed:
            left -= self._look_again(assignments)
        if left > 0:
            left -= self._look_after_heads(now)
        while left > 0:
            done = self._step(assignments, now)
            if not done:
                return Round(tuple(assignments), tuple(self._preemptions), more=False)
            left -= done
        return Round(tuple(assignments), tuple(self._preemptions), more=True)

    def _step(self, assignments: list[Assignment], now: Micros) -> float:
        """Do the next thing; the work it was, 0 when nothing is left to do."""
        parts = self._parts
        if parts.rooms.changed:
            return self._look_again(assignments)
        line = parts.tree.pick() if parts.shapes.opened else None
        if line is None:
            if self._journal is None:
                self._claim(now)
            return 0.0
        before = parts.placer.looked + parts.shapes.swept
        assignment = self._try(line, now)
        looked = parts.placer.looked + parts.shapes.swept - before
        if assignment is None:
            return 4.0 + looked / 16
        assignments.append(assignment)
        return 8.0 * len(assignment.tasks) + looked / 16

    def rehearse(self, uid: str, now: Micros) -> Assignment | None:
        """What the next round would do with a job; everything is as it was afterwards.

        None: it would not place it, or not among the first that it places.
        """
        if not self._parts.rooms.changed and not self._parts.shapes.opened:
            return None
        kept, seen = self._parts.reservations.all(), self._seen()
        placed: list[Assignment] = []
        journal: list[Taken] = []
        stuck: list[Shape] = []
        self._journal, self._parts.shapes.journal = journal, stuck
        self._parts.waiting.begin_rehearsal()
        while self._parts.rooms.changed:
            self._look_again(placed)
        self._look_after_heads(now)
        while len(placed) < REHEARSED and not (placed and placed[-1].uid == uid):
            if not self._step(placed, now):
                break
        self._journal = self._parts.shapes.journal = None
        for taken in reversed(journal):
            self._undo(taken)
        for shape in stuck:
            if shape.stuck:
                self._parts.waiting.let_go(self._parts.shapes.free(shape))
        self._parts.waiting.end_rehearsal()
        self._parts.reservations.restore(kept)
        self._forget(seen)
        return next((one for one in placed if one.uid == uid), None)

    def _seen(self) -> Seen:
        heads = {node: node.head for node in self._parts.tree.nodes.values()}
        return Seen(self._look_at, set(self._looked), self._begun, self._unrivalled, heads)

    def _forget(self, seen: Seen) -> None:
        """What was seen of heads since then."""
        self._look_at, self._looked, self._begun, self._unrivalled, heads = seen
        for node, head in heads.items():
            node.head = head

    def _undo(self, taken: Taken) -> None:
        parts, assignment = self._parts, taken.assignment
        for task, place in zip(assignment.tasks, assignment.places, strict=True):
            parts.rooms.let_go(place.backend, place.pool, planned_name(assignment.uid, task))
            parts.rooms.add_slot(place.backend)
        shape, node = taken.line.shape, taken.line.node
        freed = parts.tree.discharge(node, shape.whole, shape.members)
        parts.tree.recall(taken.memory)
        parts.waiting.let_go(freed)
        parts.waiting.put_back(taken.line, taken.entry, assignment.uid, assignment.tasks)

    # -- opening ----------------------------------------------------------------------------------

    def _look_again(self, assignments: list[Assignment]) -> float:
        """Open the shapes that something that became free would do for; the work it was.

        What is kept goes to whom it is kept for, as soon as all of it is free.
        """
        rooms = self._parts.rooms
        if rooms.reshaped:
            rooms.reshaped = False
            return self._open_avoiding()
        if not rooms.grown:
            pool, _ = rooms.grown_kept.popitem()
            kept = self._parts.reservations.on(pool)
            places = self._parts.reservations.free_places(kept) if kept else ()
            if kept is None or not places or bar(self._parts, kept.line) is not None:
                return self._open(pool.free, pool)
            assignments.append(self._take(kept.line, places))
            return 3.0
        bucket, _ = rooms.grown.popitem()
        if not bucket.pools:
            return 0.1
        return self._open(bucket.free, bucket)

    def _open(self, free: Vector, where: Bucket | Pool) -> float:
        """Open what so much would do for; where that is many, some now and the others next."""
        shapes, waiting, rooms = self._parts.shapes, self._parts.waiting, self._parts.rooms
        alike = where.profile if isinstance(where, Bucket) else where
        work = 1.0
        for kind in shapes.kinds():
            if alike.backend not in kind.needs.backends or not kind.suits(alike):
                continue
            if isinstance(where, Bucket):
                shapes.grown(kind)
            fitting = _that_fit(kind, free)
            if len(fitting) > OPENED and isinstance(where, Bucket):
                rooms.grown[where] = None
            elif len(fitting) > OPENED and isinstance(where, Pool):
                rooms.grown_kept[where] = None
            work += 0.2 + len(kind.stuck) / 50 + min(len(fitting), OPENED) / 8
            for shape in fitting[:OPENED]:
                waiting.let_go(shapes.free(shape))
        return work

    def _open_avoiding(self) -> float:
        """Open the shapes that keep away from a pool while another could take them."""
        shapes, waiting = self._parts.shapes, self._parts.waiting
        avoiding = [kind for kind in shapes.kinds() if kind.needs.avoid]
        for shape in [shape for kind in avoiding for shape in kind.stuck]:
            waiting.let_go(shapes.free(shape))
        return 1.0 + len(avoiding)

    # -- placing ----------------------------------------------------------------------------------

    def _try(self, line: Line, now: Micros) -> Assignment | None:
        """Place the head of a line; None: there is no leave or no room, and it is put aside."""
        parts, shape = self._parts, line.shape
        barred = bar(parts, line)
        if barred is not None:
            line.parked = True
            barred.capped.append(line)
            return None
        places = self.places(line, now)
        if places:
            return self._take(line, places)
        parts.shapes.miss(shape, parts.reservations.pools(), parts.placer.places)
        if self._journal is None and now >= line.refused + REFUSED_FOR:
            self._make_room(line, now)
        return None

    def places(self, line: Line, now: Micros) -> tuple[Place, ...]:
        """Where the head of a line would go now; empty: nowhere."""
        parts = self._parts
        places = parts.reservations.places(line) or parts.placer.places(line.shape)
        if not places and line.shape.members == 1:
            pool = parts.reservations.beside(line, now)
            if pool is not None:
                gpus = pool.free_gpus(line.shape.amount[2])
                return (Place(pool.backend, pool.name, gpus),)
        return places

    def _take(self, line: Line, places: tuple[Place, ...]) -> Assignment:
        parts, shape, node = self._parts, line.shape, line.node
        head = line.head()
        memory = parts.tree.memory(node) if self._journal is not None else ()
        parts.reservations.use(line, places)
        uid, tasks = parts.waiting.take(line)
        for task, place in zip(tasks, places, strict=True):
            hold = Hold(shape.amount, place.gpus, uid)
            parts.rooms.hold(place.backend, place.pool, planned_name(uid, task), hold)
            parts.rooms.site(place.backend).slots -= 1
        parts.tree.charge(node, shape.whole, shape.members)
        assignment = Assignment(uid, tasks, places, node.queue, shape.needs)
        if self._journal is not None:
            entry = head if isinstance(head, Entry) else None
            self._journal.append(Taken(line, entry, memory, assignment))
        return assignment

    # -- keeping room for heads -------------------------------------------------------------------

    def _look_after_heads(self, now: Micros) -> float:
        """Reserve for heads of queues that found no room for long enough; the work it was."""
        parts = self._parts
        rivalled = self._unrivalled and self._begun != parts.shapes.begun
        if now < self._look_at and not rivalled:
            return 0.0
        after = round(parts.rules.reserve_after * 1e6)
        self._look_at = now + min(after, LATER) // 2
        self._begun, self._unrivalled = parts.shapes.begun, False
        for one in parts.reservations.all():
            if one.until is None and head_of(one.line.node) not in (None, one.line):
                parts.reservations.drop(one.line)
        done, work = parts.reservations.nodes(), 2.0
        for _ in range(min(HEADS, parts.rules.reservations - len(parts.reservations))):
            node = parts.tree.next_waiting(done | self._looked)
            if node is None and self._looked:
                # All have had their turn: the first is looked after again in this very slice,
                # or what has just come could take what is to be kept for it.
                self._looked = set()
                node = parts.tree.next_waiting(done)
            if node is None:
                break
            done = done | {node}
            self._looked.add(node)
            work += 4.0 + self._look_after(node, after, now)
        return work

    def _look_after(self, node: Node, after: Micros, now: Micros) -> float:
        """Reserve for the head of a queue, if it is time; the work it was."""
        line = head_of(node)
        if line is None or line.rank is None or bar(self._parts, line) is not None:
            return 0.0
        if not line.shape.stuck and self.places(line, now):
            return 2.0
        if node.head is None or node.head[:2] != (line, line.rank.uid):
            node.head = (line, line.rank.uid, now)
        if not self._parts.shapes.rivals(line.shape):
            self._unrivalled = True
            return 1.0
        if now < node.head[2] + after:
            return 0.0
        self._reserve(line, line.rank.uid, now)
        return 20.0

    def _reserve(self, line: Line, uid: str, now: Micros) -> None:
        reservations = self._parts.reservations
        found = reservations.earliest(line.shape, now)
        if found is not None:
            reservations.add(Reservation(line, found[1], found[0]))
            return
        if now < born(uid) * 1000 + round(self._parts.rules.patience * 1e6):
            return
        counts = reservations.drained(line.shape)
        if counts is not None:
            reservations.add(Reservation(line, counts, None))

    # -- making room ------------------------------------------------------------------------------

    def _claim(self, now: Micros) -> None:
        """When nothing fits any more: have others give way for those with a better claim."""
        for line in self._claimants(now):
            while self._make_room(line, now):
                pass
            if len(self._preemptions) >= self._parts.rules.preemptions:
                return

    def _claimants(self, now: Micros) -> list[Line]:
        """A few lines whose heads may take the place of others, and were not refused just now."""
        parts = self._parts
        lowest = parts.runs.lowest()
        if lowest is None:
            return []
        above = parts.waiting.above(lowest + parts.rules.gap - 1)
        owed = (line for node in parts.tree.short() for line in lines_of(node))
        lines = itertools.islice(itertools.chain(owed, above), CLAIMANTS_LOOKED)
        fresh = [line for line in lines if line.live and now >= line.refused + REFUSED_FOR]
        return fresh[:CLAIMANTS]

    def _make_room(self, line: Line, now: Micros) -> bool:
        """Have others give way for a head of a line, if one may take their place."""
        parts = self._parts
        known = parts.reservations.of(line)
        made = known.heads if known is not None and known.until is not None else 0
        enough = made >= (1 if line.shape.members > 1 else line.size)
        if enough or len(self._preemptions) >= parts.rules.preemptions or returned(line):
            return False
        found = parts.preempting.find(line, now)
        if found is None or line.rank is None:
            line.refused = now
            return False
        for one in itertools.chain.from_iterable(found.units):
            parts.runs.unfile(one)
            one.leaving = True
            parts.runs.file(one)
        until = now + round(parts.rules.hold * 1e6)
        parts.reservations.extend(Reservation(line, found.counts, None, until))
        victims = tuple(sorted(one.name for unit in found.units for one in unit))
        note = sacrifice_note(found, line)
        self._preemptions.append(Preemption(victims, line.rank.uid, note))
        return True


def returned(line: Line) -> bool:
    """Its head gave way itself: it takes nobody's place."""
    head = line.head()
    return isinstance(head, Entry) and head.first


def bar(parts: Parts, line: Line) -> Node | None:
    """The queue, of its own and those above, whose limits leave its head no room.

    What those need for whom others give way is theirs already.
    """
    shape = line.shape
    for node in line.node.path:
        if node.limits and not node.allows(shape.whole, shape.members):
            return node
        if node.limits and parts.reservations.making:
            pending, more = parts.reservations.pending(node, but=line)
            gone, fewer = parts.reservations.leaving(node)
            wanted = minus(plus(shape.whole, pending), gone)
            if more and not node.allows(wanted, shape.members + more - fewer):
                return node
    return None


def head_of(node: Node) -> Line | None:
    """The line of a queue's own whose head goes first, whether there is room for it or not."""
    lines = (line for line in node.lines.values() if line.rank is not None)
    return min(lines, key=lambda line: line.rank or Rank(0, ""), default=None)


def sacrifice_note(found: Sacrifice, line: Line) -> str:
    """In words, whose place is taken and why."""
    names = [one for unit in found.units for one in unit]
    freed = describe(resources(total_of(hold_of(one).amount for one in names)))
    pools = ", ".join(sorted({one.place.pool for one in names}))
    many = f"{len(names)} attempt{'s' if len(names) > 1 else ''}"
    what = f"{many} of priority {found.cost[0]} at most, {found.cost[1]:.0f} s of work not saved"
    why = (
        f"queue {line.node.queue[1]!r} takes back what it is guaranteed"
        if found.reclaim
        else f"it has priority {line.priority}"
    )
    return f"Takes the place of {what}: {why}; frees {freed} on {pools}."


def planned_name(uid: str, index: int) -> str:
    """Under what a place is held from its planning until the attempt has a name."""
    return f"plan:{uid}:{index}"


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
