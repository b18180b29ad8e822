"""How many unfinished jobs each queue has, those on their way into the store included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.domain.planner import QueueKey
from hatoba_scheduler.domain.records import Event, Job, Queue
from hatoba_scheduler.errors import ResourceExhausted


class QueueRoom:
    """Keeps queues within `max_pending`, also under many submits at once."""

    def __init__(self, ledger: Ledger) -> None:
        self._unfinished: Counter[QueueKey] = Counter()
        self._coming: Counter[QueueKey] = Counter()
        for rows in ledger.all_rows():
            self._count(rows.job, 1)
        ledger.listen(self.on_commit)

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        del events
        for commit in commits:
            if commit.before is not None:
                self._count(commit.before, -1)
            self._count(commit.change.job, 1)

    def _count(self, job: Job, by: int) -> None:
        if not job.state.terminal:
            _add(self._unfinished, (job.project, job.queue), by)

    def take(self, queue: Queue) -> QueueKey:
        """Reserve a place until it is given back, which is after its job was stored.

        Raises ResourceExhausted when the queue has as many unfinished jobs as it may.
        """
        key = (queue.project, queue.name)
        pending = self._unfinished.get(key, 0) + self._coming.get(key, 0)
        if queue.max_pending and pending >= queue.max_pending:
            raise ResourceExhausted(
                f"queue {queue.name!r} holds {pending} unfinished jobs, "
                f"its limit is {queue.max_pending}; wait, or raise max_pending"
            )
        _add(self._coming, key, 1)
        return key

    def give_back(self, key: QueueKey) -> None:
        """The job was stored, and counts by itself, or never will be."""
        _add(self._coming, key, -1)


def _add(counts: Counter[QueueKey], key: QueueKey, by: int) -> None:
    count = counts.get(key, 0) + by
    if count:
        counts[key] = count
    else:
        del counts[key]
