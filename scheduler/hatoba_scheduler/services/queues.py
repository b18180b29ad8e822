"""QueueService: keeps queues and says what they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc

from hatoba.v1 import queue_pb2, queue_pb2_grpc
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.queues import QueueBook
from hatoba_scheduler.convert import (
    counts_to_proto,
    pairs,
    queue_etag,
    queue_to_proto,
    resources_to_proto,
)
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT, parse_queue, queue_name
from hatoba_scheduler.domain.records import Micros, Queue, Resources, no_counts
from hatoba_scheduler.domain.states import JobState, Release
from hatoba_scheduler.errors import Aborted, AlreadyExists, InvalidArgument
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.paging import Pager, page_size
from hatoba_scheduler.services.requests import remember, request_key, seen_before
from hatoba_scheduler.store.base import Store

Context = grpc.aio.ServicerContext[Any, Any]
LEAST_WEIGHT = 0.001
MASKABLE = ("weight", "max_running", "max_pending", "labels")


class QueueServicer(queue_pb2_grpc.QueueServiceServicer):
    """See proto/hatoba/v1/queue.proto."""

    def __init__(
        self, book: QueueBook, store: Store, ledger: Ledger, pager: Pager, now: Callable[[], Micros]
    ) -> None:
        self._book = book
        self._store = store
        self._ledger = ledger
        self._pager = pager
        self._now = now

    async def _named(self, text: str, field: str = "name") -> Queue:
        ref = parse_queue(text)
        if ref is None:
            raise InvalidArgument.field(
                field, "must be projects/P/queues/Q or Q", value=text, rule="queue.name"
            )
        return await self._book.fresh(ref.project, ref.name)

    async def CreateQueue(
        self, request: queue_pb2.CreateQueueRequest, context: Context
    ) -> queue_pb2.Queue:
        """Make a queue."""
        project = request.project or DEFAULT_PROJECT
        key = request_key(project, "CreateQueue", request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return queue_to_proto(self._book.get(project, request.queue_id))
        _check_weight(request.queue.weight)
        wanted = Queue(
            project,
            request.queue_id,
            1,
            current_call().principal,
            self._now(),
            request.queue.weight or 1.0,
            request.queue.max_running,
            request.queue.max_pending,
            pairs(request.queue.labels.items()),
        )
        queue = await self._same(wanted) or await self._put_new(wanted)
        await remember(self._store, key, queue.name)
        return queue_to_proto(queue)

    async def _put_new(self, wanted: Queue) -> Queue:
        try:
            return await self._book.put(wanted)
        except Aborted:
            # Somebody made it meanwhile: as if that had been before.
            same = await self._same(wanted)
            if same is None:
                raise
            return same

    async def _same(self, wanted: Queue) -> Queue | None:
        """The queue when it is there just like this. Raises AlreadyExists when it differs."""
        if wanted.name not in self._book.names(wanted.project):
            return None
        known = await self._book.fresh(wanted.project, wanted.name)
        if known.version == 0:
            return None
        alike = replace(
            wanted,
            version=known.version,
            created_by=known.created_by,
            create_time=known.create_time,
        )
        if alike != known:
            raise AlreadyExists(
                f"queue {wanted.name!r} exists with other settings; "
                f"`hatoba queues update {wanted.name}` changes it"
            )
        return known

    async def GetQueue(
        self, request: queue_pb2.GetQueueRequest, context: Context
    ) -> queue_pb2.Queue:
        """One queue."""
        return queue_to_proto(await self._named(request.name))

    async def ListQueues(
        self, request: queue_pb2.ListQueuesRequest, context: Context
    ) -> queue_pb2.ListQueuesResponse:
        """Queues by name."""
        project = request.project or DEFAULT_PROJECT
        scope = f"queues:{project}"
        after = self._pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        names = [name for name in self._book.names(project) if name > after]
        reply = queue_pb2.ListQueuesResponse(
            queues=[queue_to_proto(await self._book.fresh(project, name)) for name in names[:size]]
        )
        if len(names) > size:
            reply.next_page_token = self._pager.token(scope, names[size - 1])
        return reply

    async def UpdateQueue(
        self, request: queue_pb2.UpdateQueueRequest, context: Context
    ) -> queue_pb2.Queue:
        """Change weight, limits or labels."""
        paths = set(request.update_mask.paths)
        if not paths or paths - set(MASKABLE):
            raise InvalidArgument.field(
                "update_mask",
                f"must name some of {', '.join(MASKABLE)} and nothing else",
                value=",".join(sorted(paths)),
            )
        known = await self._named(request.queue.name, "queue.name")
        key = request_key(known.project, "UpdateQueue", request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return queue_to_proto(known)
        _check_etag(known, request.queue.etag)
        told = request.queue
        _check_weight(told.weight)
        queue = replace(
            known,
            version=known.version + 1,
            weight=(told.weight or 1.0) if "weight" in paths else known.weight,
            max_running=told.max_running if "max_running" in paths else known.max_running,
            max_pending=told.max_pending if "max_pending" in paths else known.max_pending,
            labels=pairs(told.labels.items()) if "labels" in paths else known.labels,
        )
        stored = await self._book.put(queue)
        await remember(self._store, key, stored.name)
        return queue_to_proto(stored)

    async def DeleteQueue(
        self, request: queue_pb2.DeleteQueueRequest, context: Context
    ) -> queue_pb2.DeleteQueueResponse:
        """Remove an empty queue."""
        ref = parse_queue(request.name)
        project = ref.project if ref else DEFAULT_PROJECT
        key = request_key(project, "DeleteQueue", request.request_id, request)
        if await seen_before(self._store, key) is None:
            queue = await self._named(request.name)
            _check_etag(queue, request.etag)
            await self._book.delete(queue)
            await remember(self._store, key, queue.name)
        return queue_pb2.DeleteQueueResponse()

    async def GetQueueUsage(
        self, request: queue_pb2.GetQueueUsageRequest, context: Context
    ) -> queue_pb2.QueueUsage:
        """What a queue holds and uses now."""
        queue = await self._named(request.name)
        counts = no_counts()
        reserved = Resources()
        jobs = 0
        for rows in self._ledger.all_rows():
            if (rows.job.project, rows.job.queue) != (queue.project, queue.name):
                continue
            jobs += not rows.job.state.terminal
            counts = tuple(a + b for a, b in zip(counts, rows.job.counts, strict=True))
            for attempt in rows.attempts.values():
                if attempt.release is not Release.RELEASED:
                    reserved = reserved.plus(attempt.reserved)
        return queue_pb2.QueueUsage(
            queue=queue_name(queue.project, queue.name),
            tasks=counts_to_proto(counts[: JobState.SUCCEEDED]),
            jobs=jobs,
            reserved=resources_to_proto(reserved),
        )


def _check_weight(weight: float) -> None:
    if 0 < weight < LEAST_WEIGHT:
        raise InvalidArgument.field(
            "queue.weight", f"must be {LEAST_WEIGHT} to 1,000", value=weight, rule="queue.weight"
        )


def _check_etag(queue: Queue, etag: str) -> None:
    if etag and etag != queue_etag(queue):
        raise Aborted(
            f"queue {queue.name!r} was changed since it was read "
            f"(etag {queue_etag(queue)}, not {etag}); read it again and retry"
        )
