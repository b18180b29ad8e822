"""The worker's stream to the server, opened again whenever it ends."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import grpc
import grpc.aio
import structlog

from hatoba.v1 import worker_pb2, worker_pb2_grpc
from hatoba_worker.dial import Connection, Locator, NoServer, connection
from hatoba_worker.failures import Away

log = structlog.get_logger(__name__)

BATCH = 100
MESSAGE_BYTES = 1 << 20
FIRST_WAIT = 0.05
LONGEST_WAIT = 5.0
_LOOK = 0.25
_WELCOME = 15.0

Items = Sequence[worker_pb2.ServerItem]
Call = grpc.aio.StreamStreamCall[
    worker_pb2.WorkerServiceConnectRequest, worker_pb2.WorkerServiceConnectResponse
]


class Listener(Protocol):
    """Who answers the server."""

    async def ready(self) -> None:
        """Return when there is something true to say about what this host holds."""

    def greeting(self) -> list[worker_pb2.WorkerItem]:
        """What every stream begins with: hello, inventory, and what was never answered."""

    def heard(self, items: Items) -> None:
        """What the server said, in order."""

    async def serve(self, link: Connection) -> None:
        """Whatever else goes on while the stream is open; cancelled at its end."""


class Outlet(Protocol):
    """Where what is to be told goes."""

    @property
    def greeted(self) -> bool:
        """Whether what is sent now goes out."""

    @property
    def sent(self) -> int:
        """So many items have gone out."""

    def send(self, item: worker_pb2.WorkerItem) -> None:
        """Tell an item; never waits, and may be lost: what matters is asked again."""


class Backoff:
    """Waits with full jitter, from up to 50 ms to up to 5 s."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._longest = FIRST_WAIT

    def reset(self) -> None:
        """The last try went well."""
        self._longest = FIRST_WAIT

    def next(self) -> float:
        """Seconds to wait now."""
        wait = self._jitter() * self._longest
        self._longest = min(self._longest * 2, LONGEST_WAIT)
        return wait


class Session:
    """Keeps one stream open. `send` never waits: what matters is asked again on the next stream.

    What is queued is bounded by what is alive: a few items for each attempt and some spans.
    """

    def __init__(
        self,
        locator: Locator,
        listener: Listener,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._locator = locator
        self._listener = listener
        self._sleep = sleep
        self._backoff = Backoff(jitter)
        self._out: deque[worker_pb2.WorkerItem] = deque()
        self._wake = asyncio.Event()
        self._open: asyncio.Event = asyncio.Event()
        self._link: Connection | None = None
        self._call: Call | None = None
        self._pause = 0.0
        self._greeted = False
        self._hung_up = False
        self._sent = 0

    @property
    def greeted(self) -> bool:
        """Whether what is sent now goes out."""
        return self._greeted

    @property
    def sent(self) -> int:
        """So many items have gone out."""
        return self._sent

    def send(self, item: worker_pb2.WorkerItem) -> None:
        """Queue an item on the open stream; without one it is dropped."""
        if self._greeted:
            self._out.append(item)
            self._wake.set()

    async def link(self) -> Connection:
        """The open connection, waited for."""
        while self._link is None:
            await self._open.wait()
        return self._link

    def hang_up(self, pause: float = 0.0) -> None:
        """End the stream; the next one is opened after `pause` seconds."""
        self._pause = pause
        if self._call is not None:
            self._hung_up = True
            self._call.cancel()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            stamp = await asyncio.to_thread(self._locator.stamp)
            try:
                await self._once()
            except (NoServer, Away) as error:
                log.info("server.away", reason=str(error))
            await self._rest(max(self._pause, self._backoff.next()), stamp)
            self._pause = 0.0

    async def _rest(self, seconds: float, stamp: int) -> None:
        """Wait, but not on when an embedded server has come up meanwhile."""
        while seconds > 0 and await asyncio.to_thread(self._locator.stamp) == stamp:
            await self._sleep(min(seconds, _LOOK))
            seconds -= _LOOK

    async def _once(self) -> None:
        target = await asyncio.to_thread(self._locator.find)
        await self._listener.ready()
        async with connection(target) as link, self._stream(link) as call:
            # Whatever is sent from here on is not in the greeting, and follows it.
            self._greeted = True
            for batch in _batches(self._listener.greeting()):
                # A write on a stream whose server just went may wait for ever.
                async with asyncio.timeout(_WELCOME):
                    await call.write(batch)
            await self._welcomed(call)
            self._link = link
            self._open.set()
            log.info("server.connected", address=target.address)
            async with asyncio.TaskGroup() as tasks:
                others = [
                    tasks.create_task(self._write(call), name="stream writer"),
                    tasks.create_task(self._listener.serve(link), name="while connected"),
                ]
                await self._read(call)
                for task in others:
                    task.cancel()

    @asynccontextmanager
    async def _stream(self, link: Connection) -> AsyncIterator[Call]:
        stub = worker_pb2_grpc.WorkerServiceStub(link.control)
        call = stub.Connect(metadata=link.metadata)
        self._call = call
        self._hung_up = False
        try:
            yield call
        except grpc.aio.AioRpcError as error:
            raise Away(f"{error.code().name}: {error.details()}") from error
        except (asyncio.InvalidStateError, TimeoutError) as error:
            raise Away("the stream ended before it was greeted") from error
        finally:
            self._greeted = False
            self._link = None
            self._call = None
            self._open.clear()
            self._out.clear()
            call.cancel()

    async def _welcomed(self, call: Call) -> None:
        async with asyncio.timeout(_WELCOME):
            first = await call.read()
        if not isinstance(first, worker_pb2.WorkerServiceConnectResponse):
            raise Away("the server ended the stream")
        self._backoff.reset()
        self._listener.heard(first.items)

    async def _read(self, call: Call) -> None:
        while True:
            try:
                message = await call.read()
            except grpc.aio.AioRpcError as error:
                log.info("server.lost", code=error.code().name, details=error.details())
                return
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._hung_up and task is not None and not task.cancelling():
                    return
                raise
            if not isinstance(message, worker_pb2.WorkerServiceConnectResponse):
                return
            self._listener.heard(message.items)

    async def _write(self, call: Call) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._gather()
            while self._out:
                batch = self._next_batch()
                self._sent += len(batch.items)
                try:
                    await call.write(batch)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return

    async def _gather(self) -> None:
        """Wait for as long as each turn of the loop has more to send: a message costs much more
        than an item in it."""
        seen = 0
        while seen < len(self._out) < BATCH:
            seen = len(self._out)
            await asyncio.sleep(0)

    def _next_batch(self) -> worker_pb2.WorkerServiceConnectRequest:
        items: list[worker_pb2.WorkerItem] = []
        size = 0
        while self._out and len(items) < BATCH and size < MESSAGE_BYTES:
            items.append(self._out.popleft())
            size += items[-1].ByteSize()
        return worker_pb2.WorkerServiceConnectRequest(items=items)


def _batches(
    items: list[worker_pb2.WorkerItem],
) -> list[worker_pb2.WorkerServiceConnectRequest]:
    batches: list[worker_pb2.WorkerServiceConnectRequest] = []
    size = MESSAGE_BYTES
    for item in items:
        if size >= MESSAGE_BYTES or len(batches[-1].items) >= BATCH:
            batches.append(worker_pb2.WorkerServiceConnectRequest())
            size = 0
        batches[-1].items.append(item)
        size += item.ByteSize()
    return batches
