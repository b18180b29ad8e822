"""Room: what pools have and what is held of it, and amounts in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce

from hatoba_scheduler.domain.causes import human_bytes
from hatoba_scheduler.domain.records import Resources

ENDLESS = Resources(cpus=2.0**40, memory=2**60)
"""A pool of so much takes whatever comes: what is free of it is not worth telling."""


@dataclass(slots=True)
class PoolRoom:
    """One pool of a backend and what is free of it now."""

    name: str
    total: Resources
    gpu_ids: tuple[str, ...] = ()
    accepting: bool = True
    embedded: bool = False
    secrets: frozenset[str] = frozenset()
    labels: tuple[tuple[str, str], ...] = ()
    """As it was given; beside them every pool has `hatoba/host`, its name."""
    held: dict[str, tuple[Resources, tuple[str, ...]]] = field(default_factory=dict)
    used: Resources = field(default_factory=Resources)

    def free(self) -> Resources:
        """What is left; never below nothing, though a shrunken pool may be overfull."""
        return self.total.minus(self.used)


def describe(amount: Resources) -> str:
    """`2 cpus, 4 GiB, 1 gpu`; `1 slot` for a task that states nothing."""
    parts = []
    if amount.cpus:
        parts.append(f"{amount.cpus:g} cpu{'' if amount.cpus == 1 else 's'}")
    if amount.memory:
        parts.append(human_bytes(amount.memory))
    if amount.gpus:
        parts.append(f"{amount.gpus} gpu{'' if amount.gpus == 1 else 's'}")
    parts += [f"{count} {name}" for name, count in amount.named]
    if amount.slots and not parts:
        parts.append(f"{amount.slots} slot{'' if amount.slots == 1 else 's'}")
    return ", ".join(parts) or "nothing"


def describe_free(pool: PoolRoom, wanted: Resources) -> str:
    """Of what is wanted, how much is free of how much: `1 of 4 cpus, 2 GiB of 8 GiB`."""
    free, total = pool.free(), pool.total
    parts = []
    if wanted.cpus:
        parts.append(f"{free.cpus:g} of {total.cpus:g} cpus")
    if wanted.memory:
        left = human_bytes(free.memory) if free.memory else "0 B"
        parts.append(f"{left} of {human_bytes(total.memory)}")
    if wanted.gpus:
        parts.append(f"{free.gpus} of {total.gpus} gpus")
    there, rest = dict(total.named), dict(free.named)
    parts += [f"{rest.get(name, 0)} of {there.get(name, 0)} {name}" for name, _ in wanted.named]
    if wanted.slots and not parts:
        parts.append(f"{free.slots} of {total.slots} slots")
    return ", ".join(parts)


def room_of(pools: Iterable[PoolRoom]) -> dict[str, str]:
    """By resource, how much is free of all that these pools have: `cpus: 3 of 4 free`."""
    found = list(pools)
    free, total = _sum(pool.free() for pool in found), _sum(pool.total for pool in found)
    room = {}
    if 0 < total.cpus < ENDLESS.cpus:
        room["cpus"] = f"{free.cpus:g} of {total.cpus:g} free"
    if 0 < total.memory < ENDLESS.memory:
        left = human_bytes(free.memory) if free.memory else "0 B"
        room["memory"] = f"{left} of {human_bytes(total.memory)} free"
    if total.gpus:
        room["gpus"] = f"{free.gpus} of {total.gpus} free"
    rest = dict(free.named)
    room |= {name: f"{rest.get(name, 0)} of {count} free" for name, count in total.named}
    if total.slots:
        room["slots"] = f"{free.slots} of {total.slots} free"
    return room


def _sum(amounts: Iterable[Resources]) -> Resources:
    return reduce(Resources.plus, amounts, Resources())
