"""Places that were looked at, and in words why each would do or not, with the figures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from hatoba_scheduler.domain.capacity import PoolRoom, describe, describe_free
from hatoba_scheduler.domain.planning.amounts import count_in, resources, within
from hatoba_scheduler.domain.planning.kinds import Shape, holds
from hatoba_scheduler.domain.planning.model import Candidate, Place
from hatoba_scheduler.domain.planning.reservations import Reservations, free_part
from hatoba_scheduler.domain.planning.rooms import ENGINE, HOST, Pool, Rooms, Site
from hatoba_scheduler.domain.records import LabelRequirement, Micros
from hatoba_scheduler.domain.states import Operator, Spot

SHOWN = 20
LOOKED = 64


def never_fits(rooms: Rooms, shape: Shape) -> str:
    """Why no known pool could ever hold it, even empty; empty: some could, or none is known."""
    sites = shape.kind.sites(rooms)
    if any(_could_ever(site, shape) for site in sites):
        return ""
    known = _known(sites)
    if not known:
        return ""
    want = describe(shape.needs.resources)
    suited = [pool for pool in known if _suited(pool, shape)]
    if not suited:
        lacking = " and ".join(map(required, unmet(known, shape))) or "that"
        return f"Needs {want} and {special(shape)}; no known host has {lacking}."
    if shape.members > 1 and any(within(shape.amount, pool.total) for pool in suited):
        most = max(_members_in(site, shape) for site in sites)
        return f"Needs {shape.members} times {want}; all hosts of one backend hold {most} of that."
    largest = max(suited, key=lambda pool: (pool.total, pool.name))
    return (
        f"Needs {want}; that is more than any host has "
        f"(the largest, {largest.name}, has {describe(largest.room.total)})."
    )


def never_remedy(rooms: Rooms, shape: Shape) -> str:
    """What to do about what `never_fits`."""
    known = _known(shape.kind.sites(rooms))
    if any(_suited(pool, shape) for pool in known):
        return "Ask for less, or add a host that has as much."
    lacking = unmet(known, shape)
    if not lacking:
        return "Ask for something else of a host, or add one that has it."
    if any(one.key == HOST for one in lacking):
        return "Correct `placement`; `hatoba hosts list` names the hosts there are."
    if any(one.key == ENGINE for one in lacking):
        return "Have a container engine on a host, or start its worker with `--engine SOCKET`."
    labels = [f"--label {one.key}={one.values[0] if one.values else 'VALUE'}" for one in lacking]
    if any(one.operator not in (Operator.IN, Operator.EXISTS) for one in lacking):
        return "Correct `placement`, or add a host without such a label."
    return f"Correct `placement`, or start the worker of a host with `{' '.join(labels)}`."


def unmet(known: Iterable[Pool], shape: Shape) -> list[LabelRequirement]:
    """What it requires of labels that not one of these pools has."""
    return [
        one
        for one in shape.needs.placement.require
        if not any(holds(one, pool.label(one.key)) for pool in known)
    ]


def _known(sites: Iterable[Site]) -> list[Pool]:
    return [pool for site in sites for pool in site.pools.values() if pool.room.accepting]


def _suited(pool: Pool, shape: Shape) -> bool:
    return shape.kind.suits(pool) and shape.kind.names(pool)


def _could_ever(site: Site, shape: Shape) -> bool:
    able = (pool for pool in site.pools.values() if _could_hold(pool, shape))
    if shape.members == 1 or site.settings.elastic:
        return next(able, None) is not None
    return _members_in(site, shape) >= shape.members


def _members_in(site: Site, shape: Shape) -> int:
    most = 1 if shape.needs.owner else shape.members
    found = 0
    for pool in site.pools.values():
        if _could_hold(pool, shape):
            found += count_in(shape.amount, pool.total, most)
            if found >= shape.members:
                break
    return found


def _could_hold(pool: Pool, shape: Shape) -> bool:
    return within(shape.amount, pool.total) and _suited(pool, shape)


def special(shape: Shape) -> str:
    """What it asks of a host beside room."""
    needs = shape.needs
    parts = ["the submitter's own interpreter"] if needs.embedded_only else []
    if needs.secrets:
        parts.append("the secrets " + ", ".join(needs.secrets))
    if needs.spot is Spot.ONLY:
        parts.append("spot capacity")
    if needs.spot is Spot.NEVER:
        parts.append("no spot capacity")
    parts += [required(one) for one in needs.placement.require]
    return " and ".join(parts) or "an accepting host"


def required(one: LabelRequirement) -> str:
    """What a label must be, in words."""
    if one.key == ENGINE:
        return "a container engine"
    match one.operator:
        case Operator.IN:
            return f"the label {one.key} = {' or '.join(one.values)}"
        case Operator.NOT_IN:
            return f"the label {one.key} not {' or '.join(one.values)}"
        case Operator.EXISTS:
            return f"the label {one.key}"
        case _:
            return f"no label {one.key}"


def free_words(pool: Pool, shape: Shape) -> str:
    """Of what a member needs, how much is free of how much."""
    room = PoolRoom(pool.name, pool.room.total, used=resources(pool.used))
    return describe_free(room, shape.needs.resources)


def nearest(reservations: Reservations, shape: Shape) -> Pool | None:
    """The suited pool that lacks least, of the roomiest of each profile and those kept."""
    found = [
        group.buckets[group.keys[-1]].first()
        for tier in shape.kind.tiers(reservations.rooms)
        for profile in tier.profiles
        for group in profile.groups.values()
    ]
    found += [
        pool
        for pool in reservations.pools()
        if pool.backend in shape.needs.backends and shape.kind.suits(pool)
    ]
    able = [pool for pool in found if within(shape.amount, pool.total)] or found
    order = sorted(able, key=lambda pool: pool.name)
    return max(order, key=lambda pool: free_part(shape, pool), default=None)


def candidates(
    reservations: Reservations, shape: Shape, places: tuple[Place, ...], now: Micros
) -> tuple[Candidate, ...]:
    """Places that were looked at, the nearest first."""
    chosen = {place[:2] for place in places}
    looked = {
        (pool.backend, pool.name): pool
        for site in shape.kind.sites(reservations.rooms)
        for pool in _looked(reservations, site, shape, chosen)
    }
    told = [
        (_why_not(reservations, pool, shape, now) if key not in chosen else (0, ""), pool)
        for key, pool in looked.items()
    ]
    told.sort(key=lambda one: (one[0][0], -free_part(shape, one[1]), one[1].backend, one[1].name))
    return tuple(_candidate(reservations, pool, why, shape) for why, pool in told[:SHOWN])


def _looked(
    reservations: Reservations, site: Site, shape: Shape, chosen: set[tuple[str, str]]
) -> Iterator[Pool]:
    yield from (pool for pool in site.pools.values() if (pool.backend, pool.name) in chosen)
    yield from reservations.candidates(site, shape)
    yield from (pool for pool in reservations.pools() if pool.backend == site.settings.name)
    yield from itertools.islice(site.pools.values(), LOOKED)


def _candidate(
    reservations: Reservations, pool: Pool, why: tuple[int, str], shape: Shape
) -> Candidate:
    cost = reservations.rooms.site(pool.backend).settings.cost_per_hour
    message = why[1] or f"free: {free_words(pool, shape)}"
    return Candidate(pool.backend, pool.name, not why[0], message, cost)


def _why_not(reservations: Reservations, pool: Pool, shape: Shape, now: Micros) -> tuple[int, str]:
    """(how far it is from taking a member, why); 0: it would now."""
    kind, site = shape.kind, reservations.rooms.site(pool.backend)
    if not _suited(pool, shape):
        return 7, _unsuited(pool, shape)
    if not within(shape.amount, pool.total):
        return 6, f"has {describe(pool.room.total)} in all"
    if not pool.room.accepting:
        return 5, "takes no work: cordoned or not connected"
    if not site.open:
        return 4, site.settings.reason or "its backend takes no work now"
    if not within(shape.amount, pool.free) and not site.settings.elastic:
        return 1, f"free: {free_words(pool, shape)}"
    if not kind.admits(pool) or pool.name in shape.needs.avoid:
        return 3, "kept away from it by what runs there or what failed there"
    if reservations.on(pool) is not None and not reservations.unharmed(pool, shape, now):
        return 2, "kept for a job that goes before"
    return 0, ""


def _unsuited(pool: Pool, shape: Shape) -> str:
    needs = shape.needs
    if needs.embedded_only and not pool.room.embedded:
        return "does not have the submitter's own interpreter"
    if missing := sorted(set(needs.secrets) - pool.room.secrets):
        return f"lacks the secret {', '.join(missing)}"
    for one in needs.placement.require:
        value = pool.label(one.key)
        if not holds(one, value):
            if one.key == ENGINE:
                return "has no container engine"
            has = f"its {one.key} is {value}" if value is not None else f"it has no {one.key}"
            return has if one.key != HOST else "it is another host"
    return "is spot capacity" if pool.spot else "is no spot capacity"
