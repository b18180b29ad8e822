"""How the replicas of one deployment become what its target says: one step of it, purely.

A backend calls `plan` again whenever a replica changed, was retired or is gone, and carries out
what it says: nothing needs to be remembered between two calls. Replicas that drain are over; they
count neither as ready nor against the surge.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hatoba_plugins.values import ReplicaPhase, ReplicaView, Target

_NAME = re.compile(r"r-([0-9a-f]{32})-([1-9][0-9]{0,9})-[0-9a-f]{8}")
_KEPT_FIRST = (
    ReplicaPhase.READY,
    ReplicaPhase.STARTING,
    ReplicaPhase.PENDING,
    ReplicaPhase.UNHEALTHY,
)
_NEVER_ROUTED = (ReplicaPhase.PENDING, ReplicaPhase.STARTING)


class ReplicaName(NamedTuple):
    """What an external name of a replica tells."""

    uid: str
    revision: int


@dataclass(frozen=True, slots=True)
class Creation:
    """A replica to make."""

    name: str
    revision: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step.

    `leaving`: they would end, and wait for the core to retire them, since a router may send them
    something. `end`: to end at once, for they are not ready and no router sends them anything.
    """

    create: tuple[Creation, ...] = ()
    leaving: frozenset[str] = frozenset()
    end: frozenset[str] = frozenset()


def replica_name(uid: str, revision: int, rng: random.Random) -> str:
    """A new external name: `r-{uid}-{revision}-{8 hex digits}`."""
    return f"r-{uid}-{revision}-{rng.getrandbits(32):08x}"


def parse_name(name: str) -> ReplicaName | None:
    """What a replica's external name tells; None when it is none of ours."""
    found = _NAME.fullmatch(name)
    return ReplicaName(found[1], int(found[2])) if found else None


def plan(target: Target, replicas: Iterable[ReplicaView], rng: random.Random) -> Plan:
    """The next step from these replicas (all the deployment has) towards `target`.

    One that is evicted is not counted as what is wanted: another is made for it, on which it waits.
    Lets a ready one go only while `wanted - max_unavailable` others are ready, and makes one only
    while there are fewer than `wanted + max_surge` in all. Of a revision that has too many those
    that are not ready go first, of these the newest.
    """
    live = [one for one in replicas if one.phase is not ReplicaPhase.DRAINING]
    kept, surplus = _divided(target, live)
    end = frozenset(one.name for one in surplus if one.phase in _NEVER_ROUTED)
    room = target.wanted + target.max_surge - (len(live) - len(end))
    return Plan(_missing(target, kept, room, rng), _leaving(target, live, surplus), end)


def _divided(
    target: Target, live: Sequence[ReplicaView]
) -> tuple[list[ReplicaView], list[ReplicaView]]:
    """Those to keep, and those too many, in the order in which they should go."""
    wanted = {one.revision: one.replicas for one in target.revisions}
    by_revision: defaultdict[int, list[ReplicaView]] = defaultdict(list)
    for one in sorted(live, key=_worth):
        by_revision[one.revision].append(one)
    wanted = {at: min(count, _staying(by_revision[at])) for at, count in wanted.items()}
    kept = [one for at, all_of in by_revision.items() for one in all_of[: wanted.get(at, 0)]]
    surplus = [one for at, all_of in by_revision.items() for one in all_of[wanted.get(at, 0) :]]
    # Revisions that nobody wants any more go first, the oldest before the others.
    surplus.sort(key=lambda one: (one.revision in wanted, one.revision, _backwards(one)))
    return kept, surplus


def _staying(replicas: Iterable[ReplicaView]) -> int:
    return sum(not one.evicted for one in replicas)


def _worth(one: ReplicaView) -> tuple[bool, int, float, str]:
    return one.evicted, _KEPT_FIRST.index(one.phase), one.since, one.name


def _backwards(one: ReplicaView) -> tuple[float, str]:
    return -one.since, one.name


def _leaving(
    target: Target, live: Sequence[ReplicaView], surplus: Sequence[ReplicaView]
) -> frozenset[str]:
    """Surplus ones that a router may know: those that are down, and those ready ones that may."""
    ready = sum(one.phase is ReplicaPhase.READY for one in live)
    may_go = max(0, ready - max(0, target.wanted - target.max_unavailable))
    going = [one.name for one in surplus if one.phase is ReplicaPhase.READY][:may_go]
    down = [one.name for one in surplus if one.phase is ReplicaPhase.UNHEALTHY]
    return frozenset(going + down)


def _missing(
    target: Target, kept: Sequence[ReplicaView], room: int, rng: random.Random
) -> tuple[Creation, ...]:
    revisions = [
        one.revision
        for one in target.revisions
        for _ in range(one.replicas - sum(held.revision == one.revision for held in kept))
    ]
    return tuple(
        Creation(replica_name(target.uid, revision, rng), revision)
        for revision in revisions[: max(0, room)]
    )
