"""Room that is kept: for heads of queues that find none, and for whom others gave way.

A reserved pool leaves the index. Others may use it only beside what is kept, or when they are sure
to be gone before the time at which it is needed, so that a reservation is never delayed.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from hatoba_scheduler.domain.planning.amounts import (
    Vector,
    beside,
    count_in,
    plus,
    times,
    total_of,
    within,
)
from hatoba_scheduler.domain.planning.kinds import Shape
from hatoba_scheduler.domain.planning.lines import Line
from hatoba_scheduler.domain.planning.model import Place
from hatoba_scheduler.domain.planning.nodes import Node
from hatoba_scheduler.domain.planning.rooms import Bucket, Pool, Rooms, Site
from hatoba_scheduler.domain.planning.runs import Runs, hold_of
from hatoba_scheduler.domain.planning.shares import Tree
from hatoba_scheduler.domain.records import Micros

POOLS = 64
"""Pools that are looked at for one reservation."""
MARGIN = 30_000_000
"""Microseconds that a start and an end may take beyond a job's own time limit."""


@dataclass(slots=True, eq=False)
class Reservation:
    """What is kept for the head of a line: so many members on each pool."""

    line: Line
    counts: dict[Pool, int]
    at: Micros | None
    """When it can start at the latest; None: nobody knows."""
    until: Micros | None = None
    """Others gave way for it; kept until then at most."""

    @property
    def heads(self) -> int:
        """For how many jobs it is kept."""
        return sum(self.counts.values()) // self.shape.members

    @property
    def shape(self) -> Shape:
        """What it is kept for."""
        return self.line.shape

    def kept(self, pool: Pool) -> Vector:
        """What is kept of a pool."""
        return times(self.shape.amount, self.counts[pool])

    def yields_to(self, line: Line) -> bool:
        """Whether that line goes before: in its own queue by rank, else by priority.

        What others give way for is nobody else's.
        """
        mine = self.line
        if self.until is not None:
            return False
        if line.node is mine.node:
            return line.rank is not None and mine.rank is not None and line.rank < mine.rank
        return line.priority > mine.priority

    def valid(self, now: Micros) -> bool:
        """Whether it is still of use."""
        if not self.line.live or (self.until is not None and now >= self.until):
            return False
        return all(pool.room.accepting for pool in self.counts)


