"""All queues in memory, and the store behind them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from hatoba_scheduler.domain.naming import DEFAULT_QUEUE
from hatoba_scheduler.domain.records import Queue
from hatoba_scheduler.errors import Aborted, FailedPrecondition, NotFound, Reason
from hatoba_scheduler.store.base import Stale, Store
from hatoba_scheduler.whole import whole

PAGE = 1_000
Changed = Callable[[Queue], None]


@functools.lru_cache(maxsize=1_000)
def _unseen_default(project: str) -> Queue:
    return Queue(project, DEFAULT_QUEUE, 0, "system", 0)


class QueueBook:
    """Every queue by (project, name); changes are stored first, then told to dispatch."""

    def __init__(self, store: Store, changed: Changed) -> None:
        self._store = store
        self._changed = changed
        self._queues: dict[tuple[str, str], Queue] = {}

    async def recover(self) -> None:
        """Load all queues."""
        after = ""
        while page := await self._store.queues(None, after, PAGE):
            for queue in page:
                self._take(queue)
            after = f"{page[-1].project}/{page[-1].name}"
            if len(page) < PAGE:
                return

    def _take(self, queue: Queue) -> Queue:
        self._queues[queue.project, queue.name] = queue
        self._changed(queue)
        return queue

    def get(self, project: str, name: str) -> Queue:
        """One queue; a project's `default` is there before its first job. Raises NotFound."""
        found = self._queues.get((project, name))
        if found is not None:
            return found
        if name == DEFAULT_QUEUE:
            return _unseen_default(project)
        raise NotFound(
            f"there is no queue {name!r} in project {project!r}; "
            f"make it with `hatoba queues create {name}`"
        )

    async def fresh(self, project: str, name: str) -> Queue:
        """One queue as it is stored; a project's `default` is made with its first job."""
        found = self.get(project, name)
        stored = None if found.version else await self._store.queue(project, name)
        return self._take(stored) if stored is not None else found

    def known(self, project: str, name: str) -> bool:
        """Whether there is such a queue."""
        return name == DEFAULT_QUEUE or (project, name) in self._queues

    def names(self, project: str) -> list[str]:
        """The project's queues by name."""
        return sorted({DEFAULT_QUEUE, *(n for p, n in self._queues if p == project)})

    async def put(self, queue: Queue) -> Queue:
        """Write a queue over the version before its own. Raises Aborted when that is stale."""
        return await whole(self._put(queue))

    async def _put(self, queue: Queue) -> Queue:
        stored = await self._store.put_queue(queue, queue.version - 1)
        if isinstance(stored, Stale):
            raise Aborted(f"queue {queue.name!r} was changed meanwhile; read it again and retry")
        return self._take(stored)

    async def delete(self, queue: Queue) -> None:
        """Remove a queue. Raises FailedPrecondition while it has unfinished jobs."""
        if queue.name == DEFAULT_QUEUE:
            raise FailedPrecondition("queue 'default' stays; every project has it")
        await whole(self._delete(queue))

    async def _delete(self, queue: Queue) -> None:
        done = await self._store.delete_queue(queue.project, queue.name, queue.version)
        if isinstance(done, Stale):
            raise Aborted(f"queue {queue.name!r} was changed meanwhile; read it again and retry")
        if not done:
            raise FailedPrecondition(
                f"queue {queue.name!r} has unfinished jobs; cancel or move them first",
                reason=Reason.NOT_EMPTY,
            )
        self._queues.pop((queue.project, queue.name), None)
        self._changed(replace(queue, weight=1.0, max_running=0, max_pending=0))
