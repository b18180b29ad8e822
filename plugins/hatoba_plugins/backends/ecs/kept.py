"""What is remembered of a deployment between two looks. No I/O."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hatoba.v1 import common_pb2
from hatoba_plugins.backends.ecs.calls import Item
from hatoba_plugins.backends.ecs.names import ServiceName, service_name
from hatoba_plugins.backends.ecs.services import ServiceState, Verdict, verdict
from hatoba_plugins.backends.ecs.slots import Slots
from hatoba_plugins.backends.ecs.watchdogs import Progress
from hatoba_plugins.rolling import Plan, plan
from hatoba_plugins.values import (
    ReplicaPhase,
    ReplicaSet,
    ReplicaView,
    RevisionTarget,
    Target,
)


@dataclass(slots=True)
class Revision:
    """One revision: its service as it was seen last, and how many replicas it shall have."""

    service_of: ServiceName
    cluster: str
    gpus: int
    slots: Slots
    want: int = 0
    service: Item | None = None
    definition: str = ""
    """What it is to run; empty: nobody wants it any more."""
    refused: set[str] = field(default_factory=set)
    """Definitions that ECS rolled back or gave up."""
    forced: int = 0
    """The generation for which its roll-out was begun anew."""
    spared: frozenset[str] = frozenset()
    """Tasks that ECS was told not to end, while others retire."""
    progress: Progress = field(default_factory=Progress)

    @property
    def name(self) -> str:
        """Its service's name."""
        return service_name(*self.service_of)

    @property
    def status(self) -> str:
        """`ACTIVE`, `DRAINING`, `INACTIVE`; empty: there is none."""
        return str(self.service.get("status", "")) if self.service else ""

    @property
    def running(self) -> str:
        """The definition that new tasks are made from."""
        return str(self.service.get("taskDefinition", "")) if self.service else self.definition

    def verdict(self) -> Verdict:
        """How its service stands to what is wanted."""
        active = self.service if self.status == "ACTIVE" else None
        return verdict(active, self.definition or self.running)

    def planned(self) -> list[ReplicaView]:
        """Replicas that count, also those that have no task yet."""
        number = self.service_of.revision
        views = [slot.view(number) for slot in self.slots.current(self.running)]
        missing = range(len(views), self.want)
        return views + [
            ReplicaView(f"{self.name}/{at}", number, ReplicaPhase.PENDING) for at in missing
        ]

    def drop(self, name: str) -> None:
        """One replica fewer: this one, if it has a task."""
        slot = self.slots.slots.get(name)
        if slot is not None and slot.retiring:
            return
        self.want = max(0, self.want - 1)
        if slot is not None:
            slot.retiring = True
            if slot.task is None:
                del self.slots.slots[name]

    @property
    def empty(self) -> bool:
        """Whether nothing of it is left or wanted."""
        return not self.want and not self.slots.slots


@dataclass(slots=True, eq=False)
class Deployed:
    """A deployment: the newest target, and its revisions."""

    target: Target
    definitions: dict[int, str] = field(default_factory=dict)
    revisions: dict[int, Revision] = field(default_factory=dict)
    pace: Target | None = None
    """The target with the bounds to exchange by; None: its own."""
    problem: common_pb2.Cause | None = None
    native: bool = False
    """A load balancer routes to it."""
    routed: dict[int, int] = field(default_factory=dict)
    """Weights that the load balancer has."""
    told: ReplicaSet | None = None
    removed: bool = False
    touched: bool = False
    """Something was changed since the target was taken in."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def take(
        self, target: Target, definitions: Mapping[int, str], found: Iterable[Revision]
    ) -> None:
        """A new target; `found` are revisions that have services of before."""
        self.target, self.definitions, self.touched = target, dict(definitions), False
        for revision in found:
            self.revisions.setdefault(revision.service_of.revision, revision)
        for number, revision in self.revisions.items():
            revision.definition = self.definitions.get(number, "")

    def plan(self, rng: random.Random) -> Plan:
        """The next step."""
        views = [view for one in self.revisions.values() for view in one.planned()]
        return plan(self.pace or self.target, views, rng)

    def seen(self, rng: random.Random) -> ReplicaSet:
        """As the core is told of it."""
        views = [view for one in self.revisions.values() for view in one.slots.views()]
        leaving: frozenset[str] = frozenset() if self.removed else self.plan(rng).leaving
        return ReplicaSet(
            self.target.uid,
            self.target.generation,
            tuple(sorted(views, key=lambda one: one.name)),
            leaving,
            routed_by="native" if self.native else "us",
            problem=None if self.removed else self.problem,
        )

    def ready(self) -> dict[int, int]:
        """How many replicas are ready, by revision."""
        return {
            number: sum(
                one.phase is ReplicaPhase.READY and not one.retiring
                for one in revision.slots.slots.values()
            )
            for number, revision in self.revisions.items()
        }

    @property
    def settled(self) -> bool:
        """Whether it is as it is wanted, so that it needs to be looked at less."""
        wanted = {one.revision: one for one in self.target.revisions}
        return all(
            number in wanted and _settled(one, wanted[number])
            for number, one in self.revisions.items()
        )


def _settled(revision: Revision, wanted: RevisionTarget) -> bool:
    slots = revision.slots.slots.values()
    good = all(one.phase is ReplicaPhase.READY and not one.retiring for one in slots)
    steady = revision.verdict().state in (ServiceState.READY, ServiceState.ABSENT)
    return good and steady and len(slots) == wanted.replicas == revision.want
