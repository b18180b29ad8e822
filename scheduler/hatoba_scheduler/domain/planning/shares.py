"""Queues as a tree: what each uses, may use and has used, and whose turn it is.

Between siblings the one below its guarantee goes first, then the one that uses least for its
weight: its dominant share of all capacity now, and the same averaged over the past. Rounding is
evened out by at most one job: who had more than its share of late counts as having a little more.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from hatoba_scheduler.domain.planning.amounts import (
    NOTHING,
    Vector,
    minus,
    plus,
    share,
)
from hatoba_scheduler.domain.planning.model import QueueKey, QueueSettings
from hatoba_scheduler.domain.planning.nodes import Averages, Key, Node, find_paths, waits, wants
from hatoba_scheduler.domain.records import Micros

if TYPE_CHECKING:
    from hatoba_scheduler.domain.planning.lines import Line

HALF_LIFE = 3600.0
"""Seconds after which past use counts half."""
FRESH = 10_000_000
"""Microseconds for which an order by past use stays good, at most."""
_EVENING = 2.0
_JOBS = 3.0
_LEARNING = 0.05
_SLACK = 64
Memory = tuple[tuple[Node, float, float, Averages], ...]


class Tree:
    """All queues, and the order in which they have their turn."""

    def __init__(self) -> None:
        self.nodes: dict[QueueKey, Node] = {}
        self.root = Node(("", ""))
        self.total = NOTHING
        self.now: Micros = 0
        self._numbers = itertools.count()
        self.duration = 60.0
        """How long jobs run, in seconds, as learnt from those that ended."""
        self._sorted_at: Micros = 0
        self._guarded: dict[QueueKey, Node] = {}
        """Queues that are guaranteed something."""
        self._heard: set[Node] = set()
        """Queues of which something began or ended since the last round."""

    def node(self, key: QueueKey) -> Node:
        """A queue; one that was not told of has ordinary settings."""
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(key)
            self._attach(node, self.root)
        return node

    def configure(self, settings: QueueSettings) -> list[Line]:
        """Take over settings; the lines that they may let go."""
        node = self.node(settings.key)
        node.configure(settings)
        self._guarded.pop(settings.key, None)
        if node.guaranteed is not NOTHING:
            self._guarded[settings.key] = node
        parent = self._parent_of(settings)
        if parent is not node.parent:
            self._detach(node)
            self._attach(node, parent)
        lines = [line for one in node.path for line in one.capped]
        for one in node.path:
            one.capped = []
        self.wake(node)
        return lines

    def _parent_of(self, settings: QueueSettings) -> Node:
        """The queue above; the root where settings would close a circle."""
        if settings.parent is None:
            return self.root
        parent = self.node(settings.parent)
        node = self.nodes[settings.key]
        return self.root if node in parent.path else parent

    def _attach(self, node: Node, parent: Node) -> None:
        node.parent = parent
        parent.children[node.queue] = node
        find_paths(node)
        self._add_use(parent, node.used, node.running)
        if node.order or node.heap:
            self.wake(node)

    def _detach(self, node: Node) -> None:
        parent = node.parent
        if parent is None:
            return
        del parent.children[node.queue]
        node.place = None
        node.parent = None
        self._add_use(parent, minus(NOTHING, node.used), -node.running)

    def _add_use(self, node: Node | None, amount: Vector, running: int) -> None:
        while node is not None:
            node.used = plus(node.used, amount)
            node.part = share(node.used, self.total)
            node.running += running
            node = node.parent

    def drop(self, key: QueueKey) -> list[Line]:
        """A queue is gone; what still waits or runs of it counts with ordinary settings."""
        node = self.nodes.get(key)
        if node is None:
            return []
        lines = self.configure(QueueSettings(key))
        if node.idle:
            self._detach(node)
            del self.nodes[key]
        return lines

    # -- use --------------------------------------------------------------------------------------

    def charge(self, node: Node, amount: Vector, members: int = 1) -> None:
        """Something of it holds so much from now on: it was planned."""
        node.own = plus(node.own, amount)
        part = share(amount, self.total)
        for one in node.path:
            self._average(one)
            one.used = plus(one.used, amount)
            one.part = share(one.used, self.total)
            one.running += members
            one.last = part
            one.granted += part
            one.averages.part = one.part
        self._charge_root(plus(self.root.used, amount))
        self._place_all(node)

    def recharge(self, node: Node, amount: Vector) -> None:
        """Something of it holds so much, as is heard now; it counts from the next round on."""
        self._heard.add(node)
        node.own = plus(node.own, amount)
        self._add_use(node, amount, 1)
        self._place_all(node)

    def discharge(self, node: Node, amount: Vector, members: int = 1) -> list[Line]:
        """It holds so much no more, as is heard now; the lines that may go for that.

        For the averages it ends with the next round, since only then it is known what time it is.
        """
        self._heard.add(node)
        node.own = minus(node.own, amount)
        freed: list[Line] = []
        for one in node.path:
            was_full = one.full
            one.used = minus(one.used, amount)
            one.part = share(one.used, self.total)
            one.running -= members
            if one.capped:
                freed += self.uncap(one)
            if was_full and not one.full:
                self.wake(one)
        self._charge_root(minus(self.root.used, amount))
        self._place_all(node)
        return freed

    def memory(self, node: Node) -> Memory:
        """What a charge changes beside the use, of a queue and those above it."""
        return tuple(
            (one, one.last, one.granted, replace(one.averages)) for one in (*node.path, self.root)
        )

    def recall(self, memory: Memory) -> None:
        """Be as before a charge that was taken back."""
        for node, last, granted, averages in memory:
            node.last, node.granted, node.averages = last, granted, averages
        for node, *_ in memory:
            self._heard.discard(node)
            if node.place is not None:
                self._stand(node)

    def _charge_root(self, used: Vector) -> None:
        self.root.used = used
        self.root.part = share(used, self.total)

    def uncap(self, node: Node) -> list[Line]:
        """Lines for which a queue's limits leave room again."""
        allowed = [
            line for line in node.capped if node.allows(line.shape.whole, line.shape.members)
        ]
        if allowed:
            chosen = set(map(id, allowed))
            node.capped = [line for line in node.capped if id(line) not in chosen]
        return allowed

    def _average(self, node: Node) -> None:
        """Bring a queue's averages up to now, before its use changes."""
        averages = node.averages
        part = averages.part
        if self.now > averages.at:
            passed = (self.now - averages.at) / 1e6
            keep = _kept(passed)
            averages.decayed = averages.decayed * keep + part * (1.0 - keep)
            keep = math.exp(-passed / (_JOBS * self.duration))
            averages.recent = averages.recent * keep + part * (1.0 - keep)
            averages.at = self.now
        averages.part = node.part

    def learn(self, seconds: float) -> None:
        """Something ended after so long."""
        self.duration += _LEARNING * (max(seconds, 1e-3) - self.duration)

    def short(self) -> list[Node]:
        """Queues that use less than they are guaranteed."""
        return [node for node in self._guarded.values() if node.short]

    def decayed(self, node: Node) -> float:
        """Its share of all capacity, averaged over the past, as of now."""
        averages = node.averages
        if self.now <= averages.at:
            return averages.decayed
        keep = _kept((self.now - averages.at) / 1e6)
        return averages.decayed * keep + averages.part * (1.0 - keep)

    def fair(self, node: Node) -> float:
        """What it may claim by weight now, of all, among queues that want something."""
        part = 1.0
        for one in node.path:
            above = one.parent
            weights = sum(
                child.settings.weight
                for child in (above.children.values() if above else ())
                if child is one or wants(child)
            )
            part *= one.settings.weight / weights if weights else 0.0
        return part

    def usage(self) -> dict[QueueKey, tuple[float, Micros]]:
        """Shares averaged over the past, as of a time."""
        return {key: (self.decayed(node), self.now) for key, node in self.nodes.items()}

    def restore_usage(self, usage: Mapping[QueueKey, tuple[float, Micros]]) -> None:
        """Take over shares averaged over the past, each as of its time."""
        for key, (decayed, at) in usage.items():
            averages = self.node(key).averages
            averages.decayed, averages.at = decayed, at
        self._sorted_at = 0

    # -- turns ------------------------------------------------------------------------------------

    def key(self, node: Node) -> Key:
        """Its place among its siblings, lowest first."""
        weight = node.settings.weight or 1e-9
        above = node.parent
        bias = 0.0
        if above is not None and node.last:
            fair = above.averages.recent * weight / max(above.weights, weight)
            bias = max(-node.last, min(node.last, _EVENING * (node.averages.recent - fair)))
        load = (node.part + self.decayed(node) + bias) / weight
        return (not node.short, load, node.granted / weight, node.queue)

    def _place_all(self, node: Node) -> None:
        """Its use is another: it and those above it stand elsewhere."""
        for one in node.path:
            if one.place is not None:
                self._stand(one)

    def _stand(self, node: Node) -> None:
        above = node.parent
        if above is None:
            return
        node.place = self.key(node)
        heapq.heappush(above.heap, (node.place, next(self._numbers), node))
        if len(above.heap) > 4 * len(above.children) + _SLACK:
            above.heap = [item for item in above.heap if item[2].place is item[0]]
            heapq.heapify(above.heap)

    def wake(self, node: Node) -> None:
        """Something of it may be placed: it stands among its siblings, as do those above it."""
        for one in node.path:
            if one.place is not None or one.full or one.parent is None:
                continue
            if not one.active:
                one.active = True
                one.parent.weights += one.settings.weight
            self._stand(one)

    def begin(self, now: Micros, total: Vector) -> None:
        """It is now; orders that are not good any more are made anew."""
        self.now = max(now, self.now)
        heard, self._heard = self._heard, set()
        for one in {one for node in heard for one in node.path}:
            self._average(one)
        self._average(self.root)
        if total != self.total or self.now - self._sorted_at > self._fresh():
            for node in (self.root, *self.nodes.values()):
                self._average(node)
                node.part = node.averages.part = share(node.used, total)
            self.total = total
            self._sorted_at = self.now
            self._sort(self.root)

    def _fresh(self) -> float:
        """Microseconds for which orders by past use stay good; longer where it is more to sort."""
        return max(1e3 * len(self.nodes), min(FRESH, 1e6 * self.duration))

    def _sort(self, node: Node) -> bool:
        """Make the order among those below it anew; whether it or one of them wants something."""
        active = [child for child in node.children.values() if self._sort(child)]
        for child in node.children.values():
            child.active = False
        node.weights = 0.0
        for child in active:
            child.active = True
            node.weights += child.settings.weight
        node.heap = []
        for child in node.children.values():
            if child.place is not None:
                child.place = self.key(child)
                node.heap.append((child.place, next(self._numbers), child))
        heapq.heapify(node.heap)
        return bool(active or node.lines or node.running)

    def enter(self, line: Line) -> None:
        """A line stands in its queue by the rank of its head."""
        if line.rank is not None:
            node = line.node
            heapq.heappush(node.order, (line.rank, next(self._numbers), line))
            if len(node.order) > 4 * len(node.lines) + _SLACK:
                node.order = [item for item in node.order if item[2].rank is item[0]]
                heapq.heapify(node.order)
            self.wake(node)

    def pick(self) -> Line | None:
        """The line whose turn it is, of those whose shape is not stuck; None: there is none."""
        return self._pick(self.root)

    def _pick(self, node: Node) -> Line | None:
        while True:
            child = self._first_child(node)
            own = _first_line(node)
            if child is None or child.place is None:
                return own
            if own is not None and self._own_key(node) <= child.place:
                return own
            line = self._pick(child)
            if line is not None:
                return line
            child.place = None

    def next_waiting(self, done: Collection[Node]) -> Node | None:
        """The queue whose turn it is, of those in which something waits and that are not done."""
        return self._next_waiting(self.root, done)

    def _next_waiting(self, node: Node, done: Collection[Node]) -> Node | None:
        children = [one for one in node.children.values() if one not in done and waits(one)]
        for child in sorted(children, key=self.key):
            found = self._next_waiting(child, done)
            if found is not None:
                return found
        return node if node.lines and node not in done else None

    def _first_child(self, node: Node) -> Node | None:
        heap = node.heap
        while heap:
            place, _, child = heap[0]
            if child.place is place and not child.full:
                return child
            if child.place is place:
                child.place = None
            heapq.heappop(heap)
        return None

    def _own_key(self, node: Node) -> Key:
        """Of a queue's own jobs, beside the queues below it: as one of them of weight 1."""
        return (True, share(node.own, self.total), 0.0, node.queue)


def _first_line(node: Node) -> Line | None:
    """The first of a queue's own lines that is not stuck; those before it are put aside."""
    order = node.order
    while order:
        rank, _, line = order[0]
        if line.rank is rank and not line.parked:
            if not line.shape.stuck:
                return line
            line.parked = True
            line.shape.parked.append(line)
        heapq.heappop(order)
    return None


def _kept(seconds: float) -> float:
    return math.exp(-seconds * math.log(2.0) / HALF_LIFE)
