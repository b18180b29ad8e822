"""The planner's words: what waits, what runs, what is decided, and why something is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from hatoba_scheduler.domain.records import ANYWHERE, Micros, Placement, Resources
from hatoba_scheduler.domain.states import Spot, WaitReason

QueueKey = tuple[str, str]
"""(project, queue name)."""


@dataclass(frozen=True, slots=True)
class PlannerRules:
    """What the planner goes by; times in seconds."""

    ageing: float = 600.0
    """Waiting so long is worth one step of priority, so that nothing starves."""
    reservations: int = 8
    """Heads of queues for which room is kept at the same time."""
    reserve_after: float = 1.0
    """For how long a head finds no room before some is reserved for it."""
    patience: float = 1800.0
    """For how long a head has waited before a place is drained for it, not knowing how long."""
    hold: float = 300.0
    """For how long a place is kept for whom it was made by preemption."""
    gap: int = 1
    """Steps of priority that one must be above another to take its place."""
    preemptions: int = 8
    """Jobs for which others give way in one round."""


class Needs(NamedTuple):
    """What the tasks of one shape need; equal needs make one class."""

    backends: tuple[str, ...]
    """Where it may go, cheapest first."""
    resources: Resources
    """Of one task, or of one member of a gang; `slots` is 1 where nothing is stated."""
    members: int = 1
    """That start together or not at all."""
    placement: Placement = ANYWHERE
    spot: Spot = Spot.ALLOW
    embedded_only: bool = False
    """Asks for the submitter's own interpreter."""
    secrets: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    """Pools to keep away from while there is another that could take it."""
    timeout: float = 0.0
    """Longest run in seconds; 0: not known, so it is never put before a reservation."""
    owner: str = ""
    """The job's uid where its tasks must keep apart; else empty, so that jobs share a class."""


@dataclass(slots=True)
class Entry:
    """A waiting job of which more is to be known than its place in the line.

    A job of one task that never started needs no entry: its uid in a line is enough.
    """

    uid: str
    queue: QueueKey
    needs: Needs
    priority: int
    ready: list[int] = field(default_factory=list)
    """Started tasks that may go again now; a heap. Of a gang: its members, all or none."""
    fresh: Iterator[int] | None = None
    """Tasks that never started, ascending."""
    room: int = 1 << 30
    """How many more may run at once (`max_parallel`)."""
    first: bool = False
    """Its place was taken by others: it goes before all of its class."""


class Place(NamedTuple):
    """Where one task goes: a backend, a pool of it, and the GPUs that are its own there."""

    backend: str
    pool: str
    gpus: tuple[str, ...] = ()


class Assignment(NamedTuple):
    """A task and its place, or all members of a gang and theirs. They are held until confirmed."""

    uid: str
    tasks: tuple[int, ...]
    places: tuple[Place, ...]
    queue: QueueKey
    needs: Needs


class Preemption(NamedTuple):
    """Attempts that are to give way, whole gangs, and for which job and why in words."""

    victims: tuple[str, ...]
    uid: str
    note: str


@dataclass(frozen=True, slots=True)
class Round:
    """What one slice of planning decided. `more`: there is work left that was not looked at."""

    assignments: tuple[Assignment, ...]
    preemptions: tuple[Preemption, ...]
    more: bool


@dataclass(slots=True)
class Running:
    """An attempt that holds something, from its intent until its release."""

    name: str
    uid: str
    index: int
    queue: QueueKey
    place: Place
    amount: Resources
    priority: int
    labels: tuple[tuple[str, str], ...] = ()
    """Of its job."""
    gang: str = ""
    """The same for all members of one generation; empty: it is alone."""
    start: Micros = 0
    """When the user's code began; 0: it has not."""
    saved: Micros = 0
    """When its newest checkpoint was committed; 0: none. What came after is lost with it."""
    timeout: float = 0.0
    """Longest run in seconds; 0: not known."""
    preemptible: bool = True
    """Its policy lets others take its place once more."""
    leaving: bool = False
    """It is being stopped, or ended and not released yet."""


@dataclass(slots=True)
class QueueSettings:
    """A queue as the planner sees it; a 0 is no limit."""

    key: QueueKey
    parent: QueueKey | None = None
    weight: float = 1.0
    max_running: int = 0
    quota: Resources = Resources()
    guaranteed: Resources = Resources()
    no_borrowing: bool = False
    cordoned: bool = False
    cordon_reason: str = ""


@dataclass(slots=True)
class BackendSettings:
    """A backend as the planner sees it."""

    name: str
    available: bool = True
    """It takes work now: open, not cordoned, breaker not open."""
    reason: str = ""
    """Why not, in words."""
    cost_per_hour: float = 0.0
    elastic: bool = False
    """It takes more than it has room for and lets it wait."""
    slots: int = 1 << 30
    """How many launches it takes now, by its rate budget."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place that was looked at, and why it would do or not, with the figures."""

    backend: str
    pool: str
    fits: bool
    message: str
    cost_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class Explained:
    """Why a job waits, or where it would go now. By the same rules as `plan`."""

    reason: WaitReason
    message: str
    remedy: str = ""
    also: tuple[str, ...] = ()
    position: int = 0
    """Among the waiting jobs of its queue, from 1; 0: it does not wait in line."""
    queue_length: int = 0
    estimate: Micros | None = None
    estimate_basis: str = ""
    places: tuple[Place, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    preempts: tuple[str, ...] = ()
    """Uids of jobs whose place it would take."""


@dataclass(frozen=True, slots=True)
class QueueShare:
    """What a queue may claim and uses, from 0 to 1 of all capacity by its dominant resource."""

    fair: float
    used: float
    decayed: float
    reserved: Resources
    waiting: int
    oldest: str
    """Uid of the job that has waited longest; empty: none waits."""
