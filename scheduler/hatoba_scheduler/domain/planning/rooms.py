"""Room: all pools of all backends, what is held of them, and which are alike.

Pools of one profile (everything but amounts) with the same free amounts share a bucket, so that ten
thousand nodes cost what their distinct shapes cost. What became free since it was last asked is
remembered by bucket.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.amounts import (
    NOTHING,
    Named,
    Vector,
    left,
    minus,
    plus,
    resources,
    vector,
)
from hatoba_scheduler.domain.planning.model import BackendSettings

HOST = "hatoba/host"
ENGINE = "hatoba/engine"
"""Label of a place that runs containers; hosts say it of themselves."""
SPOT = ("spot", "true")
Pair = tuple[str, str]
Free = tuple[int, int, int, Named]
"""Cores, slots, bytes and named things that are free: the order of roominess."""


class Hold(NamedTuple):
    """What is held of a pool, and for which job; `labels` None: only planned, not known yet."""

    amount: Vector
    gpus: tuple[str, ...]
    uid: str
    labels: tuple[Pair, ...] | None = None


class Pool:
    """One pool: what was told of it, what is held of it, and where in the index it is."""

    __slots__ = (
        "backend",
        "bucket",
        "held",
        "kept",
        "labels",
        "name",
        "room",
        "taken",
        "total",
        "used",
    )

    def __init__(self, backend: str, room: PoolRoom) -> None:
        self.backend = backend
        self.name = room.name
        self.held: dict[str, Hold] = {}
        self.taken: dict[str, int] = {}
        self.used = NOTHING
        self.bucket: Bucket | None = None
        self.kept = False
        """Reserved for somebody: it is in no bucket."""
        self.describe(room)

    def describe(self, room: PoolRoom) -> None:
        """Take over what is told of it."""
        self.room = room
        self.total = vector(room.total)
        self.labels = dict(room.labels)

    @property
    def free(self) -> Vector:
        """What is left of it."""
        return left(self.total, self.used)

    @property
    def spot(self) -> bool:
        """Its provider may take it back."""
        return self.labels.get(SPOT[0]) == SPOT[1]

    def label(self, key: str) -> str | None:
        """A label's value; `hatoba/host` is its name."""
        return self.name if key == HOST else self.labels.get(key)

    def free_gpus(self, count: int) -> tuple[str, ...]:
        """So many ids that nobody holds, in the pool's order; fewer where it names fewer."""
        if not count:
            return ()
        free = (gpu for gpu in self.room.gpu_ids if gpu not in self.taken)
        return tuple(gpu for gpu, _ in zip(free, range(count), strict=False))

    def told(self) -> PoolRoom:
        """What was told of it, with what is held now."""
        held = {name: (resources(one.amount), one.gpus) for name, one in self.held.items()}
        return replace(self.room, held=held, used=resources(self.used))


class Bucket:
    """Pools of one profile with the same free amounts."""

    __slots__ = ("free", "names", "pools", "profile")

    def __init__(self, profile: Profile, free: Vector) -> None:
        self.profile = profile
        self.free = free
        self.pools: dict[str, Pool] = {}
        self.names: list[str] = []

    def add(self, pool: Pool) -> None:
        """A pool has come to have just this free."""
        self.pools[pool.name] = pool
        heapq.heappush(self.names, pool.name)
        pool.bucket = self
        if len(self.names) > 2 * len(self.pools) + 16:
            self.names = sorted(self.pools)

    def first(self) -> Pool:
        """The pool of the smallest name; there is one."""
        while self.names[0] not in self.pools:
            heapq.heappop(self.names)
        return self.pools[self.names[0]]


class Group:
    """Buckets of a profile with as many free GPUs, by their other free amounts, ascending."""

    __slots__ = ("buckets", "keys")

    def __init__(self) -> None:
        self.keys: list[Free] = []
        self.buckets: dict[Free, Bucket] = {}


class Profile:
    """What pools have in common but for their amounts."""

    __slots__ = ("backend", "embedded", "groups", "key", "labels", "secrets", "size", "spot")

    def __init__(self, backend: str, pool: Pool, labels: dict[str, str], key: object) -> None:
        self.backend = backend
        self.embedded = pool.room.embedded
        self.secrets = pool.room.secrets
        self.spot = pool.spot
        self.labels = labels
        self.key = key
        self.size = 0
        """Pools that have it."""
        self.groups: dict[int, Group] = {}

    def buckets(self) -> Iterator[Bucket]:
        """All that hold a pool."""
        for group in self.groups.values():
            yield from group.buckets.values()

    def bucket_for(self, free: Vector) -> Bucket:
        """The bucket of these free amounts, made when there is none."""
        group = self.groups.get(free[2])
        if group is None:
            group = self.groups[free[2]] = Group()
        key = (free[0], free[3], free[1], free[4])
        bucket = group.buckets.get(key)
        if bucket is None:
            bucket = group.buckets[key] = Bucket(self, free)
            insort(group.keys, key)
        return bucket

    def drop(self, bucket: Bucket) -> None:
        """Forget a bucket that is empty."""
        free = bucket.free
        key = (free[0], free[3], free[1], free[4])
        group = self.groups[free[2]]
        del group.buckets[key]
        del group.keys[bisect_left(group.keys, key)]
        if not group.keys:
            del self.groups[free[2]]


