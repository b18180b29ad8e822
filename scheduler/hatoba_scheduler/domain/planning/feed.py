"""From a job's rows to what the planner is told of it, and back.

What waits without more to be said of it (one task, never started) is a place in a line; everything
else that may start is an entry, one for each shape that its tasks have after their retries. What
holds something, from its intent until its release, is a `Running`. Nothing here is remembered that
could not be made again from the rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hatoba_scheduler.domain.planning.model import (
    Assignment,
    Entry,
    Needs,
    Place,
    QueueKey,
    Running,
)
from hatoba_scheduler.domain.planning.planner import Planner
from hatoba_scheduler.domain.planning.rooms import HOST
from hatoba_scheduler.domain.records import (
    AS_ASKED,
    Adapted,
    Attempt,
    Change,
    Job,
    LabelRequirement,
    Micros,
    Placement,
    Resources,
    Task,
    Terms,
)
from hatoba_scheduler.domain.states import (
    AttemptState,
    CauseCode,
    Desired,
    JobState,
    Operator,
    Release,
    Spot,
)
from hatoba_scheduler.domain.transitions import Rows

_QUEUED, _RELEASED = JobState.QUEUED, Release.RELEASED  # members are slow to look up
NO_LIMIT = 1 << 30
_ONE_SLOT = Resources(slots=1)
_DISPLACED = frozenset({CauseCode.PREEMPTED, CauseCode.DRAINED})
"""Who ended so had its place taken, and goes first."""


class _Asking(Protocol):
    """What is to be known of a job to tell what it needs: a job's row, or less of it."""

    @property
    def uid(self) -> str: ...
    @property
    def project(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def resources(self) -> Resources: ...
    @property
    def terms(self) -> Terms: ...
    @property
    def secrets(self) -> tuple[str, ...]: ...
    @property
    def embedded_only(self) -> bool: ...


class _Parked(_Asking, Protocol):
    """Jobs that are alike in all this but their uids."""

    @property
    def uids(self) -> Sequence[str]: ...


# -- what a job is, in the planner's words --------------------------------------------------------


def queue_key(job: _Asking) -> QueueKey:
    """The queue that it waits in, or is counted to."""
    return (job.project, job.queue)


def needs_of(job: _Asking, adapted: Adapted = AS_ASKED, members: int = 1, index: int = 0) -> Needs:
    """The class of a task: what was asked for, and what retries changed of that. `index` tells
    tasks apart that go each to a place of its own.
    """
    want, terms = job.resources, job.terms
    if adapted.memory:
        want = want._replace(memory=adapted.memory)
    return Needs(
        backends=terms.backends or (job.backend,),
        resources=want if want.stated else _ONE_SLOT,
        members=members,
        placement=_pinned(terms, index) if terms.devices else terms.placement,
        spot=Spot.NEVER if adapted.on_demand else terms.spot,
        embedded_only=job.embedded_only,
        secrets=job.secrets,
        avoid=adapted.avoid,
        timeout=terms.timeout,
        owner=job.uid if terms.placement.apart else "",
    )


def _pinned(terms: Terms, index: int) -> Placement:
    """On the device of a task alone."""
    device = LabelRequirement(HOST, Operator.IN, (terms.devices[index],))
    return terms.placement._replace(require=(*terms.placement.require, device))


def stands_in_line(job: Job) -> bool:
    """Nothing is to be known of it but its place: one task that never started and may."""
    return (
        job.size == 1
        and bool(job.unstarted.runs)
        and job.unstarted_state is _QUEUED
        and job.desired is Desired.RUN
        and not job.terms.start_after
    )


def gang_key(job: Job, generation: int) -> str:
    """What all members of one generation share; empty for what is no gang."""
    return f"{job.uid}:{generation}" if job.terms.gang else ""


def running_of(job: Job, task: Task, attempt: Attempt) -> Running:
    """What an attempt holds, and what it would cost to end it."""
    return Running(
        name=attempt.name,
        uid=job.uid,
        index=attempt.index,
        queue=queue_key(job),
        place=Place(attempt.backend, attempt.host, attempt.gpus),
        amount=attempt.reserved,
        priority=job.priority,
        labels=job.labels,
        gang=gang_key(job, attempt.generation),
        start=attempt.start_time,
        saved=_saved(attempt),
        timeout=job.terms.timeout,
        preemptible=may_be_preempted(job, task),
        leaving=_leaving(attempt),
    )


def may_be_preempted(job: Job, task: Task) -> bool:
    """Others may take its place once more: its policy lets them, and its budget pays."""
    terms = job.terms
    return (
        not terms.never_preempt
        and task.adapted.preempted < terms.max_preemptions
        and task.preemptions < job.retries.preemption
    )


def _saved(attempt: Attempt) -> Micros:
    return attempt.checkpoint.create_time if attempt.checkpoint else 0


def _leaving(attempt: Attempt) -> bool:
    return attempt.state >= AttemptState.STOPPING


class Turn(NamedTuple):
    """What tasks of one job that wait together have in common."""

    needs: Needs
    first: bool = False


class _Date(NamedTuple):
    """When a job is looked at again, and which of its tasks (`_WHOLE`: the job)."""

    when: Micros
    uid: str
    task: int


_WHOLE = -1


class _Told(NamedTuple):
    """What the planner was told of an attempt that may change."""

    start: Micros
    saved: Micros
    leaving: bool
    preemptible: bool


def _told(job: Job, task: Task, attempt: Attempt) -> _Told:
    return _Told(
        attempt.start_time, _saved(attempt), _leaving(attempt), may_be_preempted(job, task)
    )


@dataclass(slots=True)
class _Waiting:
    """Of one job: started tasks that may go again, and under which names its entries are."""

    ready: dict[int, Turn] = field(default_factory=dict)
    names: dict[Turn, str] = field(default_factory=dict)
    numbers: int = 0

    def name_of(self, uid: str, turn: Turn) -> str:
        """The entry's name: the job's uid for its first shape, `UID+N` for those after it."""
        if turn not in self.names:
            self.names[turn] = f"{uid}+{self.numbers}" if self.numbers else uid
            self.numbers += 1
        return self.names[turn]


def job_of(name: str) -> str:
    """The uid of the job that an entry is about."""
    return name.partition("+")[0]


class Feed:
    """Keeps a planner told. `rows` gives a job's rows, or None when they are not in memory."""

    def __init__(self, planner: Planner, rows: Callable[[str], Rows | None]) -> None:
        self._planner = planner
        self._rows = rows
        self._waiting: dict[str, _Waiting] = {}
        self._held: dict[str, _Told] = {}
        self._planned: dict[str, dict[int, Assignment]] = {}
        self._passed: Micros = 0
        self._later: list[_Date] = []
        self._timed: set[_Date] = set()

    # -- what is committed ------------------------------------------------------------------------

    def recover(self, rows: Rows) -> None:
        """Take in a job as it is, at start."""
        for attempt in rows.attempts.values():
            self._take_attempt(rows, attempt)
        if stands_in_line(rows.job):
            self._put_in_line(rows.job)
        else:
            self._look_at(rows, rows.tasks)

    def take_parked(self, parked: Iterable[_Parked]) -> None:
        """Take in jobs that stand in line and are not in memory."""
        for alike in parked:
            key, needs = queue_key(alike), needs_of(alike)
            if not needs.owner:
                self._planner.put_alike(alike.uids, key, needs, alike.priority)
                continue
            for uid in alike.uids:
                self._planner.put_plain(uid, key, needs._replace(owner=uid), alike.priority)

    def take(self, before: Job | None, change: Change, rows: Rows) -> None:
        """Take in a committed change; `rows` are the job's after it, `before` its row before."""
        confirmed = self._confirm(change, rows)
        for attempt, _ in change.attempts:
            if attempt.name not in confirmed or attempt.release is _RELEASED:
                self._take_attempt(rows, attempt)
        if before is not None and _moved(before, rows.job):
            self._move_running(rows)
        if not confirmed:
            self._take_line(before, rows.job)
        if _matters(before, change) and self._has_more(rows.job):
            touched = {write.row.index for write in change.tasks}
            touched.update(write.row.index for write in change.attempts)
            self._look_at(rows, touched)

    def _has_more(self, job: Job) -> bool:
        """Whether anything of it waits, or did, beside a place in a line."""
        if job.counts[_QUEUED] and not stands_in_line(job):
            return True
        return job.uid in self._waiting

    def _take_line(self, before: Job | None, job: Job) -> None:
        was = before is not None and stands_in_line(before)
        stands = stands_in_line(job)
        if before is not None and was:
            if stands and not _moved(before, job):
                return
            key = queue_key(before)
            self._planner.remove_plain(job.uid, key, needs_of(before), before.priority)
        if stands and job.uid not in self._planned:
            self._put_in_line(job)

    def _put_in_line(self, job: _Asking) -> None:
        self._planner.put_plain(job.uid, queue_key(job), needs_of(job), job.priority)

    def _take_attempt(self, rows: Rows, attempt: Attempt) -> None:
        known = self._held.get(attempt.name)
        if attempt.release is _RELEASED:
            if known is not None:
                del self._held[attempt.name]
                self._planner.ended(attempt.name)
            return
        task = rows.tasks[attempt.index]
        now = self._held[attempt.name] = _told(rows.job, task, attempt)
        if known is None:
            self._planner.started(running_of(rows.job, task, attempt))
        elif known != now:
            self._planner.changed(
                attempt.name,
                start=now.start,
                saved=now.saved,
                leaving=now.leaving,
                preemptible=now.preemptible,
            )

    def _move_running(self, rows: Rows) -> None:
        """Its queue or priority is another: what runs of it counts there."""
        for attempt in rows.attempts.values():
            if attempt.name in self._held:
                self._planner.changed(
                    attempt.name, priority=rows.job.priority, queue=queue_key(rows.job)
                )

    # -- what waits -------------------------------------------------------------------------------

    def _look_at(self, rows: Rows, touched: Iterable[int]) -> None:
        """Tell which tasks of a job may start now, when these changed."""
        job = rows.job
        if stands_in_line(job) or not _may_start(job):
            self._forget_waiting(job.uid)
            return
        waiting = self._waiting.get(job.uid)
        if waiting is None:
            waiting, touched = self._waiting.setdefault(job.uid, _Waiting()), rows.tasks
        if job.terms.gang:
            self._look_at_gang(rows, waiting)
        else:
            for index in touched:
                self._look_at_task(rows, index, waiting)
        self._put_entries(rows, waiting)

    def _look_at_task(self, rows: Rows, index: int, waiting: _Waiting) -> None:
        waiting.ready.pop(index, None)
        task, attempt = rows.tasks.get(index), rows.attempts.get(index)
        if task is None or task.state is not JobState.QUEUED:
            return
        if attempt is not None and attempt.release is not _RELEASED:
            return
        if not self._is_later(_Date(task.not_before, rows.job.uid, index)):
            waiting.ready[index] = turn_of(rows.job, task)

    def _look_at_gang(self, rows: Rows, waiting: _Waiting) -> None:
        """All members, once each waits and nothing of an old one is left; else none."""
        waiting.ready.clear()
        job = rows.job
        if job.counts[JobState.QUEUED] < job.size or not _all_gone(rows):
            return
        latest = max((task.not_before for task in rows.tasks.values()), default=0)
        if not self._is_later(_Date(max(latest, job.terms.start_after), job.uid, _WHOLE)):
            waiting.ready = dict.fromkeys(range(job.size), gang_turn(rows))

    def _put_entries(self, rows: Rows, waiting: _Waiting) -> None:
        job, planned = rows.job, self._planned.get(rows.job.uid, {})
        turns: dict[Turn, list[int]] = {}
        for index, turn in waiting.ready.items():
            if index not in planned:
                turns.setdefault(turn, []).append(index)
        fresh = self._fresh(job)
        if job.terms.devices:
            # Each has a shape of its own: they go nowhere but to their devices.
            for index in job.unstarted if fresh is not None else ():
                if index not in planned:
                    turns.setdefault(Turn(needs_of(job, index=index)), []).append(index)
            fresh = None
        elif fresh is not None:
            turns.setdefault(fresh, [])
        for turn in waiting.names.keys() - turns.keys():
            self._planner.remove(waiting.names.pop(turn))
        for turn, ready in turns.items():
            self._put_entry(job, turn, ready, waiting.name_of(job.uid, turn), turn == fresh)

    def _fresh(self, job: Job) -> Turn | None:
        """The shape of its tasks that never started, when they may."""
        if job.terms.gang or not job.unstarted or job.unstarted_state is not JobState.QUEUED:
            return None
        if self._is_later(_Date(job.terms.start_after, job.uid, _WHOLE)):
            return None
        return Turn(needs_of(job))

    def _put_entry(
        self, job: Job, turn: Turn, ready: list[int], name: str, with_fresh: bool
    ) -> None:
        planned = self._planned.get(job.uid, {})
        heapq.heapify(ready)
        entry = Entry(name, queue_key(job), turn.needs, job.priority, ready, first=turn.first)
        if with_fresh:
            entry.fresh = (index for index in job.unstarted if index not in planned)
        if job.max_parallel:
            entry.room = max(0, job.max_parallel - under_way(job) - len(planned))
        self._planner.put(entry)

    def _forget_waiting(self, uid: str) -> None:
        waiting = self._waiting.pop(uid, None)
        if waiting is not None:
            for name in waiting.names.values():
                self._planner.remove(name)

    # -- what is asked ----------------------------------------------------------------------------

    def place_of(self, rows: Rows) -> tuple[str, QueueKey, Needs, int]:
        """(entry's name, queue, needs, priority) under which a job waits, or would."""
        job, waiting = rows.job, self._waiting.get(rows.job.uid)
        name, turn = job.uid, _any_turn(rows)
        if waiting is not None and turn in waiting.names:
            name = waiting.names[turn]
        return name, queue_key(job), turn.needs, job.priority

    def entry_of(self, job: Job) -> Entry:
        """A job that was not submitted, as it would wait."""
        members = job.size if job.terms.gang else 1
        needs = needs_of(job, members=members)
        return Entry(job.uid, queue_key(job), needs, job.priority, list(range(members)))

    # -- time -------------------------------------------------------------------------------------

    def _is_later(self, date: _Date) -> bool:
        """Whether that time is still to come; then the job is looked at again when it has."""
        if date.when <= self._passed:
            return False
        if date not in self._timed:
            self._timed.add(date)
            heapq.heappush(self._later, date)
        return True

    @property
    def next_due(self) -> Micros | None:
        """When something that waits for its time may go; None: nothing does."""
        return self._later[0].when if self._later else None

    def pass_to(self, now: Micros) -> bool:
        """It is `now`: bring back what waited for a time that has come. False: nothing did."""
        self._passed = max(self._passed, now)
        due: dict[str, set[int]] = {}
        while self._later and self._later[0].when <= self._passed:
            date = heapq.heappop(self._later)
            self._timed.discard(date)
            due.setdefault(date.uid, set()).add(date.task)
        for uid, indices in due.items():
            rows = self._rows(uid)
            if rows is not None:
                self._look_at(rows, indices)
        return bool(due)

    # -- what is planned --------------------------------------------------------------------------

    def planned(self, assignments: Iterable[Assignment]) -> None:
        """These were decided on: they are neither put again nor counted as waiting meanwhile."""
        for assignment in assignments:
            tasks = dict.fromkeys(assignment.tasks, assignment)
            self._planned.setdefault(job_of(assignment.uid), {}).update(tasks)

    def is_planned(self, uid: str, index: int) -> bool:
        """Whether a task's launch is decided and not committed yet."""
        return index in self._planned.get(uid, {})

    def _confirm(self, change: Change, rows: Rows) -> Collection[str]:
        """Of new attempts that were planned the places become their own; the names of these."""
        planned = self._planned.get(change.job.uid)
        if not planned:
            return ()
        new = {row.index: row for row, known in change.attempts if not known}
        confirmed = {id(planned[index]): planned[index] for index in new if index in planned}
        names: set[str] = set()
        for assignment in confirmed.values():
            self._unplan(assignment)
            runnings = [
                running_of(rows.job, rows.tasks[index], new[index])
                for index in assignment.tasks
                if index in new
            ]
            for one in runnings:
                self._held[one.name] = _Told(one.start, one.saved, one.leaving, one.preemptible)
                names.add(one.name)
            self._planner.confirm(assignment, runnings)
        return names

    def reject(self, assignment: Assignment) -> bool:
        """It was not committed: its places are free, and what of the job may start waits again.

        False when its rows are not in memory; then they are still to be brought (`recover`). One
        that was found committed meanwhile is left as it is.
        """
        uid = job_of(assignment.uid)
        if not self._unplan(assignment):
            return True
        self._planner.reject(assignment)
        rows = self._rows(uid)
        if rows is None:
            return False
        if stands_in_line(rows.job):
            self._put_in_line(rows.job)
        else:
            self._look_at(rows, assignment.tasks)
        return True

    def _unplan(self, assignment: Assignment) -> bool:
        """It is no longer only planned; False when it was not."""
        uid = job_of(assignment.uid)
        planned = self._planned.get(uid, {})
        was = [index for index in assignment.tasks if planned.get(index) is assignment]
        for index in was:
            del planned[index]
        if not planned:
            self._planned.pop(uid, None)
        return bool(was)


def _any_turn(rows: Rows) -> Turn:
    """The shape of the first of its tasks that waits."""
    if rows.job.terms.gang:
        return gang_turn(rows)
    waiting = (index for index, task in rows.tasks.items() if task.state is JobState.QUEUED)
    first = min(waiting, default=None)
    if first is not None:
        return turn_of(rows.job, rows.tasks[first])
    return Turn(needs_of(rows.job, index=next(iter(rows.job.unstarted), 0)))


def turn_of(job: Job, task: Task) -> Turn:
    """With which others a started task waits for its next attempt."""
    return Turn(needs_of(job, task.adapted, index=task.index), _displaced(task))


def gang_turn(rows: Rows) -> Turn:
    """The shape of a gang's members: what retries changed for one is so for all."""
    tasks = rows.tasks.values()
    every = [task.adapted for task in tasks]
    adapted = Adapted(
        memory=max((one.memory for one in every), default=0),
        avoid=tuple(sorted({host for one in every for host in one.avoid})),
        on_demand=any(one.on_demand for one in every),
    )
    first = any(_displaced(task) for task in tasks)
    return Turn(needs_of(rows.job, adapted, members=rows.job.size), first)


def _displaced(task: Task) -> bool:
    return task.cause is not None and task.cause.code in _DISPLACED


def under_way(job: Job) -> int:
    """Its tasks that are neither waiting nor over."""
    return sum(job.counts[JobState.LAUNCHING : JobState.SUCCEEDED])


def _may_start(job: Job) -> bool:
    return (
        not job.hold
        and job.desired is Desired.RUN
        and not job.state.terminal
        and bool(job.counts[JobState.QUEUED])
    )


def _all_gone(rows: Rows) -> bool:
    """Nothing is left of any attempt, so that a gang may begin anew."""
    return all(one.release is _RELEASED for one in rows.attempts.values())


def _moved(before: Job, after: Job) -> bool:
    return before.priority != after.priority or before.queue != after.queue


def _matters(before: Job | None, change: Change) -> bool:
    """Whether a change can make a difference to what waits of the job."""
    if before is None or before.settings_version != change.job.settings_version:
        return True
    return bool(change.events) or any(row.release is _RELEASED for row, _ in change.attempts)
