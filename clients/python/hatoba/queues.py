"""Queues: where jobs wait, and how much may run from each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict, Unpack

from google.protobuf.field_mask_pb2 import FieldMask

from hatoba.errors import InvalidSpec
from hatoba.v1 import common_pb2, queue_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.client import _LoopThread

Queue = queue_pb2.Queue
QueueUsage = queue_pb2.QueueUsage
_PAGE = 1000


class QueueOptions(TypedDict, total=False):
    """Settings of a queue. What is left out stays as it is, or is the server's default.

    `weight` is its share against its siblings; `max_running` tasks and `max_pending` unfinished
    jobs at most, 0 for no limit; `parent` is the queue above it, empty for none. It and those below
    it never use more than `quota`; `guaranteed` is taken back from whoever borrowed it; with
    `no_borrowing` it never uses more than that. Empty Resources take a limit away.
    """

    weight: float
    max_running: int
    max_pending: int
    parent: str
    quota: common_pb2.Resources
    guaranteed: common_pb2.Resources
    no_borrowing: bool
    labels: Mapping[str, str]


class AsyncQueues:
    """Queues of the project; `AsyncClient.queues`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(self, name: str, **options: Unpack[QueueOptions]) -> Queue:
        """Make a queue. Twice with the same settings is once. Raises AlreadyExists.

        What is suspicious about its settings stands in `warnings`.
        """
        request = queue_pb2.CreateQueueRequest(
            project=self._client.project, queue_id=name, queue=Queue(**options)
        )
        return await self._client.call(request, Queue)

    async def get(self, name: str) -> Queue:
        """One queue. Raises NotFound."""
        return await self._client.call(queue_pb2.GetQueueRequest(name=self._full(name)), Queue)

    async def update(self, name: str, *, etag: str = "", **options: Unpack[QueueOptions]) -> Queue:
        """Change a queue; what runs over a new limit runs on.

        With an `etag` only if it is still as it was read. Raises NotFound, Aborted, InvalidSpec.
        """
        if not options:
            raise InvalidSpec("there is nothing to change", remedy="name at least one option")
        request = queue_pb2.UpdateQueueRequest(
            queue=Queue(name=self._full(name), etag=etag, **options),
            update_mask=FieldMask(paths=list(options)),
        )
        return await self._client.call(request, Queue)

    async def delete(self, name: str, *, etag: str = "") -> None:
        """Remove a queue without unfinished jobs. Raises FailedPrecondition."""
        request = queue_pb2.DeleteQueueRequest(name=self._full(name), etag=etag)
        await self._client.call(request, queue_pb2.DeleteQueueResponse)

    async def cordon(self, name: str, *, drain: bool = False, reason: str = "") -> Queue:
        """Start nothing more from it and those below it; jobs are still accepted.

        With `drain` what runs of them gives way, at nobody's charge, and waits.
        """
        request = queue_pb2.CordonQueueRequest(
            name=self._full(name), cordoned=True, drain=drain, reason=reason
        )
        return await self._client.call(request, Queue)

    async def uncordon(self, name: str) -> Queue:
        """Let it go on."""
        request = queue_pb2.CordonQueueRequest(name=self._full(name), cordoned=False)
        return await self._client.call(request, Queue)

    async def usage(self, name: str) -> QueueUsage:
        """What a queue holds and uses now, against its share."""
        request = queue_pb2.GetQueueUsageRequest(name=self._full(name))
        return await self._client.call(request, QueueUsage)

    async def usages(self) -> list[QueueUsage]:
        """The same of all queues of the project, by name."""
        request = queue_pb2.ListQueueUsageRequest(project=self._client.project, page_size=_PAGE)
        found: list[QueueUsage] = []
        while True:
            page = await self._client.call(request, queue_pb2.ListQueueUsageResponse)
            found.extend(page.usages)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def list(self) -> list[Queue]:
        """Queues of the project, by name."""
        request = queue_pb2.ListQueuesRequest(project=self._client.project, page_size=_PAGE)
        found: list[Queue] = []
        while True:
            page = await self._client.call(request, queue_pb2.ListQueuesResponse)
            found.extend(page.queues)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    def _full(self, name: str) -> str:
        return name if "/" in name else f"projects/{self._client.project}/queues/{name}"


class Queues:
    """The same calls, synchronously; `Client.queues`."""

    def __init__(self, loop: _LoopThread, queues: AsyncQueues) -> None:
        self._loop = loop
        self._queues = queues

    def create(self, name: str, **options: Unpack[QueueOptions]) -> Queue:
        """See AsyncQueues.create."""
        return self._loop.run(self._queues.create(name, **options))

    def get(self, name: str) -> Queue:
        """One queue. Raises NotFound."""
        return self._loop.run(self._queues.get(name))

    def update(self, name: str, *, etag: str = "", **options: Unpack[QueueOptions]) -> Queue:
        """See AsyncQueues.update."""
        return self._loop.run(self._queues.update(name, etag=etag, **options))

    def delete(self, name: str, *, etag: str = "") -> None:
        """See AsyncQueues.delete."""
        self._loop.run(self._queues.delete(name, etag=etag))

    def cordon(self, name: str, *, drain: bool = False, reason: str = "") -> Queue:
        """See AsyncQueues.cordon."""
        return self._loop.run(self._queues.cordon(name, drain=drain, reason=reason))

    def uncordon(self, name: str) -> Queue:
        """Let it go on."""
        return self._loop.run(self._queues.uncordon(name))

    def usage(self, name: str) -> QueueUsage:
        """What a queue holds and uses now, against its share."""
        return self._loop.run(self._queues.usage(name))

    def usages(self) -> list[QueueUsage]:
        """The same of all queues of the project, by name."""
        return self._loop.run(self._queues.usages())

    def list(self) -> list[Queue]:
        """Queues of the project, by name."""
        return self._loop.run(self._queues.list())
