"""QueueService: keeps queues and says what they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc

from hatoba.v1 import queue_pb2, queue_pb2_grpc
from hatoba_scheduler.control.draining import Drainer, queue_place
from hatoba_scheduler.control.queues import QueueBook
from hatoba_scheduler.control.usage import QueueUsages, Usage
from hatoba_scheduler.convert import (
    counts_to_proto,
    pairs,
    queue_etag,
    queue_to_proto,
    resources_of,
    resources_to_proto,
)
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT, parse_queue, queue_name
from hatoba_scheduler.domain.records import Micros, Queue, Resources
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.errors import Aborted, AlreadyExists, InvalidArgument
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.cordons import check_drain
from hatoba_scheduler.services.paging import Pager, page_size
from hatoba_scheduler.services.requests import made_before, remember, request_key, seen_before
from hatoba_scheduler.store.base import Met, RequestKey, Store

Context = grpc.aio.ServicerContext[Any, Any]
LEAST_WEIGHT = 0.001
MASKABLE = (
    "weight",
    "max_running",
    "max_pending",
    "labels",
    "parent",
    "quota",
    "guaranteed",
    "no_borrowing",
)


@dataclass(frozen=True, slots=True)
class QueueParts:
    """What the queue service stands on."""

    book: QueueBook
    store: Store
    drainer: Drainer
    usages: QueueUsages
    pager: Pager
    now: Callable[[], Micros]


class QueueServicer(queue_pb2_grpc.QueueServiceServicer):
    """See proto/hatoba/v1/queue.proto."""

    def __init__(self, parts: QueueParts) -> None:
        self._book = parts.book
        self._store = parts.store
        self._drainer = parts.drainer
        self._usages = parts.usages
        self._pager = parts.pager
        self._now = parts.now

    def _message(self, queue: Queue) -> queue_pb2.Queue:
        out = queue_to_proto(queue)
        out.warnings.extend(self._usages.warnings(queue))
        return out

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
            return self._message(self._book.get(project, request.queue_id))
        _check_weight(request.queue.weight)
        plain = Queue(project, request.queue_id, 1, current_call().principal, self._now())
        wanted = _as_told(plain, request.queue, set(MASKABLE))
        same = await self._same(wanted)
        if same is None:
            return self._message(await self._add(wanted, key))
        await remember(self._store, key, same.name)
        return self._message(same)

    async def _add(self, wanted: Queue, key: RequestKey | None) -> Queue:
        try:
            added = await self._book.add(wanted, key)
        except Aborted:
            # Somebody made it meanwhile: as if that had been before.
            same = await self._same(wanted)
            if same is None:
                raise
            await remember(self._store, key, same.name)
            return same
        return self._written(added, wanted, key)

    def _written(self, written: Queue | Met, asked: Queue, key: RequestKey | None) -> Queue:
        """The queue after a write that may have met its own key."""
        if isinstance(written, Queue):
            return written
        made_before(written, key)
        return self._book.get(asked.project, asked.name)

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
            cordoned=known.cordoned,
            cordon_reason=known.cordon_reason,
            draining=known.draining,
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
        return self._message(await self._named(request.name))

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
            queues=[self._message(await self._book.fresh(project, name)) for name in names[:size]]
        )
        if len(names) > size:
            reply.next_page_token = self._pager.token(scope, names[size - 1])
        return reply

    async def UpdateQueue(
        self, request: queue_pb2.UpdateQueueRequest, context: Context
    ) -> queue_pb2.Queue:
        """Change weight, limits, place in the tree or labels."""
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
            return self._message(known)
        _check_weight(request.queue.weight)

        def decide(queue: Queue) -> Queue:
            _check_etag(queue, request.queue.etag)
            return _as_told(queue, request.queue, paths)

        stored = await self._book.change(known.project, known.name, decide, key)
        return self._message(self._written(stored, known, key))

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
            met = await self._book.delete(queue, key)
            if met is not None:
                made_before(met, key)
        return queue_pb2.DeleteQueueResponse()

    async def CordonQueue(
        self, request: queue_pb2.CordonQueueRequest, context: Context
    ) -> queue_pb2.Queue:
        """Start nothing more from a queue, or let it go on."""
        known = await self._named(request.name)
        key = request_key(known.project, "CordonQueue", request.request_id, request)
        if await seen_before(self._store, key) is not None:
            return self._message(known)
        check_drain(request)

        def decide(queue: Queue) -> Queue:
            return replace(
                queue,
                cordoned=request.cordoned,
                cordon_reason=request.reason if request.cordoned else "",
                draining=request.drain,
            )

        hit("queue.cordon.before")
        stored = await self._book.change(known.project, known.name, decide, key)
        hit("queue.cordon.after")
        queue = self._written(stored, known, key)
        if queue.draining:
            await self._drainer.drain(queue_place(self._book, queue), current_call().principal)
        return self._message(queue)

    async def GetQueueUsage(
        self, request: queue_pb2.GetQueueUsageRequest, context: Context
    ) -> queue_pb2.QueueUsage:
        """What a queue holds and uses now."""
        return usage_to_proto(self._usages.of(await self._named(request.name)))

    async def ListQueueUsage(
        self, request: queue_pb2.ListQueueUsageRequest, context: Context
    ) -> queue_pb2.ListQueueUsageResponse:
        """What the queues of a project hold and use, by name."""
        project = request.project or DEFAULT_PROJECT
        scope = f"usage:{project}"
        after = self._pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        names = [name for name in self._book.names(project) if name > after]
        queues = [await self._book.fresh(project, name) for name in names[:size]]
        usages = [usage_to_proto(self._usages.of(queue)) for queue in queues]
        reply = queue_pb2.ListQueueUsageResponse(usages=usages)
        if len(names) > size:
            reply.next_page_token = self._pager.token(scope, names[size - 1])
        return reply


def usage_to_proto(usage: Usage) -> queue_pb2.QueueUsage:
    """The message of what a queue uses."""
    queue, share = usage.queue, usage.share
    out = queue_pb2.QueueUsage(
        queue=queue_name(queue.project, queue.name),
        tasks=counts_to_proto(usage.tasks[: JobState.SUCCEEDED]),
        jobs=usage.jobs,
        reserved=resources_to_proto(share.reserved),
        fair_share=share.fair,
        used_share=share.used,
        decayed_share=share.decayed,
        waiting=share.waiting,
        start_rate=usage.rates.started,
        end_rate=usage.rates.ended,
        parent=queue.parent,
        weight=queue.weight,
        cordoned=usage.cordoned,
    )
    _put_limits(out, queue)
    if usage.oldest_wait:
        out.oldest_wait.FromMilliseconds(round(usage.oldest_wait * 1000))
    return out


def _put_limits(out: queue_pb2.QueueUsage, queue: Queue) -> None:
    """Limits that are set; what is not set stays absent."""
    if queue.quota != Resources():
        out.quota.CopyFrom(resources_to_proto(queue.quota))
    if queue.guaranteed != Resources():
        out.guaranteed.CopyFrom(resources_to_proto(queue.guaranteed))


def _as_told(queue: Queue, told: queue_pb2.Queue, paths: set[str]) -> Queue:
    """A queue with the settings that these paths name as they are told."""
    settings: dict[str, Any] = {
        "weight": told.weight or 1.0,
        "max_running": told.max_running,
        "max_pending": told.max_pending,
        "labels": pairs(told.labels.items()),
        "parent": told.parent,
        "quota": resources_of(told.quota),
        "guaranteed": resources_of(told.guaranteed),
        "no_borrowing": told.no_borrowing,
    }
    return replace(queue, **{name: settings[name] for name in paths})


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
