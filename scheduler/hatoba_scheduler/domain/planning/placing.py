"""Where a shape fits now: the most welcome place of the cheapest backend, then spread or pack."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from hatoba_scheduler.domain.planning.amounts import Vector, count_in, within
from hatoba_scheduler.domain.planning.kinds import Kind, Shape, Tier
from hatoba_scheduler.domain.planning.model import Place
from hatoba_scheduler.domain.planning.reservations import places_on
from hatoba_scheduler.domain.planning.rooms import Bucket, Free, Group, Pool, Profile, Rooms, Site
from hatoba_scheduler.domain.states import Strategy


class Placer:
    """Looks for room. Holds nothing itself."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self.looked = 0
        """Buckets looked at so far: what looking costs."""

    def places(self, shape: Shape) -> tuple[Place, ...]:
        """One place for each member, in what nobody reserved; empty: there is no room."""
        if shape.members > 1:
            return self._gang(shape)
        pool = None
        if not shape.kind.hopeless(shape.amount):
            pool = self._pool(shape)
            if pool is None and not shape.kind.picky:
                shape.kind.remember(shape.amount)
        if pool is None:
            pool = self._overflow(shape)
        if pool is None:
            return ()
        return (Place(pool.backend, pool.name, pool.free_gpus(shape.amount[2])),)

    # -- one --------------------------------------------------------------------------------------

    def _pool(self, shape: Shape) -> Pool | None:
        avoid = shape.needs.avoid
        pool = self._best_of_all(shape, avoid)
        if pool is None and avoid and not self._another(shape):
            pool = self._best_of_all(shape, ())
        return pool

    def _best_of_all(self, shape: Shape, avoid: tuple[str, ...]) -> Pool | None:
        for tier in shape.kind.tiers(self._rooms):
            if tier.site.open:
                pool = self._best(tier, shape, avoid)
                if pool is not None:
                    return pool
        return None

    def _best(self, tier: Tier, shape: Shape, avoid: tuple[str, ...]) -> Pool | None:
        best: tuple[Free, Pool] | None = None
        for profile in tier.profiles:
            found = self._best_in(profile, shape, avoid)
            if found and (best is None or _better(found, best, pack=_packs(shape))):
                best = found
        return best[1] if best else None

    def _best_in(
        self, profile: Profile, shape: Shape, avoid: tuple[str, ...]
    ) -> tuple[Free, Pool] | None:
        if shape.kind.hosts:
            return self._named(profile, shape, avoid)
        best: tuple[Free, Pool] | None = None
        for gpus, group in profile.groups.items():
            if gpus < shape.amount[2]:
                continue
            found = self._best_of(group, shape, avoid)
            if found and (best is None or _better(found, best, pack=_packs(shape))):
                best = found
        return best

    def _best_of(
        self, group: Group, shape: Shape, avoid: tuple[str, ...]
    ) -> tuple[Free, Pool] | None:
        for bucket, key in self._fitting(group, shape):
            pool = _first(bucket, shape.kind, avoid)
            if pool is not None:
                return key, pool
        return None

    def _fitting(self, group: Group, shape: Shape) -> Iterator[tuple[Bucket, Free]]:
        """Buckets with room for one, in the order of the strategy."""
        keys, amount = group.keys, shape.amount
        start = bisect_left(keys, (amount[0],))
        steps = range(start, len(keys))
        for at in steps if _packs(shape) else reversed(steps):
            self.looked += 1
            key = keys[at]
            bucket = group.buckets[key]
            if within(amount, bucket.free):
                yield bucket, key

    def _named(
        self, profile: Profile, shape: Shape, avoid: tuple[str, ...]
    ) -> tuple[Free, Pool] | None:
        """Of the hosts that it asks for by name."""
        best: tuple[Free, Pool] | None = None
        for name in shape.kind.hosts:
            pool = self._rooms.pool(profile.backend, name)
            self.looked += 1
            if pool is None or pool.bucket is None or pool.bucket.profile is not profile:
                continue
            free = pool.bucket.free
            if within(shape.amount, free) and name not in avoid and shape.kind.admits(pool):
                found = ((free[0], free[3], free[1], free[4]), pool)
                if best is None or _better(found, best, pack=_packs(shape)):
                    best = found
        return best

    def _another(self, shape: Shape) -> bool:
        """Whether a pool that it does not avoid could take it, were it empty."""
        return any(
            pool.name not in shape.needs.avoid
            and pool.room.accepting
            and within(shape.amount, pool.total)
            and shape.kind.suits(pool)
            and shape.kind.admits(pool)
            for site in shape.kind.sites(self._rooms)
            if site.settings.available
            for pool in site.pools.values()
        )

    def _overflow(self, shape: Shape) -> Pool | None:
        """A pool of a backend that takes more than it has room for: the one with least on it."""
        for site in shape.kind.sites(self._rooms):
            if site.settings.elastic and site.open:
                pools = (pool for pool in site.pools.values() if self._could(pool, shape))
                pool = min(pools, key=lambda one: (len(one.held), one.name), default=None)
                if pool is not None:
                    return pool
        return None

    def _could(self, pool: Pool, shape: Shape) -> bool:
        self.looked += 1
        return (
            pool.room.accepting
            and not pool.kept
            and within(shape.amount, pool.total)
            and shape.kind.suits(pool)
            and shape.kind.admits(pool)
        )

    # -- a gang -----------------------------------------------------------------------------------

    def _gang(self, shape: Shape) -> tuple[Place, ...]:
        for site in shape.kind.sites(self._rooms):
            if site.open:
                room = self._room_for(site, shape)
                if sum(count for _, count in room) >= shape.members:
                    return _dealt(room, shape)
        return ()

    def members_in(self, site: Site, shape: Shape) -> int:
        """How many members of a gang would find room on a backend now, at most all."""
        return min(shape.members, sum(count for _, count in self._room_for(site, shape)))

    def _room_for(self, site: Site, shape: Shape) -> list[tuple[Pool, int]]:
        """Pools of a backend and how many members each holds, until it is enough for all."""
        found: list[tuple[Pool, int]] = []
        missing = shape.members
        spread = not _packs(shape)
        for pool, free in self._in_order(site, shape):
            most = 1 if shape.needs.owner else missing
            count = count_in(shape.amount, free, most)
            if site.settings.elastic:
                count = most
            found.append((pool, count))
            missing -= min(count, 1) if spread else count
            if missing <= 0:
                break
        return found

    def _in_order(self, site: Site, shape: Shape) -> Iterator[tuple[Pool, Vector]]:
        if site.settings.elastic:
            pools = (pool for pool in site.pools.values() if self._could(pool, shape))
            for pool in sorted(pools, key=lambda one: (len(one.held), one.name)):
                yield pool, pool.total
            return
        for tier in shape.kind.tiers(self._rooms):
            if tier.site is not site:
                continue
            fitting = [
                (key, bucket)
                for profile in tier.profiles
                for gpus, group in profile.groups.items()
                if gpus >= shape.amount[2]
                for bucket, key in self._fitting(group, shape)
            ]
            fitting.sort(key=lambda one: one[0], reverse=not _packs(shape))
            for _, bucket in fitting:
                for pool in _admitted(bucket, shape.kind, shape.needs.avoid):
                    yield pool, bucket.free


