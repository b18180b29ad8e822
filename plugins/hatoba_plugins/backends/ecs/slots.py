"""Replicas of one revision, and the tasks that are them in turn. Pure.

ECS replaces a task that ended by another one. To us both are one replica, which was started again:
it keeps its name, which is made from its first task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hatoba.v1 import common_pb2
from hatoba_plugins.backends.ecs.names import ServiceName, replica_name
from hatoba_plugins.backends.ecs.states import main_container, replica_cause
from hatoba_plugins.values import ReplicaPhase, ReplicaView

_SCALED_IN = re.compile(r"scaling activity|scaling down|service scaling|scale-in", re.IGNORECASE)
_LEAVING = ("DEACTIVATING", "STOPPING", "DEPROVISIONING")

MISSES_MOST, SILENT_MOST = 3, 3.0
"""Looks in a row, and seconds, without an answer after which what was ready is not: on a busy
machine one may come late.
"""


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task of a service."""

    arn: str
    definition: str
    running: bool
    ending: bool
    """It is to end, or has ended."""
    ended: bool
    scaled_in: bool
    """ECS stops it because fewer are wanted."""
    created: float
    instance: str = ""
    address: str = ""
    healthy: bool | None = None
    """By its container's health check; None: not known."""
    cause: common_pb2.Cause | None = None


def task_view(task: Mapping[str, Any], address: str) -> TaskView:
    """What of a described task matters here."""
    last, ending = str(task.get("lastStatus")), task.get("desiredStatus") == "STOPPED"
    ended = last in ("STOPPED", "DELETED")
    ending = ending or ended or last in _LEAVING
    reason = str(task.get("stoppedReason") or "")
    health = str(task.get("healthStatus") or main_container(task).get("healthStatus") or "UNKNOWN")
    return TaskView(
        arn=str(task["taskArn"]),
        definition=str(task.get("taskDefinitionArn", "")),
        running=last == "RUNNING" and not ending,
        ending=ending,
        ended=ended,
        scaled_in=ending and bool(_SCALED_IN.search(reason)),
        created=seconds(task.get("createdAt")),
        instance=str(task.get("containerInstanceArn") or "").rsplit("/", 1)[-1],
        address=address,
        healthy={"HEALTHY": True, "UNHEALTHY": False}.get(health),
        cause=replica_cause(task) if ended else None,
    )


def seconds(time: object) -> float:
    """A time as the SDK gives it, in seconds since 1970; 0: there is none."""
    if isinstance(time, datetime):
        return time.timestamp()
    return float(time) if isinstance(time, int | float) else 0.0


@dataclass(slots=True)
class Slot:
    """A replica: its task of now, if it has one."""

    name: str
    task: TaskView | None
    since: float
    phase: ReplicaPhase = ReplicaPhase.STARTING
    retiring: bool = False
    restarts: int = 0
    cause: common_pb2.Cause | None = None
    newest: str = ""
    """ARN of the last task that it was, also when it has ended."""
    misses: int = 0
    """Looks in a row at which it did not answer, while it counts as ready."""
    silent_since: float = 0.0
    """When it did not answer first; of no meaning without misses."""

    def view(self, revision: int) -> ReplicaView:
        """As the core is told of it."""
        ready = self.phase is ReplicaPhase.READY
        return ReplicaView(
            self.name,
            revision,
            self.phase,
            host=self.task.instance if self.task else "",
            address=self.task.address if ready and self.task else "",
            restarts=self.restarts,
            since=self.since,
            cause=self.cause,
        )

    def is_silent(self, now: float) -> bool:
        """It did not answer this time either: whether that is too often, and for too long."""
        self.silent_since = self.silent_since if self.misses else now
        self.misses += 1
        return self.misses >= MISSES_MOST and now - self.silent_since >= SILENT_MOST

    def enter(self, phase: ReplicaPhase, now: float) -> None:
        """It stands there since now."""
        if phase is not self.phase:
            self.phase, self.since = phase, now


