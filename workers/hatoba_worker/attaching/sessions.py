"""Sessions that the server asks for: for each the worker opens a stream of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import structlog

from hatoba.v1 import worker_pb2, worker_pb2_grpc
from hatoba_worker.attaching.doors import AttachFailed, Door
from hatoba_worker.dial import Connection

log = structlog.get_logger(__name__)

MOST = 64
"""Sessions of one host at once."""
Request = worker_pb2.WorkerServiceAttachRequest
Call = grpc.aio.StreamStreamCall[Request, worker_pb2.WorkerServiceAttachResponse]
Open = Callable[[worker_pb2.AttachAttempt], Awaitable[Door]]


class Sessions:
    """All sessions of a host. `open_door` says what each is attached to, or raises AttachFailed."""

    def __init__(
        self,
        link: Callable[[], Awaitable[Connection]],
        open_door: Open,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._link = link
        self._open_door = open_door
        self._tasks = tasks
        self._count = 0

    def ordered(self, order: worker_pb2.AttachAttempt) -> None:
        """The server asks for one."""
        self._tasks.create_task(self._attach(order), name=f"attached to {order.attempt}")

    async def _attach(self, order: worker_pb2.AttachAttempt) -> None:
        link = await self._link()
        call = worker_pb2_grpc.WorkerServiceStub(link.bulk).Attach(metadata=link.metadata)
        self._count += 1
        try:
            await self._serve(call, order)
        except* (grpc.aio.AioRpcError, asyncio.InvalidStateError) as group:
            log.info("attach.ended", attempt=order.attempt, reason=repr(group.exceptions[0]))
        except* Exception:
            log.exception("attach.failed", attempt=order.attempt)
        finally:
            self._count -= 1
            call.cancel()

    async def _serve(self, call: Call, order: worker_pb2.AttachAttempt) -> None:
        over = asyncio.Event()
        call.add_done_callback(lambda _: over.set())
        try:
            door = await self._opened(order)
        except AttachFailed as error:
            await call.write(Request(session=order.session, refused=str(error)[:1000]))
            await call.done_writing()
            await over.wait()
            return
        try:
            await call.write(Request(session=order.session))
            async with asyncio.TaskGroup() as tasks:
                ways = [
                    tasks.create_task(_hear(call, door), name="attached: input"),
                    tasks.create_task(_tell(call, door), name="attached: output"),
                ]
                # Also while the command reads nothing of what it is given.
                await over.wait()
                for way in ways:
                    way.cancel()
        finally:
            await door.close()

    async def _opened(self, order: worker_pb2.AttachAttempt) -> Door:
        if self._count > MOST:
            raise AttachFailed(f"{MOST} sessions are open on this host; try again later")
        return await self._open_door(order)


async def _hear(call: Call, door: Door) -> None:
    """Give on what comes, until the server ends the stream."""
    while isinstance(message := await call.read(), worker_pb2.WorkerServiceAttachResponse):
        await door.give(message.input)


async def _tell(call: Call, door: Door) -> None:
    """Tell what comes, to its end; what the server makes of that ends the stream."""
    async with contextlib.aclosing(door.tell()) as told:
        async for output in told:
            await call.write(Request(output=output))
    await call.done_writing()