def _packs(shape: Shape) -> bool:
    return shape.needs.placement.strategy is Strategy.PACK


def _first(bucket: Bucket, kind: Kind, avoid: tuple[str, ...]) -> Pool | None:
    if not kind.picky:
        return bucket.first()
    return next(iter(_admitted(bucket, kind, avoid)), None)


def _admitted(bucket: Bucket, kind: Kind, avoid: tuple[str, ...]) -> Iterable[Pool]:
    if not kind.picky:
        return (bucket.pools[name] for name in sorted(bucket.pools))
    return (
        pool
        for _, pool in sorted(bucket.pools.items())
        if pool.name not in avoid and kind.admits(pool)
    )


def _better(one: tuple[Free, Pool], other: tuple[Free, Pool], *, pack: bool) -> bool:
    if one[0] == other[0]:
        return one[1].name < other[1].name
    return one[0] < other[0] if pack else one[0] > other[0]


def _dealt(room: list[tuple[Pool, int]], shape: Shape) -> tuple[Place, ...]:
    """A place for each member: one on each pool in turn to spread, else pool after pool."""
    counts = dict.fromkeys((pool for pool, _ in room), 0)
    missing = shape.members
    turns = itertools.cycle(room)
    while missing:
        pool, most = next(turns)
        more = min(most - counts[pool], missing if _packs(shape) else 1)
        counts[pool] += more
        missing -= more
    return tuple(place for pool, count in counts.items() for place in places_on(pool, count, shape))
