"""People attached to attempts on hosts: for each session its host opens a stream of its own.

What one side does not take the other side does not send: nothing but a few pieces waits here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from hatoba.v1 import job_pb2, worker_pb2
from hatoba_plugins.errors import NoCapacity, Retry
from hatoba_plugins.pipes import Pipe

MOST = 256
"""Sessions of all hosts at once."""
ARRIVES_WITHIN = 45.0
"""Seconds for a host to begin what was asked; it gives up by itself a little sooner."""
Request = worker_pb2.WorkerServiceAttachRequest
Said = AsyncIterator[job_pb2.AttachInput]
Context = grpc.aio.ServicerContext[Any, Any]


class Seat:
    """One session, from the order to the end of either side."""

    def __init__(self, host: str, said: Said) -> None:
        self.host = host
        self.told: Pipe[Request] = Pipe()
        self._said = said

    async def serve(self, first: Request, context: Context) -> None:
        """Pass on both ways, in the host's own call, until nobody listens."""
        try:
            async with asyncio.TaskGroup() as tasks:
                ways = [
                    tasks.create_task(self._hear(first, context), name="attached: output"),
                    tasks.create_task(self._tell(context), name="attached: input"),
                ]
                await self.told.left()
                for way in ways:
                    way.cancel()
        finally:
            self.told.end()

    async def _hear(self, first: Request, context: Context) -> None:
        message: Request | None = first
        while message is not None:
            await self.told.put(message)
            read = await context.read()
            message = read if isinstance(read, Request) else None
        self.told.end()

    async def _tell(self, context: Context) -> None:
        async for said in self._said:
            await context.write(worker_pb2.WorkerServiceAttachResponse(input=said))


class Attachments:
    """All sessions of hosts, by their secret names."""

    def __init__(self) -> None:
        self._seats: dict[str, Seat] = {}

    async def open(
        self,
        host: str,
        order: worker_pb2.AttachAttempt,
        said: Said,
        send: Callable[[worker_pb2.ServerItem], bool],
    ) -> AsyncGenerator[job_pb2.AttachOutput, None]:
        """Have a host do it, and tell what comes. Raises Retry when it does not, NoCapacity."""
        if len(self._seats) >= MOST:
            raise NoCapacity(f"{MOST} sessions are open on this server; end some, or try later")
        order.session = secrets.token_urlsafe(24)
        seat = self._seats[order.session] = Seat(host, said)
        try:
            if not send(worker_pb2.ServerItem(attach=order)):
                raise Retry(f"host {host!r} is not connected")
            yield await self._begun(seat)
            while (message := await seat.told.next()) is not None:
                yield message.output
        finally:
            seat.told.leave()
            del self._seats[order.session]

    async def _begun(self, seat: Seat) -> job_pb2.AttachOutput:
        try:
            async with asyncio.timeout(ARRIVES_WITHIN):
                first = await seat.told.next()
        except TimeoutError:
            raise Retry(
                f"host {seat.host!r} did not answer within {ARRIVES_WITHIN:g} s; its worker may be "
                "of an older version"
            ) from None
        if first is None or first.refused:
            raise Retry(first.refused if first else f"host {seat.host!r} hung up")
        return first.output

    def seat(self, session: str, host: str) -> Seat | None:
        """The one of this name, if `host` (empty: any) is who was asked."""
        seat = self._seats.get(session)
        return seat if seat is not None and host in ("", seat.host) else None

    def close(self) -> None:
        """End all."""
        for seat in self._seats.values():
            seat.told.end()