@dataclass(slots=True)
class Slots:
    """All replicas of one revision."""

    service: ServiceName
    slots: dict[str, Slot] = field(default_factory=dict)
    history: set[str] = field(default_factory=set)
    """Tasks that were a replica once."""
    ends: list[float] = field(default_factory=list)
    """When tasks ended by themselves."""
    last: common_pb2.Cause | None = None
    """Why the last one did."""

    def take(self, tasks: Iterable[TaskView], wanted: int, definition: str, now: float) -> None:
        """See all tasks of the service, ended ones too; `wanted` replicas are not retiring.

        `definition` is what new tasks are made from.
        """
        known = {task.arn: task for task in tasks}
        for slot in list(self.slots.values()):
            self._follow(slot, known, definition, now)
        fresh = [one for one in known.values() if one.arn not in self.history]
        # Living ones first: an hour's ends are told of too, and are nobody while all are there.
        for task in sorted(fresh, key=lambda one: (one.ending, one.created, one.arn)):
            self._adopt(task, wanted, now)
        self._keep_what_ecs_keeps(wanted)
        self._let_go_of_orphans(wanted)

    def retire_all(self) -> None:
        """None is wanted any more: those without a task are gone, the others when theirs ends."""
        self.slots = {one.name: one for one in self.slots.values() if one.task is not None}
        for one in self.slots.values():
            one.retiring = True

    def judge(self, ready: Callable[[TaskView], bool], now: float) -> None:
        """Say of every running task whether it answers."""
        for slot in self.slots.values():
            task = slot.task
            if task is None or slot.phase is ReplicaPhase.DRAINING:
                continue
            if task.running and ready(task):
                slot.misses = 0
                slot.enter(ReplicaPhase.READY, now)
            elif slot.phase is ReplicaPhase.READY and (not task.running or slot.is_silent(now)):
                slot.enter(ReplicaPhase.UNHEALTHY, now)
                slot.cause = _not_ready()

    def _follow(
        self, slot: Slot, known: Mapping[str, TaskView], definition: str, now: float
    ) -> None:
        if slot.task is None:
            return
        # What is not told of any more was stopped more than an hour ago.
        task = known.get(slot.task.arn)
        if task is not None and not task.ending:
            slot.task = task
        elif slot.retiring or (task and task.scaled_in) or slot.task.definition != definition:
            self._drain(slot, task, now)
        else:
            self._lose(slot, task, now)

    def _drain(self, slot: Slot, task: TaskView | None, now: float) -> None:
        """It ends because it shall."""
        if task is None or task.ended:
            del self.slots[slot.name]
            return
        slot.retiring = True
        slot.task = task
        slot.enter(ReplicaPhase.DRAINING, now)

    def _lose(self, slot: Slot, task: TaskView | None, now: float) -> None:
        """Its task ended by itself: another one will be it."""
        slot.enter(ReplicaPhase.UNHEALTHY, now)
        if task is None or task.ended:
            slot.task = None
            slot.cause = self.last = (task.cause if task else None) or _vanished()
            self.ends.append(now)

    def _adopt(self, task: TaskView, wanted: int, now: float) -> None:
        """A task that was not seen before goes on for a replica without one, or is a new one."""
        orphan = next((o for o in self.slots.values() if o.task is None), None)
        staying = sum(not one.retiring for one in self.slots.values())
        if task.ending and (task.scaled_in or (orphan is None and staying >= wanted)):
            self.last = task.cause or self.last
            return
        self.history.add(task.arn)
        if orphan is None:
            name = replica_name(self.service, task.arn)
            orphan = self.slots[name] = Slot(name, task, now, newest=task.arn)
        else:
            orphan.restarts += 1
            orphan.task = task
            orphan.newest = task.arn
            orphan.enter(ReplicaPhase.STARTING, now)
        if task.ending:
            self._lose(orphan, task, now)

    def _keep_what_ecs_keeps(self, wanted: int) -> None:
        """ECS ends as many as there are too many, and not always those that were retired: for each
        other one that it chose, or that ended by itself, one that was retired stays."""
        living = [one for one, _ in self._living()]
        retiring = [one for one in living if one.retiring]
        for one in retiring[max(0, len(living) - wanted) :]:
            one.retiring = False

    def _let_go_of_orphans(self, wanted: int) -> None:
        staying = [one for one in self.slots.values() if not one.retiring]
        orphans = [one for one in staying if one.task is None]
        for one in orphans[: max(0, len(staying) - wanted)]:
            del self.slots[one.name]

    def current(self, definition: str) -> list[Slot]:
        """Replicas to plan with: none that retires, none that ECS exchanges itself."""
        return [
            one
            for one in self.slots.values()
            if not one.retiring and (one.task is None or one.task.definition == definition)
        ]

    def views(self) -> list[ReplicaView]:
        """All of them, as the core is told."""
        return [one.view(self.service.revision) for one in self.slots.values()]

    def spared(self) -> frozenset[str]:
        """ARNs of the tasks that ECS may not end while others retire; none when none does."""
        living = self._living()
        if not any(one.retiring for one, _ in living):
            return frozenset()
        return frozenset(task.arn for one, task in living if not one.retiring)

    def _living(self) -> list[tuple[Slot, TaskView]]:
        """Replicas whose task is there and is not to end."""
        tasks = [(one, one.task) for one in self.slots.values()]
        return [(one, task) for one, task in tasks if task is not None and not task.ending]

    def tasks(self) -> list[str]:
        """ARNs of the tasks that are replicas now."""
        return [one.task.arn for one in self.slots.values() if one.task is not None]


def _vanished() -> common_pb2.Cause:
    return common_pb2.Cause(
        code=common_pb2.CAUSE_CODE_LOST,
        origin=common_pb2.ORIGIN_INFRASTRUCTURE,
        message="Its task is gone, and ECS does not tell how it ended.",
        retryable=True,
    )


def _not_ready() -> common_pb2.Cause:
    return common_pb2.Cause(
        code=common_pb2.CAUSE_CODE_NOT_READY,
        origin=common_pb2.ORIGIN_USER,
        message="Its task runs and is not ready any more.",
        retryable=True,
    )
