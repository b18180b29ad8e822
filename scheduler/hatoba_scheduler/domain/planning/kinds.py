"""Kinds and shapes of needs: which pools suit, which of them go first, and what of it is stuck."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hatoba_scheduler.domain.planning.amounts import Vector, times, vector, within
from hatoba_scheduler.domain.planning.model import Needs
from hatoba_scheduler.domain.planning.rooms import HOST, Hold, Pool, Profile, Rooms, Site
from hatoba_scheduler.domain.records import LabelRequirement, Resources
from hatoba_scheduler.domain.states import Operator, Spot

if TYPE_CHECKING:
    from hatoba_scheduler.domain.planning.lines import Line

FRONTIER = 24
"""Amounts that are remembered to have found no room."""
SWEEPS = frozenset((3, *(1 << n for n in range(24))))
"""At which misses those that need no less are put aside, too."""
TRIED = 16
"""So many shapes for each miss are tried then as well."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Profiles of one backend that are equally welcome."""

    site: Site
    profiles: tuple[Profile, ...]


class Kind:
    """What needs have in common but for amounts, members and times: where they suit."""

    __slots__ = (
        "_sites",
        "_tiers",
        "_version",
        "failed",
        "hosts",
        "misses",
        "needs",
        "open",
        "picky",
        "stuck",
    )

    def __init__(self, needs: Needs) -> None:
        self.needs = needs
        self.stuck: dict[Shape, None] = {}
        self.open: dict[Shape, None] = {}
        self.failed: list[Vector] = []
        """Amounts that found no room since room last grew: what is no less finds none either."""
        self.misses = 0
        """How many found none since then."""
        self.hosts = _named_hosts(needs)
        """Of the pools it names, if it names any."""
        placement = needs.placement
        asks_host = any(one.key == HOST for one in (*placement.require, *placement.prefer))
        social = placement.apart_from or placement.near or needs.owner
        self.picky = bool(asks_host or social or needs.avoid)
        """Pools of one bucket are not all the same to it."""
        self._version = -1
        self._tiers: tuple[Tier, ...] = ()
        self._sites: tuple[Site, ...] = ()

    def keys(self) -> Iterator[str]:
        """Labels by which it tells pools apart."""
        placement = self.needs.placement
        return (one.key for one in (*placement.require, *placement.prefer))

    def tiers(self, rooms: Rooms) -> tuple[Tier, ...]:
        """Where it may go, the most welcome first."""
        if self._version != rooms.version:
            sites = [rooms.site(name) for name in self.needs.backends]
            self._sites = tuple(sorted(sites, key=lambda site: site.settings.cost_per_hour))
            self._tiers = tuple(self._sorted_tiers())
            self._version = rooms.version
        return self._tiers

    def _sorted_tiers(self) -> Iterator[Tier]:
        grouped: dict[tuple[int, int, int], list[Profile]] = {}
        sites = self._sites
        for order, site in enumerate(sites):
            for profile in site.profiles.values():
                if self.suits(profile):
                    spot, labels = self._welcome(profile)
                    grouped.setdefault((-spot, order, -labels), []).append(profile)
        for key in sorted(grouped):
            yield Tier(sites[key[1]], tuple(grouped[key]))

    def sites(self, rooms: Rooms) -> tuple[Site, ...]:
        """Its backends, the cheapest first."""
        if self._version != rooms.version:
            self.tiers(rooms)
        return self._sites

    def suits(self, profile: Profile | Pool) -> bool:
        """Whether pools like this would do, were there room: all but what is of one pool alone."""
        needs = self.needs
        told = profile.room if isinstance(profile, Pool) else profile
        return (
            (told.embedded or not needs.embedded_only)
            and told.secrets.issuperset(needs.secrets)
            and _spot_does(needs.spot, spot=profile.spot)
            and all(
                holds(one, profile.labels.get(one.key))
                for one in needs.placement.require
                if one.key != HOST
            )
        )

    def _welcome(self, profile: Profile) -> tuple[int, int]:
        spot = int(self.needs.spot is Spot.PREFER and profile.spot)
        prefer = self.needs.placement.prefer
        return spot, sum(holds(one, profile.labels.get(one.key)) for one in prefer)

    def admits(self, pool: Pool) -> bool:
        """Whether this very pool would do, of those that suit; without what is to be avoided."""
        return not self.picky or self.admits_without(pool, ())

    def admits_without(self, pool: Pool, gone: Collection[str]) -> bool:
        """The same when these that hold something of it are gone."""
        if not self.names(pool):
            return False
        there = [hold for name, hold in pool.held.items() if name not in gone]
        owner = self.needs.owner
        if owner and any(hold.uid == owner for hold in there):
            return False
        return self._clear_of(there) and self._close_to(there)

    def names(self, pool: Pool) -> bool:
        """Whether it would do by its name."""
        require = self.needs.placement.require
        return all(holds(one, pool.name) for one in require if one.key == HOST)

    def _clear_of(self, there: Iterable[Hold]) -> bool:
        """Nothing there that it keeps apart from; what is only planned there might be that."""
        apart = self.needs.placement.apart_from
        return not apart or not any(
            hold.labels is None or any(pair in hold.labels for pair in apart) for hold in there
        )

    def _close_to(self, there: Iterable[Hold]) -> bool:
        near = self.needs.placement.near
        if not near:
            return True
        live = {pair for hold in there for pair in hold.labels or ()}
        return live.issuperset(near)

    def hopeless(self, amount: Vector) -> bool:
        """Whether no more than this found no room since room last grew."""
        cpus, memory, gpus, slots, _ = amount
        for one in self.failed:
            if (
                one[0] <= cpus
                and one[1] <= memory
                and one[2] <= gpus
                and one[3] <= slots
                and (not one[4] or within(one, amount))
            ):
                return True
        return False

    def remember(self, amount: Vector) -> None:
        """So much found no room."""
        if len(self.failed) < FRONTIER:
            self.failed = [one for one in self.failed if not within(amount, one)]
            self.failed.append(amount)


