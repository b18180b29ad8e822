"""All queues in memory, and the store behind them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

from hatoba_scheduler.domain.naming import DEFAULT_QUEUE
from hatoba_scheduler.domain.records import Queue
from hatoba_scheduler.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Reason,
)
from hatoba_scheduler.store.base import Met, RequestKey, Stale, Store
from hatoba_scheduler.whole import whole

PAGE = 1_000
TRIES = 5
"""Times that a change is decided anew because its queue was written meanwhile."""
Changed = Callable[[Queue], None]
Decide = Callable[[Queue], Queue]
"""A queue as it shall be, of the queue as it is; raises what the change is refused with."""
Dropped = Callable[[tuple[str, str]], None]


@functools.lru_cache(maxsize=1_000)
def _unseen_default(project: str) -> Queue:
    return Queue(project, DEFAULT_QUEUE, 0, "system", 0)


class QueueBook:
    """Every queue by (project, name); changes are stored first, then told to dispatch."""

    def __init__(self, store: Store, changed: Changed, dropped: Dropped) -> None:
        self._store = store
        self._changed = changed
        self._dropped = dropped
        self._queues: dict[tuple[str, str], Queue] = {}
        # Two changes that are each right must not make a cycle together.
        self._changing = asyncio.Lock()

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

    def all(self) -> list[Queue]:
        """Every queue that was made."""
        return list(self._queues.values())

    def children(self, queue: Queue) -> list[str]:
        """Names of the queues right below it."""
        return sorted(
            one.name
            for one in self._queues.values()
            if (one.project, one.parent) == (queue.project, queue.name)
        )

    def below(self, queue: Queue) -> list[str]:
        """Names of all queues below it."""
        return [
            one.name
            for one in self._queues.values()
            if one.project == queue.project and queue.name in {up.name for up in self.above(one)}
        ]

    def above(self, queue: Queue) -> Iterator[Queue]:
        """The queues above it, nearest first."""
        seen = {queue.name}
        while queue.parent and queue.parent not in seen and self.known(queue.project, queue.parent):
            seen.add(queue.parent)
            queue = self.get(queue.project, queue.parent)
            yield queue

    def cordon(self, queue: Queue) -> Queue | None:
        """The queue that keeps it back: itself or one above; None: nothing does."""
        return next((one for one in (queue, *self.above(queue)) if one.cordoned), None)

    async def add(self, queue: Queue, request: RequestKey | None = None) -> Queue | Met:
        """Write a new queue, of version 1, and the key of who asked; a known key changes nothing.

        Raises Aborted when it is there, InvalidArgument for a parent that it cannot have.
        """
        return await whole(self._add(queue, request))

    async def _add(self, queue: Queue, request: RequestKey | None) -> Queue | Met:
        async with self._changing:
            self._check_parent(queue)
            stored = await self._write(queue, request)
        if isinstance(stored, Stale):
            raise _changed(queue.name)
        return stored

    async def change(
        self, project: str, name: str, decide: Decide, request: RequestKey | None = None
    ) -> Queue | Met:
        """Write what `decide` makes of the newest version, which may be asked several times.

        Raises NotFound, InvalidArgument for a parent that it cannot have, Aborted when the queue
        is written over and over by others.
        """
        return await whole(self._change(project, name, decide, request))

    async def _change(
        self, project: str, name: str, decide: Decide, request: RequestKey | None
    ) -> Queue | Met:
        async with self._changing:
            for _ in range(TRIES):
                known = await self.fresh(project, name)
                queue = replace(decide(known), version=known.version + 1)
                self._check_parent(queue)
                stored = await self._write(queue, request)
                if not isinstance(stored, Stale):
                    return stored
                await self._read_again(project, name)
        raise _changed(name)

    async def _read_again(self, project: str, name: str) -> None:
        """A submit can make `default`, and a write can be stored whose answer never came."""
        stored = await self._store.queue(project, name)
        if stored is not None:
            self._take(stored)
        elif self._queues.pop((project, name), None) is not None:
            self._dropped((project, name))

    def _check_parent(self, queue: Queue) -> None:
        if not queue.parent:
            return
        if not self.known(queue.project, queue.parent):
            raise InvalidArgument.field(
                "queue.parent",
                f"there is no such queue in project {queue.project!r}",
                value=queue.parent,
                remedy=f"make it first with `hatoba queues create {queue.parent}`",
            )
        path = [queue.name, queue.parent, *(one.name for one in self._line(queue))]
        if queue.name in path[1:]:
            cycle = path[: path.index(queue.name, 1) + 1]
            raise InvalidArgument.field(
                "queue.parent",
                f"would make a cycle: {' below '.join(cycle)}",
                value=queue.parent,
                remedy="name a queue that is not below this one",
            )

    def _line(self, queue: Queue) -> Iterator[Queue]:
        """The queues above its parent as it shall be; ends where one comes again."""
        return self.above(self.get(queue.project, queue.parent))

    async def _write(self, queue: Queue, request: RequestKey | None) -> Queue | Met | Stale:
        stored = await self._store.put_queue(queue, queue.version - 1, request)
        return self._take(stored) if isinstance(stored, Queue) else stored

    async def delete(self, queue: Queue, request: RequestKey | None = None) -> Met | None:
        """Remove a queue. Raises FailedPrecondition while it has unfinished jobs or children."""
        if queue.name == DEFAULT_QUEUE:
            raise FailedPrecondition("queue 'default' stays; every project has it")
        return await whole(self._delete(queue, request))

    async def _delete(self, queue: Queue, request: RequestKey | None) -> Met | None:
        async with self._changing:
            below = self.children(queue)
            if below:
                raise FailedPrecondition(
                    f"queue {queue.name!r} has queues below it: {', '.join(below)}; "
                    "remove them or move them first",
                    reason=Reason.NOT_EMPTY,
                )
            return await self._remove(queue, request)

    async def _remove(self, queue: Queue, request: RequestKey | None) -> Met | None:
        done = await self._store.delete_queue(queue.project, queue.name, queue.version, request)
        if isinstance(done, Met):
            return done
        if isinstance(done, Stale):
            raise _changed(queue.name)
        if not done:
            raise FailedPrecondition(
                f"queue {queue.name!r} has unfinished jobs; cancel or move them first",
                reason=Reason.NOT_EMPTY,
            )
        self._queues.pop((queue.project, queue.name), None)
        self._dropped((queue.project, queue.name))
        return None


def _changed(name: str) -> Aborted:
    return Aborted(f"queue {name!r} was changed meanwhile; read it again and retry")
