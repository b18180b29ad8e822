"""Where requests of a deployment go: pure, from what is wanted and what is seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from hatoba_scheduler.domain.deployments import (
    ALL,
    Deployment,
    ReplicaState,
    RouteShare,
    Seen,
    SeenSet,
    Served,
)


def served(
    deployment: Deployment, seen: SeenSet | None, known: Sequence[Served], *, settled: bool
) -> list[Served]:
    """Replicas that requests may go to, by revision and name.

    `known` are those of the table that routers had last. Of these, one that its backend has not
    heard of since the server started (`seen` None, PENDING, or not `settled` and not named) is
    still served: a server that restarts takes nothing out of the table that may well be there.
    Replicas that are to leave go out, as long as the others suffice.
    """
    if deployment.deleting:
        return []
    if seen is None:
        return sorted(known)
    named = {one.name: one for one in seen.replicas}
    found = [
        Served(one.revision, one.name, one.address, one.server_name)
        for one in named.values()
        if _good(one)
    ]
    found += _unheard(named, known, found, settled=settled)
    staying = [one for one in found if one.name not in seen.leaving]
    going = sorted((one for one in found if one.name in seen.leaving), key=_newest_first)
    wanted = min(deployment.replicas, sum(one.replicas for one in deployment.wanted))
    short = wanted - deployment.settings.strategy.max_unavailable - len(staying)
    return sorted([*staying, *going[: max(short, 0)]])


def _good(one: Seen) -> bool:
    return one.state is ReplicaState.READY and bool(one.address)


def _unheard(
    named: Mapping[str, Seen],
    known: Iterable[Served],
    found: Iterable[Served],
    *,
    settled: bool,
) -> list[Served]:
    heard = {one.name for one in found}
    kept = []
    for one in known:
        replica = named.get(one.name)
        unheard = replica.state is ReplicaState.PENDING if replica is not None else not settled
        if unheard and one.name not in heard:
            kept.append(one)
    return kept


def _newest_first(one: Served) -> tuple[int, str]:
    return -one.revision, one.name


def routes(
    deployment: Deployment, replicas: Iterable[Served], given_up: frozenset[int] = frozenset()
) -> tuple[RouteShare, ...]:
    """Shares over revisions that have replicas; they add up to 100, or there are none.

    Replicas of revisions that are not wanted any more share with the others by number, while they
    are there; those of revisions that were `given_up` get nothing as long as there are others.
    """
    by_revision: dict[int, list[Served]] = defaultdict(list)
    for one in sorted(replicas):
        by_revision[one.revision].append(one)
    good = {number: have for number, have in by_revision.items() if number not in given_up}
    shares = _weights(deployment, good or by_revision)
    weights = _whole(shares)
    return tuple(
        RouteShare(number, weights.get(number, 0), tuple(have))
        for number, have in sorted(by_revision.items())
    )


def _weights(deployment: Deployment, have: Mapping[int, Sequence[Served]]) -> dict[int, float]:
    """Unrounded shares of revisions that have replicas."""
    wanted = {one.revision for one in deployment.wanted}
    weighted = {
        one.revision: one.weight for one in deployment.wanted if one.weight and one.revision in have
    }
    lingering = {number: len(found) for number, found in have.items() if number not in wanted}
    if not weighted:
        return {number: float(len(found)) for number, found in have.items()}
    ready = sum(len(have[number]) for number in weighted)
    total = sum(weighted.values())
    # A revision's share of what the wanted ones have together, in replicas.
    shares = {number: ready * weight / total for number, weight in weighted.items()}
    return shares | {number: float(count) for number, count in lingering.items()}


def _whole(shares: Mapping[int, float]) -> dict[int, int]:
    """Whole percent that add up to 100; what rounding leaves goes to the largest rests."""
    total = sum(shares.values())
    if not total:
        return {}
    exact = {number: share * ALL / total for number, share in shares.items()}
    whole = {number: int(share) for number, share in exact.items()}
    rest = ALL - sum(whole.values())
    for number in sorted(exact, key=lambda n: (whole[n] - exact[n], n))[:rest]:
        whole[number] += 1
    return whole