class Shape:
    """Needs of one class, and whether there is room for them."""

    __slots__ = ("amount", "kind", "members", "needs", "parked", "stuck", "waiting", "whole")

    def __init__(self, needs: Needs, kind: Kind) -> None:
        self.needs = needs
        self.kind = kind
        self.amount = vector(needs.resources)
        self.members = needs.members
        self.whole = times(self.amount, needs.members)
        """Of all members."""
        self.stuck = False
        self.waiting = 0
        """Lines of it in which something waits."""
        self.parked: list[Line] = []
        """Lines that came up while it was stuck."""


class Shapes:
    """All shapes that something waits with, by needs."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._shapes: dict[Needs, Shape] = {}
        self._kinds: dict[Needs, Kind] = {}
        self.opened = 0
        """Shapes that wait and are not stuck."""
        self.journal: list[Shape] | None = None
        """What is found to have no room in a rehearsal; None: it is none."""
        self.swept = 0
        """Shapes looked at so far when others found no room: what that costs."""
        self.begun = 0
        """How often a shape began to wait."""

    def shape(self, needs: Needs) -> Shape:
        """The shape of these needs."""
        shape = self._shapes.get(needs)
        if shape is None:
            shape = self._shapes[needs] = self.apart(needs)
            self._kinds[shape.kind.needs] = shape.kind
        return shape

    def apart(self, needs: Needs) -> Shape:
        """The same, of its own: nothing is known of it and nothing learnt."""
        key = needs._replace(resources=Resources(), members=1, timeout=0.0)
        kind = self._kinds.get(key)
        if kind is None:
            kind = Kind(key)
            self._rooms.tell_apart(kind.keys())
            if key.placement.apart_from or key.placement.near:
                self._rooms.social = True
        return Shape(needs, kind)

    def rivals(self, shape: Shape) -> bool:
        """Whether something waits that may find room where a shape does not."""
        backends = set(shape.needs.backends)
        return any(
            not within(shape.amount, other.amount)
            for kind in self._kinds.values()
            if not backends.isdisjoint(kind.needs.backends)
            for other in (*kind.open, *kind.stuck)
        )

    def kinds(self) -> list[Kind]:
        """All kinds of which something found no room."""
        return [kind for kind in self._kinds.values() if kind.stuck or kind.failed]

    def begin(self, shape: Shape) -> None:
        """A line of it has come to have something that waits."""
        shape.waiting += 1
        self.begun += shape.waiting == 1
        if shape.waiting == 1 and not shape.stuck:
            shape.kind.open[shape] = None
            self.opened += 1

    def end(self, shape: Shape) -> None:
        """Nothing waits in a line of it any more; forgotten with its last line."""
        shape.waiting -= 1
        if shape.waiting:
            return
        for line in shape.parked:
            line.parked = False
        shape.parked = []
        if shape.stuck:
            del shape.kind.stuck[shape]
            shape.stuck = False
        else:
            del shape.kind.open[shape]
            self.opened -= 1

    def forget(self, shape: Shape) -> None:
        """No line of it is left."""
        kind = shape.kind
        self._shapes.pop(shape.needs, None)
        if not kind.open and not kind.stuck:
            self._kinds.pop(kind.needs, None)

    def grown(self, kind: Kind) -> None:
        """There is more room for a kind than there was."""
        kind.failed = []
        kind.misses = 0

    def miss(self, shape: Shape, kept: Iterable[Pool], fits: Callable[[Shape], object]) -> None:
        """It found no room; now and then others that find none are put aside with it.

        But for those that might go where room is kept for another.
        """
        self._stick(shape)
        kind = shape.kind
        kind.misses += 1
        if kind.misses not in SWEEPS or not kind.failed:
            return
        rooms = [pool.free for pool in kept]
        single = [
            other
            for other in kind.open
            if other.members == 1
            and not (rooms and any(within(other.amount, room) for room in rooms))
        ]
        self.swept += len(kind.open)
        for other in [other for other in single if kind.hopeless(other.amount)]:
            self._stick(other)
        if len(kind.open) <= TRIED * kind.misses:
            for other in single:
                if not other.stuck and not fits(other):
                    self._stick(other)

    def _stick(self, shape: Shape) -> None:
        shape.stuck = True
        kind = shape.kind
        del kind.open[shape]
        kind.stuck[shape] = None
        self.opened -= 1
        if self.journal is not None:
            self.journal.append(shape)

    def free(self, shape: Shape) -> list[Line]:
        """There may be room for it again; the lines that were put aside for it."""
        shape.stuck = False
        kind = shape.kind
        del kind.stuck[shape]
        kind.open[shape] = None
        self.opened += 1
        lines, shape.parked = shape.parked, []
        return lines


def holds(requirement: LabelRequirement, value: str | None) -> bool:
    """Whether a label of this value, None for none, is as required."""
    match requirement.operator:
        case Operator.IN:
            return value is not None and value in requirement.values
        case Operator.NOT_IN:
            return value is None or value not in requirement.values
        case Operator.EXISTS:
            return value is not None
        case _:
            return value is None


def _spot_does(wanted: Spot, *, spot: bool) -> bool:
    return spot if wanted is Spot.ONLY else not (spot and wanted is Spot.NEVER)


def _named_hosts(needs: Needs) -> tuple[str, ...]:
    for one in needs.placement.require:
        if one.key == HOST and one.operator is Operator.IN:
            return tuple(sorted(set(one.values)))
    return ()
