"""Room: what pools have and what is held of it, and amounts in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from hatoba_scheduler.domain.causes import human_bytes
from hatoba_scheduler.domain.records import Resources


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