class Reservations:
    """All that is kept, at most one for each line and pool."""

    def __init__(self, rooms: Rooms, runs: Runs, tree: Tree) -> None:
        self.rooms = rooms
        self.runs = runs
        self.tree = tree
        self._freed: dict[Node, None] = {}
        self._lines: dict[Line, Reservation] = {}
        self._pools: dict[Pool, Reservation] = {}

    def __len__(self) -> int:
        return sum(one.until is None for one in self._lines.values())

    def all(self) -> list[Reservation]:
        """All that is kept."""
        return list(self._lines.values())

    def restore(self, kept: Collection[Reservation]) -> None:
        """Keep just these again."""
        for one in self.all():
            if one not in kept:
                self.drop(one.line)
        for one in kept:
            if self._lines.get(one.line) is not one:
                self.add(one)

    def of(self, line: Line) -> Reservation | None:
        """What is kept for a line's head."""
        return self._lines.get(line)

    def on(self, pool: Pool) -> Reservation | None:
        """For whom a pool is kept."""
        return self._pools.get(pool)

    def pools(self) -> Iterable[Pool]:
        """All pools of which something is kept."""
        return self._pools.keys()

    def add(self, reservation: Reservation) -> None:
        """Keep it, instead of what was kept for the same line or on the same pools."""
        self.drop(reservation.line)
        for pool in reservation.counts:
            if pool in self._pools:
                self.drop(self._pools[pool].line)
        self._lines[reservation.line] = reservation
        for pool in reservation.counts:
            self._pools[pool] = reservation
            self.rooms.keep(pool)

    def extend(self, reservation: Reservation) -> None:
        """Keep it beside what is kept for further heads of the same line already."""
        known = self._lines.get(reservation.line)
        if known is not None and known.until is not None:
            for pool, count in known.counts.items():
                reservation.counts[pool] = reservation.counts.get(pool, 0) + count
        self.add(reservation)

    def use(self, line: Line, places: tuple[Place, ...]) -> None:
        """The head of a line goes there: it needs no more of what was kept for it.

        What was kept there for one that it goes before is kept no more.
        """
        known = self._lines.get(line)
        if known is not None:
            self._use_own(known, places)
        for place in places:
            pool = self.rooms.pool(place.backend, place.pool)
            other = self._pools.get(pool) if pool else None
            if other is not None and other is not known and other.yields_to(line):
                self.drop(other.line)

    def _use_own(self, known: Reservation, places: tuple[Place, ...]) -> None:
        if known.heads <= 1:
            self.drop(known.line)
            return
        pool = self.rooms.pool(places[0].backend, places[0].pool)
        if pool is None or pool not in known.counts:
            pool = next(iter(known.counts))
        known.counts[pool] -= 1
        self.rooms.grown_kept.update(dict.fromkeys(known.counts))
        if not known.counts[pool]:
            del known.counts[pool], self._pools[pool]
            self.rooms.unkeep(pool)

    def drop(self, line: Line) -> None:
        """Nothing is kept for a line any more."""
        reservation = self._lines.pop(line, None)
        if reservation is None:
            return
        if reservation.until is not None:
            self._freed.update(dict.fromkeys(line.node.path))
        for pool in reservation.counts:
            del self._pools[pool]
            self.rooms.unkeep(pool)

    @property
    def making(self) -> bool:
        """Others give way for somebody."""
        return any(one.until is not None for one in self._lines.values())

    def pending(self, node: Node, but: Line | None = None) -> tuple[Vector, int]:
        """What will be used of a queue when all for whom others give way have started."""
        made = [
            one
            for one in self._lines.values()
            if one.until is not None and one.line is not but and node in one.line.node.path
        ]
        whole = total_of(times(one.shape.whole, one.heads) for one in made)
        return whole, sum(one.heads * one.shape.members for one in made)

    def leaving(self, node: Node) -> tuple[Vector, int]:
        """What is about to be free of a queue's use."""
        gone = [one for one in self.runs.all_leaving() if node in self.tree.node(one.queue).path]
        return total_of(hold_of(one).amount for one in gone), len(gone)

    def take_freed(self) -> Iterable[Node]:
        """Queues whose limits were kept for somebody and are not any more, since it was asked."""
        freed, self._freed = self._freed, {}
        return freed

    def nodes(self) -> set[Node]:
        """Queues for whose heads something is kept that found no room."""
        return {line.node for line, one in self._lines.items() if one.until is None}

    def tidy(self, now: Micros) -> None:
        """Drop what is of no use any more."""
        for line in [line for line, one in self._lines.items() if not one.valid(now)]:
            self.drop(line)

    # -- who may use it ---------------------------------------------------------------------------

    def places(self, line: Line) -> tuple[Place, ...]:
        """What is kept for a line's head, when all of it is free; else nothing."""
        reservation = self._lines.get(line)
        if reservation is None:
            return ()
        return self.free_places(reservation)

    def free_places(self, reservation: Reservation) -> tuple[Place, ...]:
        """The places for one head of those it is kept for, when they are free; else nothing."""
        shape = reservation.shape
        if shape.members == 1:
            pools = [pool for pool in reservation.counts if self._free(pool, 1, shape)]
            return tuple(places_on(pools[0], 1, shape)) if pools else ()
        found: list[Place] = []
        for pool, count in reservation.counts.items():
            if not self._free(pool, count, shape):
                return ()
            found += places_on(pool, count, shape)
        return tuple(found)

    def _free(self, pool: Pool, count: int, shape: Shape) -> bool:
        return (
            within(times(shape.amount, count), pool.free)
            and shape.kind.admits(pool)
            and self.rooms.site(pool.backend).open
        )

    def beside(self, line: Line, now: Micros) -> Pool | None:
        """A pool that is kept for another and would do for a line's head all the same."""
        shape = line.shape
        for pool in sorted(self._pools, key=lambda one: (one.backend, one.name)):
            if self._would_do(pool, shape) and (
                self._pools[pool].yields_to(line) or self.unharmed(pool, shape, now)
            ):
                return pool
        return None

    def in_the_way(self, shape: Shape, now: Micros) -> Reservation | None:
        """What is kept for another where this would go."""
        for pool, reservation in self._pools.items():
            if self._would_do(pool, shape) and not self.unharmed(pool, shape, now):
                return reservation
        return None

    def _would_do(self, pool: Pool, shape: Shape) -> bool:
        return (
            pool.backend in shape.needs.backends
            and pool.room.accepting
            and pool.name not in shape.needs.avoid
            and within(shape.amount, pool.free)
            and self.rooms.site(pool.backend).open
            and shape.kind.suits(pool)
            and shape.kind.admits(pool)
        )

    def unharmed(self, pool: Pool, shape: Shape, now: Micros) -> bool:
        """Whether a reservation is not delayed when one of a shape starts on its pool now."""
        reservation = self._pools[pool]
        at, timeout = reservation.at, shape.needs.timeout
        if at is not None and timeout and now + round(timeout * 1e6) + MARGIN <= at:
            return True
        return beside(shape.amount, reservation.kept(pool), self._free_at(pool, at, now))

    def _free_at(self, pool: Pool, at: Micros | None, now: Micros) -> Vector:
        """What will be free of a pool then, if nothing starts meanwhile."""
        bound = now if at is None else max(at, now)
        ending = (amount for end, amount in self.runs.ends(pool, now) if end <= bound)
        return plus(pool.free, total_of(ending))

    # -- making one -------------------------------------------------------------------------------

    def earliest(self, shape: Shape, now: Micros) -> tuple[Micros, dict[Pool, int]] | None:
        """When and where a shape can start at the latest, by the time limits of what runs."""
        found = [
            one
            for site in shape.kind.sites(self.rooms)
            if site.open and (one := self._earliest_in(site, shape, now)) is not None
        ]
        return min(found, key=lambda one: one[0], default=None)

    def _earliest_in(
        self, site: Site, shape: Shape, now: Micros
    ) -> tuple[Micros, dict[Pool, int]] | None:
        free = {pool: pool.free for pool in self.candidates(site, shape)}
        counts = {pool: _count(shape, room) for pool, room in free.items()}
        ends = [
            (end, n, pool, amount)
            for n, pool in enumerate(free)
            for end, amount in self.runs.ends(pool, now)
        ]
        found, at = sum(counts.values()), now
        for end, _, pool, amount in sorted(ends, key=lambda one: one[:2]):
            if found >= shape.members:
                break
            at = end
            free[pool] = plus(free[pool], amount)
            found -= counts[pool]
            counts[pool] = _count(shape, free[pool])
            found += counts[pool]
        return (at, chosen(counts, shape.members)) if found >= shape.members else None

    def drained(self, shape: Shape) -> dict[Pool, int] | None:
        """Pools to keep where it is not known when something ends: those with most free."""
        for site in shape.kind.sites(self.rooms):
            if site.open:
                pools = self.candidates(site, shape)
                counts = {pool: _count(shape, pool.total) for pool in pools}
                if sum(counts.values()) >= shape.members:
                    order = sorted(counts, key=lambda one: (-free_part(shape, one), one.name))
                    return _taken(((pool, counts[pool]) for pool in order), shape.members)
        return None

    def candidates(self, site: Site, shape: Shape) -> list[Pool]:
        """Pools that could hold it and are kept for nobody else, those with most room first."""
        buckets: list[Bucket] = [
            bucket
            for tier in shape.kind.tiers(self.rooms)
            if tier.site is site
            for profile in tier.profiles
            for bucket in profile.buckets()
        ]
        fullest = heapq.nlargest(POOLS, buckets, key=lambda one: one.free)
        pools = (
            pool
            for bucket in fullest
            for _, pool in sorted(bucket.pools.items())
            if within(shape.amount, pool.total) and shape.kind.names(pool)
        )
        return [pool for pool, _ in zip(pools, range(POOLS), strict=False)]


