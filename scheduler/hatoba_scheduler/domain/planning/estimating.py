"""When something that waits would start, as far as time limits tell; else why nobody knows."""

from __future__ import annotations

import heapq

from hatoba_scheduler.domain.planning.amounts import Vector, minus, plus, within
from hatoba_scheduler.domain.planning.kinds import Shape
from hatoba_scheduler.domain.planning.reservations import Reservations
from hatoba_scheduler.domain.planning.rooms import Pool
from hatoba_scheduler.domain.records import Micros

AHEAD = 1000
"""So many jobs before it are played through at most."""

_NO_LIMIT = "unknown: something that runs where it could go has no time limit"
Estimate = tuple[Micros | None, str]


def estimate(reservations: Reservations, shape: Shape, ahead: int, now: Micros) -> Estimate:
    """When a job starts before which so many of its own shape go, and from what that follows."""
    if ahead > AHEAD:
        return None, f"unknown: {ahead} jobs go before it, too many to tell"
    if ahead and not shape.needs.timeout:
        return None, "unknown: jobs that go before it have no time limit"
    if shape.members > 1 or not ahead:
        return _alone(reservations, shape, now)
    return _after(reservations, shape, ahead, now)


def _alone(reservations: Reservations, shape: Shape, now: Micros) -> Estimate:
    found = reservations.earliest(shape, now)
    if found is None:
        return None, _NO_LIMIT
    names = ", ".join(sorted(pool.name for pool in found[1]))
    return found[0], f"the time limits of what runs on {names}"


def _after(reservations: Reservations, shape: Shape, ahead: int, now: Micros) -> Estimate:
    """Play through how those before it start and end, each as late as it may."""
    pools = [
        pool
        for site in shape.kind.sites(reservations.rooms)
        if site.open
        for pool in reservations.candidates(site, shape)
    ]
    free = {pool: pool.free for pool in pools}
    ends = [
        (end, n, amount)
        for n, pool in enumerate(pools)
        for end, amount in reservations.runs.ends(pool, now)
    ]
    heapq.heapify(ends)
    limit, at = round(shape.needs.timeout * 1e6), now
    for turn in range(ahead + 1):
        pool = _fitting(free, shape)
        while pool is None:
            if not ends:
                return None, _NO_LIMIT
            at, n, amount = heapq.heappop(ends)
            free[pools[n]] = plus(free[pools[n]], amount)
            pool = pools[n] if within(shape.amount, free[pools[n]]) else None
        if turn < ahead:
            free[pool] = minus(free[pool], shape.amount)
            heapq.heappush(ends, (at + limit, pools.index(pool), shape.amount))
    return at, f"the time limits of what runs and of {ahead} jobs before it"


def _fitting(free: dict[Pool, Vector], shape: Shape) -> Pool | None:
    return next((pool for pool, room in free.items() if within(shape.amount, room)), None)
