"""Why something does not go now: asked of the parts that decide, so that both say the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hatoba_scheduler.domain.capacity import describe
from hatoba_scheduler.domain.planning.amounts import (
    NOTHING,
    limited,
    plus,
    resources,
    within,
)
from hatoba_scheduler.domain.planning.candidates import (
    candidates,
    free_words,
    nearest,
    never_remedy,
    special,
)
from hatoba_scheduler.domain.planning.estimating import Estimate, estimate
from hatoba_scheduler.domain.planning.kinds import Shape
from hatoba_scheduler.domain.planning.lines import Rank, born
from hatoba_scheduler.domain.planning.model import Explained, Needs, QueueKey
from hatoba_scheduler.domain.planning.nodes import Node, lines_of, waits
from hatoba_scheduler.domain.planning.parts import Parts
from hatoba_scheduler.domain.planning.reservations import Reservation
from hatoba_scheduler.domain.planning.rooms import Site
from hatoba_scheduler.domain.planning.rounds import Rounds, bar, returned
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.states import WaitReason


@dataclass(frozen=True, slots=True)
class Case:
    """A job that waits, as it is looked at."""

    uid: str
    queue: QueueKey
    needs: Needs
    priority: int
    now: Micros
    new: bool = False
    """It was only put to be asked about."""


class Explaining:
    """Says why. Leaves everything as it was."""

    def __init__(self, parts: Parts, rounds: Rounds) -> None:
        self._parts = parts
        self._rounds = rounds

    def explain(self, case: Case, *, brief: bool) -> Explained:
        """Why a job waits; brief: without places that were looked at, position and estimate."""
        look = _Look(self._parts, case)
        found = look.barred() or self._going(look) or look.waiting()
        return found if brief else look.completed(found)

    def _going(self, look: _Look) -> Explained | None:
        """What the next round would do with it, if it would do something."""
        case = look.case
        assignment = self._rounds.rehearse(case.uid, case.now)
        if assignment is not None:
            where = ", ".join(dict.fromkeys(place.pool for place in assignment.places))
            if case.new:
                reason, message = WaitReason.NONE, f"It would start now on {where}."
            else:
                reason, message = WaitReason.NEXT, f"Its turn has come: it goes to {where} next."
            return Explained(reason, message, places=assignment.places)
        return look.making_room() or look.preempting()


class _Look:
    """One look at one job."""

    def __init__(self, parts: Parts, case: Case) -> None:
        self.case = case
        self._parts = parts
        self._node = parts.tree.node(case.queue)
        self._line = parts.waiting.line(case.queue, case.needs, case.priority)
        self._shape = self._line.shape if self._line else parts.shapes.apart(case.needs)
        step = parts.waiting.step
        self._rank = Rank(born(case.uid) - case.priority * step, case.uid)
        self._want = describe(case.needs.resources)
        if case.needs.members > 1:
            self._want = f"{case.needs.members} times {self._want}"

    # -- what bars it, whatever is free -----------------------------------------------------------

    def barred(self) -> Explained | None:
        """A reason that does not depend on what is free."""
        return (
            self._never()
            or self._cordoned()
            or self._unavailable()
            or self._over_quota()
            or self._max_parallel()
            or self._quota_kept()
        )

    def _never(self) -> Explained | None:
        never = self._parts.never_fits(self._shape)
        if never:
            remedy = never_remedy(self._parts.rooms, self._shape)
            return Explained(WaitReason.NEVER_FITS, never, remedy)
        for node in self._node.path:
            if never := _beyond(node, self._shape):
                remedy = f"Raise the limits of queue {node.queue[1]!r}, or use another queue."
                return Explained(WaitReason.NEVER_FITS, f"Needs {self._want}; {never}", remedy)
        return None

    def _cordoned(self) -> Explained | None:
        for node in self._node.path:
            if node.settings.cordoned:
                name, why = node.queue[1], node.settings.cordon_reason
                message = f"Queue {name!r} is cordoned{f': {why}' if why else '.'}"
                return Explained(
                    WaitReason.QUEUE_CORDONED, message, f"`hatoba queues uncordon {name}`"
                )
        return None

    def _unavailable(self) -> Explained | None:
        sites = self._shape.kind.sites(self._parts.rooms)
        if any(
            site.settings.available and any(pool.room.accepting for pool in site.pools.values())
            for site in sites
        ):
            return None
        states = [_closed(site) for site in sites]
        remedy = "See `hatoba backends list` and `hatoba hosts list`; start or uncordon a host."
        message = f"Needs {self._want}; {'; '.join(states)}."
        return Explained(WaitReason.BACKEND_UNAVAILABLE, message, remedy)

    def _over_quota(self) -> Explained | None:
        shape = self._shape
        for node in self._node.path:
            if node.limits and not node.allows(shape.whole, shape.members):
                message = f"Needs {self._want}; {_full(node, shape)}"
                remedy = f"Wait until work of queue {node.queue[1]!r} ends, or raise its limits."
                return Explained(WaitReason.QUOTA, message, remedy)
        return None

    def _quota_kept(self) -> Explained | None:
        """What its queue may use is for those for whom others give way."""
        barring = bar(self._parts, self._line) if self._line else None
        if barring is None:
            return None
        message = f"What queue {barring.queue[1]!r} may use is kept for a job that goes before."
        return Explained(WaitReason.RESERVED, message, "It goes on when that job has started.")

    def _max_parallel(self) -> Explained | None:
        if not self._parts.waiting.limited(self.case.uid):
            return None
        return Explained(
            WaitReason.MAX_PARALLEL,
            "As many of its tasks run as its max_parallel allows.",
            "It goes on when one of them ends.",
        )

    # -- what is under way for it -----------------------------------------------------------------

    def _reservation(self) -> Reservation | None:
        line = self._line
        if line is None or line.rank is None or line.rank.uid != self.case.uid:
            return None
        return self._parts.reservations.of(line)

    def making_room(self) -> Explained | None:
        """Others are stopping for it."""
        kept = self._reservation()
        if kept is None or kept.until is None:
            return None
        where = ", ".join(sorted(pool.name for pool in kept.counts))
        message = f"Others are stopping on {where} to make room for it."
        return Explained(WaitReason.PREEMPTING, message, "It starts when they are gone.")

    def preempting(self) -> Explained | None:
        """Others would be stopped for it."""
        line = self._line
        if line is None or line.rank is None or line.rank.uid != self.case.uid:
            return None
        if bar(self._parts, line) is not None or returned(line):
            return None
        found = self._parts.preempting.find(line, self.case.now)
        if found is None:
            return None
        victims = list(itertools.chain.from_iterable(found.units))
        uids = tuple(dict.fromkeys(one.uid for one in victims))
        where = ", ".join(sorted({one.place.pool for one in victims}))
        message = f"It takes the place of {len(victims)} attempts of lower claim on {where}."
        return Explained(WaitReason.PREEMPTING, message, preempts=uids)

    # -- what it waits for ------------------------------------------------------------------------

    def waiting(self) -> Explained:
        """Why it is not placed though nothing bars it."""
        reasons = [one for one in self._reasons() if one is not None]
        return replace(reasons[0], also=tuple(one.message for one in reasons[1:]))

    def _reasons(self) -> Iterator[Explained | None]:
        yield self._throttled()
        yield self._reserved()
        yield self._behind()
        yield self._other_queues()
        yield self._gang_incomplete() or self._no_room()

    def _throttled(self) -> Explained | None:
        sites = self._shape.kind.sites(self._parts.rooms)
        able = [site for site in sites if site.settings.available]
        if any(site.slots > 0 for site in able):
            return None
        names = ", ".join(site.settings.name for site in able)
        message = f"Backend {names} may not be called more often now."
        return Explained(WaitReason.THROTTLED, message, "It goes on by itself within seconds.")

    def _reserved(self) -> Explained | None:
        kept = self._parts.reservations.in_the_way(self._shape, self.case.now)
        if kept is None or kept is self._reservation() or kept.line.rank is None:
            return None
        where = ", ".join(sorted(pool.name for pool in kept.counts))
        message = f"Room on {where} is kept for job {kept.line.rank.uid}, which goes before."
        limit = "A time limit (`timeout`) that ends before that job starts would let it go first."
        return Explained(WaitReason.RESERVED, message, limit)

    def _ahead(self) -> int:
        """Jobs of its own line that go before it."""
        return self._line.before(self._rank) if self._line else 0

    def _competing(self) -> bool:
        """Whether another line of its queue goes before it to where it could go."""
        return any(
            line is not self._line
            and line.rank is not None
            and line.rank < self._rank
            and _takes_from(line.shape, self._shape)
            for line in self._node.lines.values()
        )

    def _behind(self) -> Explained | None:
        ahead = self._ahead()
        if ahead:
            jobs = "1 job" if ahead == 1 else f"{ahead} jobs"
            message = f"{jobs} of its queue with the same needs and priority go first."
        elif self._competing():
            message = "Jobs of its queue that could use the same room go first."
        else:
            return None
        return Explained(
            WaitReason.BEHIND, message, "A higher priority puts it further to the front."
        )

    def _other_queues(self) -> Explained | None:
        tree = self._parts.tree
        for one in self._node.path:
            above = one.parent
            mine = tree.key(one)
            for other in above.children.values() if above else ():
                if other is one or not waits(other) or not tree.key(other) < mine:
                    continue
                if any(_takes_from(line.shape, self._shape) for line in lines_of(other)):
                    return self._share_reason(one, other)
        return None

    def _share_reason(self, mine: Node, other: Node) -> Explained:
        message = (
            f"Queue {other.queue[1]!r} uses {other.part:.0%} of all at weight "
            f"{other.settings.weight:g} and goes before queue {mine.queue[1]!r} "
            f"with {mine.part:.0%} at weight {mine.settings.weight:g}."
        )
        return Explained(
            WaitReason.FAIR_SHARE, message, "It goes on when its queue is below its share again."
        )

    def _gang_incomplete(self) -> Explained | None:
        shape = self._shape
        if shape.members == 1:
            return None
        found = max(
            (self._parts.placer.members_in(site, shape) for site in self._open_sites()), default=0
        )
        if not found:
            return None
        message = f"Needs {self._want} at once; there is room for {found} of {shape.members}."
        return Explained(WaitReason.GANG_INCOMPLETE, message, "It starts when all find room.")

    def _open_sites(self) -> list[Site]:
        return [site for site in self._shape.kind.sites(self._parts.rooms) if site.open]

    def _no_room(self) -> Explained:
        pool = nearest(self._parts.reservations, self._shape)
        if pool is None:
            message = f"Needs {self._want} and {special(self._shape)}; no host has that free."
        else:
            free = free_words(pool, self._shape)
            message = f"Needs {self._want}; free now on {pool.name}: {free}."
        return Explained(
            WaitReason.NO_ROOM, message, "It starts when enough is free; or ask for less."
        )

    # -- the rest ---------------------------------------------------------------------------------

    def completed(self, found: Explained) -> Explained:
        """With its position, what was looked at, and when it would start."""
        at, basis = self._estimate(found)
        position = 1 + sum(line.before(self._rank) for line in self._node.lines.values())
        return replace(
            found,
            position=position,
            queue_length=self._node.waiting,
            estimate=at,
            estimate_basis=basis,
            candidates=candidates(
                self._parts.reservations, self._shape, found.places, self.case.now
            ),
        )

    def _estimate(self, found: Explained) -> Estimate:
        now = self.case.now
        if found.reason in (WaitReason.NONE, WaitReason.NEXT):
            return now, "there is room for it now"
        kept = self._reservation()
        if kept is not None and kept.at is not None:
            return kept.at, "room is kept for it; what runs there ends then by its time limit"
        if found.reason not in _BY_ROOM:
            return None, "unknown: it does not depend on what runs"
        if self._competing() or self._other_queues() is not None:
            return None, "unknown: jobs of other shapes or queues may go before it"
        return estimate(self._parts.reservations, self._shape, self._ahead(), now)


_BY_ROOM = frozenset(
    {
        WaitReason.BEHIND,
        WaitReason.NO_ROOM,
        WaitReason.GANG_INCOMPLETE,
        WaitReason.RESERVED,
    }
)


def _takes_from(other: Shape, mine: Shape) -> bool:
    """Whether what one needs might be taken by the other."""
    shared = not set(other.needs.backends).isdisjoint(mine.needs.backends)
    return shared and within(other.amount, plus(mine.amount, mine.amount))


def _beyond(node: Node, shape: Shape) -> str:
    """Why a queue could never run it, were it empty; empty: it could."""
    settings, name = node.settings, node.queue[1]
    if settings.max_running and shape.members > settings.max_running:
        return f"queue {name!r} runs at most {settings.max_running} tasks."
    if not limited(shape.whole, node.limit):
        return f"queue {name!r} may use at most {describe(settings.quota)}."
    if settings.no_borrowing and not limited(shape.whole, node.guaranteed):
        return f"queue {name!r} may use no more than its own {describe(settings.guaranteed)}."
    return ""


def _full(node: Node, shape: Shape) -> str:
    settings, name = node.settings, node.queue[1]
    if settings.max_running and node.running + shape.members > settings.max_running:
        return f"queue {name!r} runs {node.running} of at most {settings.max_running} tasks."
    used = describe(resources(node.used))
    limit = settings.quota if node.limit != NOTHING else settings.guaranteed
    if limited(plus(node.used, shape.whole), node.limit):
        limit = settings.guaranteed
    return f"queue {name!r} uses {used} of at most {describe(limit)}."


def _closed(site: Site) -> str:
    """Why nothing can be started there, as part of a sentence."""
    name, why = site.settings.name, site.settings.reason or "closed"
    if site.settings.available:
        return f"no host of backend {name!r} takes work now"
    return f"backend {name!r} takes no work: {why.removesuffix('.')}"