def places_on(pool: Pool, count: int, shape: Shape) -> Iterator[Place]:
    """So many places on one pool, each with GPUs of its own."""
    each = shape.amount[2]
    ids = pool.free_gpus(each * count)
    for n in range(count):
        yield Place(pool.backend, pool.name, ids[n * each : (n + 1) * each])


def _count(shape: Shape, room: Vector) -> int:
    return count_in(shape.amount, room, 1 if shape.needs.owner else shape.members)


def chosen(counts: dict[Pool, int], members: int) -> dict[Pool, int]:
    """So many members on the pools that hold most of them."""
    order = sorted(counts, key=lambda pool: (-counts[pool], pool.name))
    return _taken(((pool, counts[pool]) for pool in order), members)


def _taken(room: Iterable[tuple[Pool, int]], members: int) -> dict[Pool, int]:
    taken: dict[Pool, int] = {}
    for pool, most in room:
        count = min(most, members - sum(taken.values()))
        if count > 0:
            taken[pool] = count
    return taken


def free_part(shape: Shape, pool: Pool) -> float:
    """How much of what a member needs is free, by what is scarcest."""
    pairs = zip(shape.amount[:4], pool.free[:4], strict=True)
    return min((min(1.0, free / want) for want, free in pairs if want), default=1.0)