@dataclass(slots=True)
class Site:
    """A backend: its settings, pools and profiles."""

    settings: BackendSettings
    pools: dict[str, Pool] = field(default_factory=dict)
    profiles: dict[object, Profile] = field(default_factory=dict)
    slots: int = 1 << 30
    """Launches that it takes before its settings are told anew."""

    @property
    def open(self) -> bool:
        """It takes work now."""
        return self.settings.available and self.slots > 0


class Rooms:
    """All pools of all backends. Holdings outlive a pool's absence from what is told."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.total = NOTHING
        self.grown: dict[Bucket, None] = {}
        """Where something became free since the planner last looked."""
        self.grown_kept: dict[Pool, None] = {}
        """The same of pools that are reserved."""
        self.reshaped = False
        """A pool or backend takes less than it did: what kept away from another may go there."""
        self.told = 0
        """Grows when something else is told of a pool or backend than was known."""
        self.version = 0
        """Grows when a profile comes, goes or changes its meaning."""
        self.social = False
        """Something asks who else is on a pool: then a start there is a chance, too."""
        self._asked: set[str] = set()
        """Labels that somebody asks for."""
        self._seen: set[str] = set()
        """Labels that some pool has or had."""
        self._keys: set[str] = set()
        """Those that are both: by them pools are told apart."""

    @property
    def changed(self) -> bool:
        """There may be room where there was none."""
        return bool(self.grown or self.grown_kept or self.reshaped)

    def site(self, backend: str) -> Site:
        """A backend, known or not yet."""
        site = self.sites.get(backend)
        if site is None:
            site = self.sites[backend] = Site(BackendSettings(backend))
        return site

    def pool(self, backend: str, name: str) -> Pool | None:
        """A pool, if it is known."""
        site = self.sites.get(backend)
        return site.pools.get(name) if site else None

    def set_backend(self, settings: BackendSettings) -> None:
        """Settings are new; what waits for an open backend may go when it opened."""
        site = self.site(settings.name)
        was_open, was = site.open, site.settings
        site.settings, site.slots = settings, settings.slots
        self.told += was.elastic != settings.elastic
        self.reshaped |= was.available and not settings.available
        if was.cost_per_hour != settings.cost_per_hour:
            self.version += 1
        if (site.open and not was_open) or (settings.elastic and not was.elastic):
            self._all_grown(site)

    def _all_grown(self, site: Site) -> None:
        for profile in site.profiles.values():
            self.grown.update(dict.fromkeys(profile.buckets()))
        self.grown_kept.update((pool, None) for pool in site.pools.values() if pool.kept)

    def add_slot(self, backend: str) -> None:
        """One launch more, which was not made."""
        site = self.site(backend)
        was_open = site.open
        site.slots += 1
        if site.open and not was_open:
            self._all_grown(site)

    def describe(self, backend: str, rooms: Iterable[PoolRoom]) -> None:
        """Take over what a backend tells of its pools; what is held stays held."""
        site = self.site(backend)
        absent = dict(site.pools)
        for room in rooms:
            pool = absent.pop(room.name, None)
            if pool is None:
                self._add(site, Pool(backend, room))
            elif _differs(pool.room, room):
                self._change(site, pool, room)
        for pool in absent.values():
            self._lose(site, pool)

    def _add(self, site: Site, pool: Pool) -> None:
        self.told += 1
        self._see(pool)
        site.pools[pool.name] = pool
        self.total = plus(self.total, pool.total)
        self._file(pool, grown=True)

    def _change(self, site: Site, pool: Pool, room: PoolRoom) -> None:
        self.reshaped = True
        self.told += 1
        self._unfile(pool)
        self.total = minus(self.total, pool.total)
        pool.describe(room)
        self._see(pool)
        self.total = plus(self.total, pool.total)
        self._file(pool, grown=True)

    def _see(self, pool: Pool) -> None:
        if not self._seen.issuperset(pool.labels):
            self._seen.update(pool.labels)
            self._tell_apart()

    def _lose(self, site: Site, pool: Pool) -> None:
        self.reshaped = True
        self.told += 1
        self._unfile(pool)
        self.total = minus(self.total, pool.total)
        if pool.held or pool.kept:
            pool.describe(replace(pool.room, total=resources(NOTHING), accepting=False))
        else:
            del site.pools[pool.name]

    def hold(self, backend: str, name: str, holder: str, hold: Hold) -> None:
        """Reserve for somebody, also in a pool that was not told of yet; twice is once."""
        site = self.site(backend)
        pool = site.pools.get(name)
        if pool is None:
            pool = site.pools[name] = Pool(
                backend, PoolRoom(name, resources(NOTHING), accepting=False)
            )
        if holder in pool.held:
            pool.held[holder] = hold._replace(amount=pool.held[holder].amount)
            return
        pool.held[holder] = hold
        for gpu in hold.gpus:
            pool.taken[gpu] = pool.taken.get(gpu, 0) + 1
        pool.used = plus(pool.used, hold.amount)
        social = self.social and hold.labels is not None
        self._refile(pool, grown=social or pool.bucket in self.grown)

    def let_go(self, backend: str, name: str, holder: str) -> None:
        """Give back what somebody held; nothing when nothing was."""
        pool = self.pool(backend, name)
        hold = pool.held.pop(holder, None) if pool else None
        if pool is None or hold is None:
            return
        for gpu in hold.gpus:
            pool.taken[gpu] -= 1
            if not pool.taken[gpu]:
                del pool.taken[gpu]
        pool.used = minus(pool.used, hold.amount)
        self._refile(pool, grown=True)
        if not pool.held and not pool.room.accepting and pool.total == NOTHING and not pool.kept:
            del self.sites[backend].pools[name]

    def rename(self, backend: str, name: str, names: tuple[str, str], hold: Hold) -> bool:
        """What was held under the first name is held under the second; False: it was not."""
        old, new = names
        pool = self.pool(backend, name)
        if pool is None or old not in pool.held or pool.held[old].amount != hold.amount:
            return False
        if pool.held[old].gpus != hold.gpus or new in pool.held:
            return False
        del pool.held[old]
        pool.held[new] = hold
        if pool.bucket is not None and self.social:
            self.grown[pool.bucket] = None
        return True

    def keep(self, pool: Pool) -> None:
        """Take a pool out of the index: it is reserved."""
        self._unfile(pool)
        pool.kept = True
        self.grown_kept[pool] = None

    def unkeep(self, pool: Pool) -> None:
        """Everybody may use it again."""
        pool.kept = False
        self.grown_kept.pop(pool, None)
        self._file(pool, grown=True)

    # -- the index --------------------------------------------------------------------------------

    def tell_apart(self, keys: Iterable[str]) -> None:
        """From now on pools that differ in these labels are not alike."""
        self._asked.update(key for key in keys if key != HOST)
        self._tell_apart()

    def _tell_apart(self) -> None:
        new = (self._asked & self._seen) - self._keys
        if not new:
            return
        self._keys |= new
        pools = [pool for site in self.sites.values() for pool in site.pools.values()]
        again = [(pool, pool.bucket in self.grown) for pool in pools if pool.bucket is not None]
        for pool, _ in again:
            self._unfile(pool)
        for pool, grown in again:
            self._file(pool, grown=grown)

    def _profile(self, pool: Pool) -> Profile:
        site = self.sites[pool.backend]
        labels = {key: pool.labels[key] for key in self._keys if key in pool.labels}
        room = pool.room
        key = (room.embedded, room.secrets, pool.spot, frozenset(labels.items()))
        profile = site.profiles.get(key)
        if profile is None:
            self.version += 1
            profile = site.profiles[key] = Profile(pool.backend, pool, labels, key)
        return profile

    def _file(self, pool: Pool, *, grown: bool) -> None:
        if not pool.room.accepting:
            return
        if pool.kept:
            if grown:
                self.grown_kept[pool] = None
            return
        profile = self._profile(pool)
        profile.size += 1
        bucket = profile.bucket_for(pool.free)
        bucket.add(pool)
        if grown:
            self.grown[bucket] = None

    def _unfile(self, pool: Pool) -> None:
        bucket = pool.bucket
        if bucket is None:
            return
        pool.bucket = None
        del bucket.pools[pool.name]
        profile = bucket.profile
        profile.size -= 1
        if not bucket.pools:
            profile.drop(bucket)
            self.grown.pop(bucket, None)
        if not profile.size:
            del self.sites[profile.backend].profiles[profile.key]
            self.version += 1

    def _refile(self, pool: Pool, *, grown: bool) -> None:
        """Its free amounts changed."""
        old = pool.bucket
        if old is None:
            if pool.kept and grown:
                self.grown_kept[pool] = None
            return
        profile = old.profile
        del old.pools[pool.name]
        bucket = profile.bucket_for(pool.free)
        bucket.add(pool)
        if grown:
            self.grown[bucket] = None
        if not old.pools:
            profile.drop(old)
            self.grown.pop(old, None)


def _differs(one: PoolRoom, other: PoolRoom) -> bool:
    return (
        one.total != other.total
        or one.accepting != other.accepting
        or one.gpu_ids != other.gpu_ids
        or one.labels != other.labels
        or one.secrets != other.secrets
        or one.embedded != other.embedded
    )
