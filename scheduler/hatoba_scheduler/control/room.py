"""Keeps queues within `max_pending`, counting what is on its way into the store too."""

from __future__ import annotations

from collections import Counter

from hatoba_scheduler.control.counts import JobCounts
from hatoba_scheduler.domain.planning.model import QueueKey
from hatoba_scheduler.domain.records import Queue
from hatoba_scheduler.errors import ResourceExhausted


class QueueRoom:
    """Places in queues, reserved by those who are about to submit."""

    def __init__(self, counts: JobCounts) -> None:
        self._counts = counts
        self._coming: Counter[QueueKey] = Counter()

    def take(self, queue: Queue) -> QueueKey:
        """Reserve a place until it is given back, which is after its job was stored.

        Raises ResourceExhausted when the queue has as many unfinished jobs as it may.
        """
        key = (queue.project, queue.name)
        coming = self._coming.get(key, 0)
        if queue.max_pending:
            self._check(queue, self._counts.unfinished(key) + coming)
        self._coming[key] = coming + 1
        return key

    def _check(self, queue: Queue, pending: int) -> None:
        if pending >= queue.max_pending:
            raise ResourceExhausted(
                f"queue {queue.name!r} holds {pending} unfinished jobs, "
                f"its limit is {queue.max_pending}; wait, or raise max_pending"
            )

    def give_back(self, key: QueueKey, places: int = 1) -> None:
        """The jobs were stored, and count by themselves, or never will be."""
        left = self._coming.get(key, 0) - places
        if left:
            self._coming[key] = left
        else:
            self._coming.pop(key, None)
