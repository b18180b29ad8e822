"""A queue as a node of their tree: its settings and limits, what it uses, and what waits in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hatoba_scheduler.domain.planning.amounts import NOTHING, Vector, limited, plus, vector
from hatoba_scheduler.domain.planning.lines import Rank
from hatoba_scheduler.domain.planning.model import QueueKey, QueueSettings
from hatoba_scheduler.domain.records import Micros

if TYPE_CHECKING:
    from hatoba_scheduler.domain.planning.lines import Line

Key = tuple[bool, float, float, QueueKey]
"""A queue's place among its siblings, lowest first."""


@dataclass(slots=True)
class Averages:
    """Of a queue's share: over the long past, and over a few jobs' time."""

    part: float = 0.0
    """The share that it has had since `at`."""
    decayed: float = 0.0
    at: Micros = 0
    recent: float = 0.0


class Node:
    """A queue in the tree; the root is above all."""

    __slots__ = (
        "active",
        "averages",
        "capped",
        "children",
        "granted",
        "guaranteed",
        "head",
        "heap",
        "last",
        "limit",
        "limits",
        "lines",
        "order",
        "own",
        "parent",
        "part",
        "path",
        "place",
        "queue",
        "running",
        "settings",
        "used",
        "waiting",
        "weights",
    )

    def __init__(self, queue: QueueKey) -> None:
        self.queue = queue
        self.place: Key | None = None
        """Under which it stands among its siblings; None: it does not."""
        self.parent: Node | None = None
        self.children: dict[QueueKey, Node] = {}
        self.heap: list[tuple[Key, int, Node]] = []
        """Children with something that may be placed."""
        self.lines: dict[tuple[object, int], Line] = {}
        self.order: list[tuple[Rank, int, Line]] = []
        """Its own lines with something that may be placed."""
        self.capped: list[Line] = []
        """Lines, of it or below it, that came up while its quota had no room for them."""
        self.waiting = 0
        """Jobs of its own that wait."""
        self.running = 0
        self.used = NOTHING
        self.part = 0.0
        """Dominant share of all capacity that it uses."""
        self.path: tuple[Node, ...] = ()
        """It and those above it, without the root."""
        self.own = NOTHING
        """What its own jobs use, without those of queues below it."""
        self.granted = 0.0
        """Shares that were given to it, summed up."""
        self.active = False
        """It wants something, or did not long ago."""
        self.head: tuple[Line, str, Micros] | None = None
        """The first of its lines, found without room; the job at its head; since when."""
        self.weights = 0.0
        """Of its children that do."""
        self.last = 0.0
        """Share of what was placed last."""
        self.averages = Averages()
        self.configure(QueueSettings(queue))

    def configure(self, settings: QueueSettings) -> None:
        """Settings are new; the parent is the tree's affair."""
        self.settings = settings
        self.limit = vector(settings.quota)
        guaranteed = vector(settings.guaranteed)
        self.guaranteed = NOTHING if guaranteed == NOTHING else guaranteed
        self.limits = (
            settings.cordoned
            or settings.no_borrowing
            or settings.max_running > 0
            or self.limit != NOTHING
        )
        """Something limits what of it may be placed."""

    @property
    def idle(self) -> bool:
        """Nothing waits in it, runs of it or is below it."""
        return not (self.lines or self.running or self.children or self.used != NOTHING)

    @property
    def full(self) -> bool:
        """Nothing of it may be placed, whatever it is."""
        most = self.settings.max_running
        return self.settings.cordoned or bool(most and self.running >= most)

    def allows(self, amount: Vector, members: int) -> bool:
        """Whether its own limits leave room for so much."""
        settings = self.settings
        if settings.cordoned:
            return False
        if settings.max_running and self.running + members > settings.max_running:
            return False
        used = plus(self.used, amount)
        if settings.no_borrowing and not limited(used, self.guaranteed):
            return False
        return limited(used, self.limit)

    @property
    def short(self) -> bool:
        """It uses less than it is guaranteed."""
        guaranteed = self.guaranteed
        return guaranteed is not NOTHING and any(
            have < own for have, own in _stated(guaranteed, self.used)
        )

    def spares(self, amount: Vector) -> bool:
        """Whether it keeps what it is guaranteed when it gives away so much."""
        if self.guaranteed is NOTHING:
            return True
        has = (used for used, _ in _stated(self.guaranteed, self.used))
        gives = _stated(self.guaranteed, amount)
        return all(
            not given or used - given >= own for used, (given, own) in zip(has, gives, strict=True)
        )

    def owed(self, amount: Vector) -> bool:
        """Whether so much would be within what it is guaranteed."""
        return covers(self.guaranteed, amount) and limited(plus(self.used, amount), self.guaranteed)


def covers(guarantee: Vector, amount: Vector) -> bool:
    """Whether a guarantee speaks of something that is wanted."""
    return any(wanted for wanted, _ in _stated(guarantee, amount))


def _stated(guarantee: Vector, amount: Vector) -> Iterator[tuple[int, int]]:
    """Of each thing that a guarantee speaks of, the amount and what is guaranteed."""
    for n in range(4):
        if guarantee[n]:
            yield amount[n], guarantee[n]  # type: ignore[misc]
    have = dict(amount[4])
    yield from ((have.get(name, 0), own) for name, own in guarantee[4])


def find_paths(node: Node) -> None:
    """Tell a queue and all below it who is above them."""
    above = node.parent.path if node.parent is not None else ()
    node.path = (node, *above)
    for child in node.children.values():
        find_paths(child)


def wants(node: Node) -> bool:
    """Whether something waits or runs in a queue or below it."""
    return bool(node.lines or node.running) or any(map(wants, node.children.values()))


def lines_of(node: Node) -> Iterator[Line]:
    """All lines of a queue and of those below it."""
    yield from node.lines.values()
    for child in node.children.values():
        yield from lines_of(child)


def waits(node: Node) -> bool:
    """Whether something waits in a queue or below it that its limits do not bar."""
    if node.full:
        return False
    return bool(node.lines) or any(map(waits, node.children.values()))
