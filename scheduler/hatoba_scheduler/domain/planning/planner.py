"""Which task goes where, next: pure, incremental, in slices.

Jobs wait in lines of equal queue, needs and priority. What does not fit is put aside, by shape,
until something becomes free that it could use, so what waits costs nothing. Whose turn it is says
the tree of queues; where a task goes, the placer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.amounts import resources, vector
from hatoba_scheduler.domain.planning.explaining import Case, Explaining
from hatoba_scheduler.domain.planning.lines import born, youngest
from hatoba_scheduler.domain.planning.model import (
    Assignment,
    BackendSettings,
    Entry,
    Explained,
    Needs,
    Place,
    PlannerRules,
    QueueKey,
    QueueSettings,
    QueueShare,
    Round,
    Running,
)
from hatoba_scheduler.domain.planning.parts import Parts
from hatoba_scheduler.domain.planning.rounds import Rounds, planned_name
from hatoba_scheduler.domain.planning.runs import hold_of
from hatoba_scheduler.domain.records import Micros, Resources

SLICE = 45
"""Units of work in less than a millisecond, also where memory is cold and a shape is missed."""


class Planner:
    """What waits, what runs, and the next assignments. Owned by one loop."""

    def __init__(self, rules: PlannerRules | None = None) -> None:
        self._parts = Parts(rules or PlannerRules())
        self._rounds = Rounds(self._parts)
        self._explaining = Explaining(self._parts, self._rounds)

    # -- settings and room ------------------------------------------------------------------------

    def set_queue(self, settings: QueueSettings) -> None:
        """A queue was made or changed."""
        self._parts.waiting.let_go(self._parts.tree.configure(settings))

    def drop_queue(self, key: QueueKey) -> None:
        """A queue is gone."""
        self._parts.waiting.let_go(self._parts.tree.drop(key))

    def set_backend(self, settings: BackendSettings) -> None:
        """A backend's settings or its slots are new."""
        self._parts.rooms.set_backend(settings)

    def describe(self, backend: str, pools: Iterable[PoolRoom]) -> None:
        """A backend told of all its pools; what is held of them stays held."""
        self._parts.rooms.describe(backend, pools)

    def pools(self, backend: str) -> list[PoolRoom]:
        """A backend's pools by name, with what is held of them now."""
        pools = self._parts.rooms.site(backend).pools
        return [pool.told() for _, pool in sorted(pools.items())]

    def on_spot(self, backend: str, name: str) -> bool:
        """Whether a backend's pool is known, and is spot capacity."""
        pool = self._parts.rooms.pool(backend, name)
        return pool is not None and pool.spot

    def secrets(self) -> frozenset[str]:
        """Names of all secrets that some pool has."""
        sites = self._parts.rooms.sites.values()
        pools = (pool for site in sites for pool in site.pools.values())
        return frozenset(name for pool in pools for name in pool.room.secrets)

    def total(self) -> Resources:
        """All that known pools have, free or not."""
        return resources(self._parts.rooms.total)

    # -- what waits -------------------------------------------------------------------------------

    def put_plain(self, uid: str, queue: QueueKey, needs: Needs, priority: int) -> None:
        """A job of one task that never started waits; twice is once."""
        self._parts.waiting.put_plain(uid, queue, needs, priority)

    def put_alike(self, uids: Sequence[str], queue: QueueKey, needs: Needs, priority: int) -> None:
        """As `put_plain`, many that are alike, each named once."""
        self._parts.waiting.put_alike(uids, queue, needs, priority)

    def remove_plain(self, uid: str, queue: QueueKey, needs: Needs, priority: int) -> None:
        """It waits no more; nothing when it did not."""
        self._parts.waiting.remove_plain(uid, queue, needs, priority)

    def put(self, entry: Entry) -> None:
        """Add a waiting job, or replace what was known of it."""
        self._parts.waiting.put(entry)

    def remove(self, uid: str) -> None:
        """Forget a job of which there was an entry."""
        self._parts.waiting.remove(uid)

    @property
    def waits(self) -> bool:
        """Whether any job waits in line: then time alone may decide something."""
        return bool(self._parts.waiting)

    # -- what runs --------------------------------------------------------------------------------

    def started(self, running: Running) -> None:
        """An attempt holds something; known already is nothing new."""
        parts = self._parts
        if parts.runs.get(running.name) is not None:
            return
        hold = hold_of(running)
        parts.rooms.hold(running.place.backend, running.place.pool, running.name, hold)
        parts.tree.recharge(parts.tree.node(running.queue), hold.amount)
        parts.runs.add(running)

    def changed(
        self,
        name: str,
        *,
        start: Micros | None = None,
        saved: Micros | None = None,
        leaving: bool | None = None,
        priority: int | None = None,
        queue: QueueKey | None = None,
        preemptible: bool | None = None,
    ) -> None:
        """Something of an attempt that holds something is another; None leaves it."""
        running = self._parts.runs.get(name)
        if running is None:
            return
        self._parts.runs.unfile(running)
        running.start = running.start if start is None else start
        running.saved = running.saved if saved is None else saved
        running.leaving = running.leaving if leaving is None else leaving
        running.priority = running.priority if priority is None else priority
        running.preemptible = running.preemptible if preemptible is None else preemptible
        self._parts.runs.file(running)
        if queue is not None and queue != running.queue:
            self._move(running, queue)

    def _move(self, running: Running, queue: QueueKey) -> None:
        tree, amount = self._parts.tree, vector(running.amount)
        self._parts.waiting.let_go(tree.discharge(tree.node(running.queue), amount))
        tree.recharge(tree.node(queue), amount)
        running.queue = queue

    def ended(self, name: str) -> None:
        """An attempt holds nothing any more."""
        parts = self._parts
        running = parts.runs.pop(name)
        if running is None:
            return
        parts.rooms.let_go(running.place.backend, running.place.pool, name)
        node = parts.tree.node(running.queue)
        parts.waiting.let_go(parts.tree.discharge(node, vector(running.amount)))
        if running.start:
            parts.tree.learn((parts.tree.now - running.start) / 1e6)

    def confirm(self, assignment: Assignment, runnings: Iterable[Running]) -> None:
        """The intents are committed: what was planned is held by the attempts."""
        told = {running.index: running for running in runnings}
        for task, place in zip(assignment.tasks, assignment.places, strict=True):
            running = told.get(task)
            if running is not None and self._same(assignment, task, place, running):
                self._parts.runs.add(running)
                continue
            self._give_back(assignment, task, place)
            if running is not None:
                self.started(running)

    def _same(self, assignment: Assignment, task: int, place: Place, running: Running) -> bool:
        """Whether an attempt is just what was planned; then it holds it."""
        if running.queue != assignment.queue or running.place[:2] != place[:2]:
            return False
        names = planned_name(assignment.uid, task), running.name
        return self._parts.rooms.rename(place.backend, place.pool, names, hold_of(running))

    def _give_back(self, assignment: Assignment, task: int, place: Place) -> None:
        tree, amount = self._parts.tree, vector(assignment.needs.resources)
        planned = planned_name(assignment.uid, task)
        self._parts.rooms.let_go(place.backend, place.pool, planned)
        self._parts.waiting.let_go(tree.discharge(tree.node(assignment.queue), amount))

    def reject(self, assignment: Assignment) -> None:
        """Nothing came of it: its places are free. What still waits is to be put again."""
        for task, place in zip(assignment.tasks, assignment.places, strict=True):
            self._give_back(assignment, task, place)

    # -- what is decided --------------------------------------------------------------------------

    def plan(self, now: Micros, work: int = SLICE) -> Round:
        """What is to be done next, for about so many units of work.

        Each place is held until the assignment is confirmed or rejected. Who is to give way counts
        as leaving; when that was not committed, say so with `changed`.
        """
        return self._rounds.plan(now, work)

    def never_fits(self, needs: Needs) -> str:
        """Why no known pool could ever hold it; empty: some could, or nothing is known yet."""
        return self._parts.never_fits(self._parts.shapes.apart(needs))

    def explain(
        self,
        uid: str,
        queue: QueueKey,
        needs: Needs,
        priority: int,
        now: Micros,
        *,
        brief: bool = False,
    ) -> Explained:
        """Why a job waits that was put, by the rules that `plan` goes by.

        Brief: the reason and its words alone, cheap enough for every job of a page.
        """
        case = Case(uid, queue, needs, priority, now)
        return self._explaining.explain(case, brief=brief)

    def explain_new(self, entry: Entry, now: Micros) -> Explained:
        """What would become of a job if it were put now."""
        known = born(entry.uid) and self._parts.waiting.entry(entry.uid) is None
        uid = entry.uid if known else youngest(now)
        self.put(replace(entry, uid=uid, ready=list(entry.ready)))
        case = Case(uid, entry.queue, entry.needs, entry.priority, now, new=True)
        try:
            return self._explaining.explain(case, brief=False)
        finally:
            self.remove(uid)

    # -- what is shown ----------------------------------------------------------------------------

    def share(self, key: QueueKey) -> QueueShare:
        """What a queue may claim, uses and used."""
        tree = self._parts.tree
        node = tree.node(key)
        return QueueShare(
            fair=tree.fair(node),
            used=node.part,
            decayed=tree.decayed(node),
            reserved=resources(node.used),
            waiting=node.waiting,
            oldest=min((line.oldest() for line in node.lines.values()), default=""),
        )

    def usage(self) -> dict[QueueKey, tuple[float, Micros]]:
        """Shares averaged over the past, as of a time, to be stored."""
        return self._parts.tree.usage()

    def restore_usage(self, usage: Mapping[QueueKey, tuple[float, Micros]]) -> None:
        """Take over what was stored."""
        self._parts.tree.restore_usage(usage)
