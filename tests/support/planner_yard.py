"""A planner with a few pools and a clock of its own, as its tests drive it."""

from __future__ import annotations

from collections.abc import Iterable

from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.model import (
    Assignment,
    Entry,
    Explained,
    Needs,
    Place,
    PlannerRules,
    Preemption,
    QueueKey,
    QueueSettings,
    Running,
)
from hatoba_scheduler.domain.planning.planner import Planner
from hatoba_scheduler.domain.records import ANYWHERE, Placement, Resources

GIB = 1 << 30
SECOND = 1_000_000
START = 1_700_000_000 * SECOND
ALL = 1_000_000
MAIN: QueueKey = ("default", "default")
NIGHT: QueueKey = ("default", "night")
PROMPT = PlannerRules(reserve_after=0.0)
"""Reserves at once."""


def uid(number: int, at: int = START) -> str:
    """A UUIDv7 of that time; a higher number is younger."""
    digits = f"{at // 1000 + number:012x}"
    return f"{digits[:8]}-{digits[8:]}-7000-8000-{number:012x}"


def cores(
    cpus: float,
    *,
    timeout: float = 0.0,
    members: int = 1,
    placement: Placement = ANYWHERE,
    backends: tuple[str, ...] = ("hosts",),
) -> Needs:
    """Needs of so many cores."""
    resources = Resources(cpus=cpus)
    return Needs(backends, resources, members=members, placement=placement, timeout=timeout)


def pool(name: str, cpus: float = 4.0, **labels: str) -> PoolRoom:
    """A pool of so many cores."""
    return PoolRoom(name, Resources(cpus=cpus), labels=tuple(sorted(labels.items())))


class Yard:
    """A planner, and what was put into it and came of it."""

    def __init__(self, *pools: PoolRoom, rules: PlannerRules | None = None) -> None:
        self.planner = Planner(rules)
        self.now = START
        self.waiting: dict[str, Entry] = {}
        self.running: dict[str, Running] = {}
        self.labels: dict[str, tuple[tuple[str, str], ...]] = {}
        self.preemptible: dict[str, bool] = {}
        self._next = 0
        if pools:
            self.planner.describe("hosts", pools)

    def queue(self, key: QueueKey, **settings: object) -> None:
        """Make or change a queue."""
        self.planner.set_queue(QueueSettings(key, **settings))  # type: ignore[arg-type]

    def put(
        self,
        needs: Needs,
        *,
        queue: QueueKey = MAIN,
        priority: int = 0,
        name: str = "",
        labels: tuple[tuple[str, str], ...] = (),
        preemptible: bool = True,
    ) -> str:
        """A job waits; its uid."""
        self._next += 1
        name = name or uid(self._next)
        self.labels[name], self.preemptible[name] = labels, preemptible
        self._wait(Entry(name, queue, needs, priority, list(range(needs.members))))
        return name

    def _wait(self, entry: Entry) -> None:
        self.waiting[entry.uid] = entry
        if entry.needs.members == 1 and not entry.first:
            self.planner.put_plain(entry.uid, entry.queue, entry.needs, entry.priority)
        else:
            self.planner.put(entry)

    def plan(self, work: int = ALL) -> list[Assignment]:
        """Plan once, confirm all; what was placed."""
        return self.round(work)[0]

    def round(self, work: int = ALL) -> tuple[list[Assignment], tuple[Preemption, ...], bool]:
        """The same with what is to give way, and whether there is more to do."""
        found = self.planner.plan(self.now, work)
        for assignment in found.assignments:
            self._start(assignment)
        return list(found.assignments), found.preemptions, found.more

    def _start(self, assignment: Assignment) -> None:
        entry = self.waiting.pop(assignment.uid)
        runnings = [
            self._running(entry, task, place)
            for task, place in zip(assignment.tasks, assignment.places, strict=True)
        ]
        self.planner.confirm(assignment, runnings)
        self.running.update((running.name, running) for running in runnings)

    def _running(self, entry: Entry, task: int, place: Place) -> Running:
        return Running(
            name=f"{entry.uid}:{task}",
            uid=entry.uid,
            index=task,
            queue=entry.queue,
            place=place,
            amount=entry.needs.resources,
            priority=entry.priority,
            labels=self.labels[entry.uid],
            gang=entry.uid if entry.needs.members > 1 else "",
            start=self.now,
            timeout=entry.needs.timeout,
            preemptible=self.preemptible[entry.uid],
        )

    def end(self, *uids: str) -> None:
        """All of these jobs hold nothing any more."""
        for name, running in list(self.running.items()):
            if running.uid in uids:
                del self.running[name]
                self.planner.ended(name)

    def give_way(self, preemptions: Iterable[Preemption], needs: dict[str, Needs]) -> None:
        """Victims are gone and wait again, in front of their class."""
        for name in [name for one in preemptions for name in one.victims]:
            running = self.running.pop(name)
            self.planner.ended(name)
            if not any(other.uid == running.uid for other in self.running.values()):
                wants = needs[running.uid]
                ready = list(range(wants.members))
                entry = Entry(running.uid, running.queue, wants, running.priority, ready)
                entry.first = True
                self._wait(entry)

    def passes(self, seconds: float) -> None:
        """Time goes on."""
        self.now += round(seconds * SECOND)

    def explain(self, name: str) -> Explained:
        """Why a job waits."""
        entry = self.waiting[name]
        return self.planner.explain(name, entry.queue, entry.needs, entry.priority, self.now)

    def ask(
        self, needs: Needs, *, queue: QueueKey = MAIN, priority: int = 0, name: str = ""
    ) -> Explained:
        """What would become of a job."""
        entry = Entry(name, queue, needs, priority, list(range(needs.members)))
        return self.planner.explain_new(entry, self.now)


def placed(assignments: Iterable[Assignment]) -> list[str]:
    """The uids of what was placed, in that order."""
    return [one.uid for one in assignments]


def where(assignments: Iterable[Assignment]) -> list[str]:
    """The pools of all that was placed, in that order."""
    return [place.pool for one in assignments for place in one.places]
