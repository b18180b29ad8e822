"""Room: what pools have, what live attempts hold of it, and where a task fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from hatoba_scheduler.domain.causes import human_bytes
from hatoba_scheduler.domain.records import Resources


class Needs(NamedTuple):
    """What tasks of one shape need of a place; equal needs make one class."""

    backend: str
    resources: Resources
    embedded_only: bool = False
    secrets: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where a task goes: a pool's name and the GPUs that are its own there."""

    pool: str
    gpus: tuple[str, ...]


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

    def fits(self, needs: Needs) -> bool:
        """Whether a task of these needs could start here now."""
        return self.suits(needs) and needs.resources.within(self.free())

    def suits(self, needs: Needs) -> bool:
        """Whether it could start here if nothing else did."""
        return (
            self.accepting
            and (self.embedded or not needs.embedded_only)
            and self.secrets.issuperset(needs.secrets)
        )

    def free_gpus(self) -> tuple[str, ...]:
        """Ids that nobody holds, in the pool's order."""
        taken = {gpu for _, gpus in self.held.values() for gpu in gpus}
        return tuple(gpu for gpu in self.gpu_ids if gpu not in taken)

    def hold(self, name: str, amount: Resources, gpus: tuple[str, ...]) -> None:
        """Reserve for an attempt; twice is once."""
        if name in self.held:
            return
        self.held[name] = (amount, gpus)
        self.used = self.used.plus(amount)

    def let_go(self, name: str) -> bool:
        """Give back what an attempt held; False when it held nothing here."""
        found = self.held.pop(name, None)
        if found is None:
            return False
        self.used = self.used.minus(found[0]) if self.held else Resources()
        return True


class Capacity:
    """All pools of all backends. Holdings outlive a pool's absence from a snapshot."""

    def __init__(self) -> None:
        self._pools: dict[str, dict[str, PoolRoom]] = {}

    def describe(self, backend: str, pools: Iterable[PoolRoom]) -> None:
        """Take over what a backend tells of its pools; what is held stays held."""
        known = self._pools.setdefault(backend, {})
        told = {pool.name: pool for pool in pools}
        for name, pool in known.items():
            if name in told:
                told[name].held, told[name].used = pool.held, pool.used
            elif pool.held:
                pool.accepting = False
                told[name] = pool
        self._pools[backend] = told

    def pools(self, backend: str) -> list[PoolRoom]:
        """A backend's pools by name."""
        return [pool for _, pool in sorted(self._pools.get(backend, {}).items())]

    def hold(self, backend: str, pool: str, name: str, held: tuple[Resources, Place]) -> None:
        """Reserve for an attempt, also in a pool that has not been told of yet."""
        pools = self._pools.setdefault(backend, {})
        if pool not in pools:
            pools[pool] = PoolRoom(pool, Resources(), accepting=False)
        pools[pool].hold(name, held[0], held[1].gpus)

    def let_go(self, backend: str, pool: str, name: str) -> bool:
        """Give back what an attempt held."""
        room = self._pools.get(backend, {}).get(pool)
        return room is not None and room.let_go(name)

    def place(self, needs: Needs) -> Place | None:
        """Where a task of these needs fits now: the pool with the most free cores, then slots."""
        best: PoolRoom | None = None
        for pool in self._pools.get(needs.backend, {}).values():
            if pool.fits(needs) and (best is None or _roomier(pool, best)):
                best = pool
        if best is None:
            return None
        return Place(best.name, best.free_gpus()[: needs.resources.gpus])

    def why_not(self, needs: Needs) -> str:
        """In words: what a task needs, and what is free where it could go."""
        pools = self.pools(needs.backend)
        want = describe(needs.resources)
        if not any(pool.accepting for pool in pools):
            return f"Needs {want}; no host of backend {needs.backend!r} takes work now."
        suited = [pool for pool in pools if pool.suits(needs)]
        if not suited:
            return f"Needs {want} and {_special(needs)}; no connected host has that."
        able = [pool for pool in suited if needs.resources.within(pool.total)]
        if not able:
            largest = max(suited, key=lambda pool: pool.total)
            return (
                f"Needs {want}; that is more than any host has "
                f"(the largest, {largest.name}, has {describe(largest.total)})."
            )
        roomiest = max(able, key=lambda pool: pool.free())
        free = describe_free(roomiest, needs.resources)
        return f"Needs {want}; free now on {roomiest.name}: {free}."


def _roomier(one: PoolRoom, other: PoolRoom) -> bool:
    a, b = one.free(), other.free()
    return (a.cpus, a.slots, other.name) > (b.cpus, b.slots, one.name)


def _special(needs: Needs) -> str:
    parts = []
    if needs.embedded_only:
        parts.append("the submitter's own interpreter")
    if needs.secrets:
        parts.append("the secrets " + ", ".join(needs.secrets))
    return " and ".join(parts) or "an accepting host"


def describe(amount: Resources) -> str:
    """`2 cpus, 4 GiB, 1 gpu`; `1 slot` for a task that states nothing."""
    parts = []
    if amount.cpus:
        parts.append(f"{amount.cpus:g} cpu{'' if amount.cpus == 1 else 's'}")
    if amount.memory:
        parts.append(human_bytes(amount.memory))
    if amount.gpus:
        parts.append(f"{amount.gpus} gpu{'' if amount.gpus == 1 else 's'}")
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
    if wanted.slots and not parts:
        parts.append(f"{free.slots} of {total.slots} slots")
    return ", ".join(parts)
