"""How many jobs there are: by queue and state, by owner, and their unfinished tasks.

Follows the ledger, parked jobs included, so that asking costs nothing however many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.domain.planning.model import QueueKey
from hatoba_scheduler.domain.records import Counts, Event, Job
from hatoba_scheduler.domain.states import STATE_COUNT, JobState
from hatoba_scheduler.store.base import JobQuery, Parked, Store

_COUNTED = frozenset({"queue", "state", "active"})
_NOTHING: Counts = (0,) * STATE_COUNT


class OwnerKey(NamedTuple):
    """Whose jobs, in which queue."""

    project: str
    queue: str
    created_by: str


class JobCounts:
    """Counts of all jobs by (project, queue, state), and of unfinished ones by owner."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        self._states: dict[QueueKey, list[int]] = {}
        self._tasks: dict[QueueKey, list[int]] = {}
        self._owners: Counter[OwnerKey] = Counter()
        ledger.listen(self.on_commit, self.on_parked)

    async def recover(self) -> None:
        """Take in what is stored, at start; parked jobs are told of by the ledger."""
        for project, queue, state, count in await self._store.job_counts():
            _row(self._states, (project, queue))[state] += count
        for rows in self._ledger.all_rows():
            if not rows.job.state.terminal:
                self._count_tasks(rows.job, 1)
                self._count_owner(rows.job, 1)

    # -- reading --------------------------------------------------------------------------------

    def by_state(self, project: str | None = None, queue: str | None = None) -> dict[JobState, int]:
        """Jobs per state, of all projects or of one, of all its queues or of one; no zeroes."""
        total = [0] * STATE_COUNT
        for key in self._keys(project, queue):
            for state, count in enumerate(self._states[key]):
                total[state] += count
        return {JobState(state): count for state, count in enumerate(total) if count}

    def _keys(self, project: str | None, queue: str | None) -> Iterator[QueueKey]:
        if project is not None and queue is not None:
            return iter([(project, queue)] if (project, queue) in self._states else [])
        return (
            key for key in self._states if project in (None, key[0]) and queue in (None, key[1])
        )

    def answer(self, query: JobQuery) -> dict[JobState, int] | None:
        """Jobs per state of a query about queues and states; None for one that asks for more."""
        if any(column not in _COUNTED for column, _, _ in query.terms):
            return None
        total: Counter[JobState] = Counter()
        for (project, queue), states in self.queues():
            if project != query.project:
                continue
            for state, count in states.items():
                if all(_holds(term, queue, state) for term in query.terms):
                    total[state] += count
        return dict(total)

    def queues(self) -> Iterator[tuple[QueueKey, dict[JobState, int]]]:
        """Every queue that ever had a job, with its jobs per state."""
        for key, counts in self._states.items():
            yield key, {JobState(state): count for state, count in enumerate(counts) if count}

    def unfinished(self, key: QueueKey) -> int:
        """Jobs of a queue that are not over."""
        counts = self._states.get(key)
        return sum(counts[: JobState.SUCCEEDED]) if counts else 0

    def tasks(self, key: QueueKey) -> Counts:
        """Tasks of a queue's unfinished jobs, per state."""
        counts = self._tasks.get(key)
        return tuple(counts) if counts else _NOTHING

    def owners(self) -> Mapping[OwnerKey, int]:
        """Unfinished jobs by whose they are, per queue."""
        return self._owners

    # -- following the ledger -------------------------------------------------------------------

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        del events
        for commit in commits:
            before, after = commit.before, commit.change.job
            if before is None:
                self._count(after, 1)
                self._count_owner(after, 1)
            elif before is not after:
                self._move(before, after)

    def _move(self, before: Job, after: Job) -> None:
        same_queue = before.queue == after.queue
        if same_queue and before.state is after.state and before.counts == after.counts:
            return
        self._count(before, -1)
        self._count(after, 1)
        if not same_queue or before.state.terminal is not after.state.terminal:
            self._count_owner(before, -1)
            self._count_owner(after, 1)

    def on_parked(self, batch: Sequence[Parked]) -> None:
        """Take in jobs that are parked at start."""
        for alike in batch:
            count = len(alike.uids)
            _row(self._tasks, (alike.project, alike.queue))[alike.state] += count
            self._owners[OwnerKey(alike.project, alike.queue, alike.created_by)] += count

    def _count(self, job: Job, by: int) -> None:
        _row(self._states, (job.project, job.queue))[job.state] += by
        if not job.state.terminal:
            self._count_tasks(job, by)

    def _count_tasks(self, job: Job, by: int) -> None:
        tasks = _row(self._tasks, (job.project, job.queue))
        if job.size == 1:
            tasks[job.state] += by
        else:
            for state, count in enumerate(job.counts):
                tasks[state] += by * count

    def _count_owner(self, job: Job, by: int) -> None:
        if job.state.terminal:
            return
        owner = OwnerKey(job.project, job.queue, job.created_by)
        left = self._owners.get(owner, 0) + by
        if left:
            self._owners[owner] = left
        else:
            self._owners.pop(owner, None)


def _holds(term: tuple[str, str, str | int], queue: str, state: JobState) -> bool:
    column, operator, value = term
    found: str | int = queue
    if column != "queue":
        found = int(state) if column == "state" else int(not state.terminal)
    return (found == value) == (operator == "=")


def _row(table: dict[QueueKey, list[int]], key: QueueKey) -> list[int]:
    found = table.get(key)
    if found is None:
        found = table[key] = [0] * STATE_COUNT
    return found
