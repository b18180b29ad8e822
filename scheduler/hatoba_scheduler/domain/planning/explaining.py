"""Why something does not go now, from what the planner itself goes by."""

from __future__ import annotations

from hatoba_scheduler.domain.capacity import describe
from hatoba_scheduler.domain.planning.amounts import count_in, within
from hatoba_scheduler.domain.planning.kinds import Shape
from hatoba_scheduler.domain.planning.rooms import Pool, Rooms, Site


def never_fits(rooms: Rooms, shape: Shape) -> str:
    """Why no known pool could ever hold it, even empty; empty: some could, or none is known."""
    sites = shape.kind.sites(rooms)
    if any(_could_ever(site, shape) for site in sites):
        return ""
    known = [pool for site in sites for pool in site.pools.values() if pool.room.accepting]
    if not known:
        return ""
    want = describe(shape.needs.resources)
    suited = [pool for pool in known if shape.kind.suits(pool)]
    if not suited:
        return f"Needs {want} and {special(shape)}; no known host has that."
    if shape.members > 1 and any(within(shape.amount, pool.total) for pool in suited):
        most = max(_members_in(site, shape) for site in sites)
        return f"Needs {shape.members} times {want}; all hosts together hold {most} of that."
    largest = max(suited, key=lambda pool: (pool.total, pool.name))
    return (
        f"Needs {want}; that is more than any host has "
        f"(the largest, {largest.name}, has {describe(largest.room.total)})."
    )


def _could_ever(site: Site, shape: Shape) -> bool:
    able = (pool for pool in site.pools.values() if _could_hold(pool, shape))
    if shape.members == 1 or site.settings.elastic:
        return any(True for _ in able)
    return _members_in(site, shape) >= shape.members


def _members_in(site: Site, shape: Shape) -> int:
    most = 1 if shape.needs.owner else shape.members
    pools = [pool for pool in site.pools.values() if _could_hold(pool, shape)]
    return sum(count_in(shape.amount, pool.total, most) for pool in pools)


def _could_hold(pool: Pool, shape: Shape) -> bool:
    return within(shape.amount, pool.total) and shape.kind.suits(pool) and shape.kind.names(pool)


def special(shape: Shape) -> str:
    """What it asks of a host beside room."""
    needs = shape.needs
    parts = ["the submitter's own interpreter"] if needs.embedded_only else []
    if needs.secrets:
        parts.append("the secrets " + ", ".join(needs.secrets))
    parts += [f"the label {one.key}" for one in needs.placement.require]
    return " and ".join(parts) or "an accepting host"
