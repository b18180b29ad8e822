"""What runs: by name, by gang, by priority, and by when it is sure to end."""

from __future__ import annotations

from collections.abc import Iterator

from hatoba_scheduler.domain.planning.amounts import Vector, vector
from hatoba_scheduler.domain.planning.model import Running
from hatoba_scheduler.domain.planning.rooms import Hold, Pool
from hatoba_scheduler.domain.records import Micros

Unit = tuple[Running, ...]
"""What gives way together: one attempt, or all members of a gang."""


class Runs:
    """All attempts that hold something."""

    def __init__(self) -> None:
        self._runs: dict[str, Running] = {}
        self._gangs: dict[str, dict[str, Running]] = {}
        self._prey: dict[int, dict[str, Running]] = {}
        """Those that may have to give way, by priority."""
        self._leaving: dict[str, Running] = {}

    def get(self, name: str) -> Running | None:
        """An attempt, if it holds something."""
        return self._runs.get(name)

    def add(self, running: Running) -> None:
        """It holds something from now on."""
        self._runs[running.name] = running
        if running.gang:
            self._gangs.setdefault(running.gang, {})[running.name] = running
        self.file(running)

    def pop(self, name: str) -> Running | None:
        """It holds nothing any more; what was known of it."""
        running = self._runs.pop(name, None)
        if running is None:
            return None
        self.unfile(running)
        if running.gang:
            members = self._gangs[running.gang]
            del members[name]
            if not members:
                del self._gangs[running.gang]
        return running

    def file(self, running: Running) -> None:
        """Its priority is known, and whether it may have to give way."""
        if running.leaving:
            self._leaving[running.name] = running
        elif running.preemptible:
            self._prey.setdefault(running.priority, {})[running.name] = running

    def unfile(self, running: Running) -> None:
        """Its priority, or whether it may have to give way, is about to change."""
        self._leaving.pop(running.name, None)
        prey = self._prey.get(running.priority)
        if prey is not None and prey.pop(running.name, None) is not None and not prey:
            del self._prey[running.priority]

    def lowest(self) -> int | None:
        """The lowest priority of what may have to give way; None: nothing may."""
        return min(self._prey, default=None)

    def prey(self) -> Iterator[Running]:
        """What may have to give way, lowest priority first."""
        for priority in sorted(self._prey):
            yield from self._prey[priority].values()

    def unit(self, running: Running) -> Unit:
        """What gives way together with it; empty when part of it may not."""
        if not running.gang:
            return (running,)
        members = tuple(self._gangs[running.gang].values())
        if all(one.preemptible and not one.leaving for one in members):
            return members
        return ()

    def ends(self, pool: Pool, now: Micros) -> Iterator[tuple[Micros, Vector]]:
        """When what is held of a pool is sure to be free; what nobody knows of is left out."""
        for name, hold in pool.held.items():
            end = self.end(name, now)
            if end is not None:
                yield end, hold.amount

    def all_leaving(self) -> Unit:
        """All that are about to be gone."""
        return tuple(self._leaving.values())

    def leaving(self, pool: Pool) -> Iterator[Vector]:
        """What is about to be free of a pool."""
        for name, hold in pool.held.items():
            running = self._runs.get(name)
            if running is not None and running.leaving:
                yield hold.amount

    def end(self, name: str, now: Micros) -> Micros | None:
        """When an attempt is over by its time limit; None: nobody knows."""
        running = self._runs.get(name)
        if running is None:
            return None
        if running.leaving:
            return now
        if not running.timeout:
            return None
        return max(now, (running.start or now) + round(running.timeout * 1e6))


def lost(unit: Unit, now: Micros) -> float:
    """Seconds of work that are lost with it: those since the newest checkpoints."""
    since = (max(one.start, one.saved) for one in unit if one.start)
    return sum(max(0, now - one) for one in since) / 1e6


def hold_of(running: Running) -> Hold:
    """What an attempt holds of its pool."""
    return Hold(vector(running.amount), running.place.gpus, running.uid, running.labels)
