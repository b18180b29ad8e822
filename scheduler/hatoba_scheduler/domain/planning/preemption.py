"""Whose place is taken: the cheapest that gives the preemptor room, whole gangs, or nobody's.

By priority, or because a queue takes back what it is guaranteed. No queue is brought below its own
guarantee, and nobody gives way unless the preemptor can start when all of them are gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from hatoba_scheduler.domain.planning.amounts import (
    NOTHING,
    Vector,
    count_in,
    left,
    minus,
    plus,
    total_of,
    within,
)
from hatoba_scheduler.domain.planning.kinds import Shape
from hatoba_scheduler.domain.planning.lines import Line
from hatoba_scheduler.domain.planning.model import PlannerRules
from hatoba_scheduler.domain.planning.nodes import Node, covers
from hatoba_scheduler.domain.planning.reservations import Reservations, chosen
from hatoba_scheduler.domain.planning.rooms import Pool, Site
from hatoba_scheduler.domain.planning.runs import Unit, hold_of, lost
from hatoba_scheduler.domain.records import Micros

LOOKED = 512
POOLS = 64
Cost = tuple[int, float, int]
"""Highest priority, seconds of work lost, attempts."""


@dataclass(frozen=True, slots=True)
class Sacrifice:
    """Who gives way, where the preemptor goes then, and whether a guarantee asks for it."""

    units: tuple[Unit, ...]
    counts: dict[Pool, int]
    reclaim: bool
    cost: Cost


class Preempting:
    """Looks for victims. Changes nothing itself."""

    def __init__(self, rules: PlannerRules, reservations: Reservations) -> None:
        self._rules = rules
        self._reservations = reservations
        self._rooms = reservations.rooms
        self._runs = reservations.runs
        self._tree = reservations.tree

    def find(self, line: Line, now: Micros) -> Sacrifice | None:
        """Whose place the head of a line may take; None: nobody's."""
        lowest = self._runs.lowest()
        if lowest is None:
            return None
        owed = next((one for one in line.node.path if self._owes(one, line)), None)
        if owed is None and lowest > self.top(line):
            return None
        search = _Search(self, line, owed, now)
        sites = [site for site in line.shape.kind.sites(self._rooms) if site.open]
        found = (search.in_site(site) for site in sites)
        return min((one for one in found if one), key=lambda one: one.cost, default=None)

    def _owes(self, node: Node, line: Line) -> bool:
        """Whether a queue is owed what the head of a line needs, beside what is made for others."""
        if node.guaranteed is NOTHING:
            return False
        gone, _ = self._reservations.leaving(node)
        wanted = plus(line.shape.whole, self._reservations.pending(node)[0])
        return covers(node.guaranteed, line.shape.whole) and node.owed(minus(wanted, gone))

    def pending(self, node: Node) -> tuple[Vector, int]:
        """What will be used of a queue by those for whom others give way, and how many they are."""
        return self._reservations.pending(node)

    def leaving(self) -> Unit:
        """All that are about to be gone."""
        return self._runs.all_leaving()

    def top(self, line: Line) -> int:
        """The highest priority whose place a line's head may take by its own."""
        return line.priority - self._rules.gap

    # -- what a search asks -----------------------------------------------------------------------

    def units(self, line: Line, owed: Node | None) -> Iterator[Unit]:
        """What may give way for a line's head, lowest priority first; a bounded number."""
        top = self.top(line)
        seen: set[str] = set()
        for running in itertools.islice(self._runs.prey(), LOOKED):
            node = self._tree.node(running.queue)
            by_priority = running.priority <= top
            if not by_priority and (owed is None or owed in node.path):
                continue
            if running.gang and running.gang in seen:
                continue
            seen.add(running.gang)
            unit = self._runs.unit(running)
            if unit and (not by_priority or all(one.priority <= top for one in unit)):
                yield unit

    def node(self, unit: Unit) -> Node:
        """The queue of what gives way."""
        return self._tree.node(unit[0].queue)

    def pool(self, line: Line, backend: str, name: str) -> Pool | None:
        """A pool to which nobody else has a better claim."""
        pool = self._rooms.pool(backend, name)
        if pool is None or not pool.room.accepting:
            return None
        kept = self._reservations.on(pool)
        return pool if kept is None or kept.line is line or kept.yields_to(line) else None

    def left_for(self, line: Line, pool: Pool, room: Vector) -> Vector:
        """What a further head of a line may have of a pool, beside what those before it need."""
        kept = self._reservations.on(pool)
        if kept is None or kept.line is not line or kept.until is None:
            return room
        leaving = total_of(amount for amount in self._runs.leaving(pool))
        return left(plus(room, leaving), kept.kept(pool))

    def roomy(self, site: Site, shape: Shape) -> Iterator[Pool]:
        """Pools of a backend that have room for a member already."""
        for tier in shape.kind.tiers(self._rooms):
            if tier.site is site:
                for profile in tier.profiles:
                    for bucket in profile.buckets():
                        if within(shape.amount, bucket.free):
                            yield from (pool for _, pool in sorted(bucket.pools.items()))


class _Search:
    """One search for one line."""

    def __init__(self, on: Preempting, line: Line, owed: Node | None, now: Micros) -> None:
        self._on = on
        self._line = line
        self._shape = line.shape
        self._now = now
        self._units = sorted(on.units(line, owed), key=self._unit_cost)

    def _unit_cost(self, unit: Unit) -> tuple[int, float, int, str]:
        priority = max(one.priority for one in unit)
        return priority, lost(unit, self._now), len(unit), unit[0].name

    def in_site(self, site: Site) -> Sacrifice | None:
        """The cheapest on one backend."""
        if self._shape.members > 1 or not self._allowed(()):
            return self._over_pools(self._pools(site))
        found = (self._over_pools([pool]) for pool in self._pools(site))
        return min((one for one in found if one), key=lambda one: one.cost, default=None)

    def _pools(self, site: Site) -> list[Pool]:
        """Pools on which somebody may give way and a member would fit, and those with room."""
        names = dict.fromkeys(
            one.place.pool
            for unit in self._units
            for one in unit
            if one.place.backend == site.settings.name
        )
        told = (self._on.pool(self._line, site.settings.name, name) for name in names)
        pools = [pool for pool in told if pool is not None and self._would_do(pool)]
        wanted = self._shape.members if self._shape.members > 1 or not self._allowed(()) else 0
        roomy = (pool for pool in self._on.roomy(site, self._shape) if self._would_do(pool))
        pools = pools[:POOLS] + list(itertools.islice(roomy, wanted))
        return list(dict.fromkeys(pools))

    def _would_do(self, pool: Pool) -> bool:
        kind = self._shape.kind
        return (
            within(self._shape.amount, pool.total)
            and pool.name not in self._shape.needs.avoid
            and kind.suits(pool)
            and kind.names(pool)
        )

    def _over_pools(self, pools: Sequence[Pool]) -> Sacrifice | None:
        """The cheapest that give way so that all members fit on these pools."""
        names = {(pool.backend, pool.name) for pool in pools}
        chosen: list[Unit] = []
        enough = self._enough(pools)
        for unit in self._units:
            if enough(chosen):
                break
            helps = any(one.place[:2] in names for one in unit) or not self._allowed(chosen)
            if helps and self._spared([*chosen, unit]):
                chosen.append(unit)
        if not chosen or not enough(chosen):
            return None
        for unit in reversed(list(chosen)):
            rest = [one for one in chosen if one is not unit]
            if enough(rest):
                chosen = rest
        if not chosen:
            return None
        return self._sacrifice(chosen, pools)

    def _sacrifice(self, units: Sequence[Unit], pools: Sequence[Pool]) -> Sacrifice:
        cost = (
            max(one.priority for unit in units for one in unit),
            sum(lost(unit, self._now) for unit in units),
            sum(len(unit) for unit in units),
        )
        counts = chosen(self._counts(pools, units), self._shape.members)
        return Sacrifice(tuple(units), counts, cost[0] > self._on.top(self._line), cost)

    def _enough(self, pools: Sequence[Pool]) -> Callable[[Sequence[Unit]], bool]:
        def enough(units: Sequence[Unit]) -> bool:
            found = sum(self._counts(pools, units).values())
            return found >= self._shape.members and self._allowed(units)

        return enough

    def _counts(self, pools: Sequence[Pool], units: Iterable[Unit]) -> dict[Pool, int]:
        """How many members fit on each pool when these are gone."""
        freed: dict[tuple[str, str], Vector] = {}
        gone: set[str] = set()
        for one in itertools.chain.from_iterable(units):
            key = (one.place.backend, one.place.pool)
            freed[key] = plus(freed.get(key, NOTHING), hold_of(one).amount)
            gone.add(one.name)
        most = 1 if self._shape.needs.owner else self._shape.members
        counts: dict[Pool, int] = {}
        for pool in pools:
            room = plus(pool.free, freed.get((pool.backend, pool.name), NOTHING))
            room = self._on.left_for(self._line, pool, room)
            if self._shape.kind.admits_without(pool, gone):
                counts[pool] = count_in(self._shape.amount, room, most)
        return counts

    def _allowed(self, units: Iterable[Unit]) -> bool:
        """Whether its own queue may have it when these are gone."""
        removed = self._removed(units)
        shape = self._shape
        for one in self._line.node.path:
            amount, count = removed.get(one, (NOTHING, 0))
            pending, more = self._on.pending(one)
            wanted = minus(plus(shape.whole, pending), amount)
            if not one.allows(wanted, shape.members + more - count):
                return False
        return True

    def _removed(self, units: Iterable[Unit]) -> dict[Node, tuple[Vector, int]]:
        removed: dict[Node, tuple[Vector, int]] = {}
        for one in itertools.chain(self._on.leaving(), *units):
            for node in self._on.node((one,)).path:
                amount, count = removed.get(node, (NOTHING, 0))
                removed[node] = (plus(amount, hold_of(one).amount), count + 1)
        return removed

    def _spared(self, units: Iterable[Unit]) -> bool:
        """Whether no other queue comes below what it is guaranteed."""
        mine = self._line.node.path
        removed = self._removed(units).items()
        return all(node in mine or node.spares(amount) for node, (amount, _) in removed)
