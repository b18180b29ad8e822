"""The server's feed of deployments, and what goes back: acknowledgements, figures, predictions."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import grpc.aio
import structlog

from hatoba.v1 import deployment_pb2, deployment_pb2_grpc
from hatoba_worker.dial import Connection, Locator, NoServer, connection
from hatoba_worker.router.figures import Figures, Statistics
from hatoba_worker.router.passport import Passport
from hatoba_worker.router.reports import Reports, ServerAway
from hatoba_worker.router.table import Table
from hatoba_worker.router.table_file import FILE, keep
from hatoba_worker.session import Backoff

log = structlog.get_logger(__name__)

SAY_EVERY = 2.0
"""Seconds between two signs of life; the server counts on one in 5 s."""
_FIRST_WORD = 15.0
_LOOK = 0.25
_SEND = 30.0
# The batch itself is wrong: it will not be taken later either.
_FOR_GOOD = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
}

Call = grpc.aio.StreamStreamCall[
    deployment_pb2.WatchDeploymentsRequest, deployment_pb2.WatchDeploymentsResponse
]


@dataclass(frozen=True, slots=True)
class Around:
    """What the feed feeds, and what it takes with it."""

    table: Table
    figures: Figures
    statistics: Statistics
    reports: Reports
    settled: Callable[[], Awaitable[None]]
    """Returns once what was decided by the last table is on its way."""
    passport: Passport


class Feed:
    """Follows the server until cancelled; dials again whenever the stream ends."""

    def __init__(
        self,
        locator: Locator,
        data: Path,
        url: str,
        around: Around,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._locator = locator
        self._path = data / FILE
        self._url = url
        self._around = around
        self._sleep = sleep
        self._backoff = Backoff(random.random)
        self._router = uuid.uuid4().hex
        self._acked = 0
        self._word = asyncio.Event()
        self.connected = False

    async def run(self) -> None:
        """See the class."""
        self._acked = self._around.table.cursor
        while True:
            stamp = await asyncio.to_thread(self._locator.stamp)
            try:
                await self._once()
            except (NoServer, ServerAway) as error:
                log.info("server.away", reason=str(error))
            finally:
                self.connected = False
            await self._rest(self._backoff.next(), stamp)

    async def _rest(self, seconds: float, stamp: int) -> None:
        """Wait, but not on when an embedded server has come up meanwhile."""
        while seconds > 0 and await asyncio.to_thread(self._locator.stamp) == stamp:
            await self._sleep(min(seconds, _LOOK))
            seconds -= _LOOK

    async def _once(self) -> None:
        target = await asyncio.to_thread(self._locator.find)
        async with connection(target) as link:
            stub = deployment_pb2_grpc.DeploymentServiceStub(link.control)
            call = stub.WatchDeployments(metadata=link.metadata)
            try:
                await self._say(call, first=True)
                await self._hear(call, link, _FIRST_WORD)
                self._backoff.reset()
                self.connected = True
                log.info("server.connected", address=target.address)
                await self._follow(call, link)
            finally:
                call.cancel()

    async def _follow(self, call: Call, link: Connection) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._hear_on(call, link), name="router feed")
                tasks.create_task(self._say_on(call, link), name="router acknowledgements")
                tasks.create_task(self._report_on(link), name="router reports")
        except ExceptionGroup as group:
            away, others = group.split(ServerAway)
            if away is None or others is not None:
                raise
            raise ServerAway(str(away.exceptions[0])) from group

    async def _hear_on(self, call: Call, link: Connection) -> None:
        while True:
            await self._hear(call, link, None)

    async def _hear(self, call: Call, link: Connection, within: float | None) -> None:
        """Go by the next message; raises ServerAway."""
        try:
            async with asyncio.timeout(within):
                message = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
            raise _away(error) from error
        if not isinstance(message, deployment_pb2.WatchDeploymentsResponse):
            raise ServerAway("the server ended the stream")
        await self._around.passport.ensure(link, message)
        self._around.figures.forget(self._around.table.apply(message))
        # A replica may end once it is acknowledged that it gets nothing new: neither a request that
        # is on its way there, nor the next start, may go by the table before.
        await self._around.settled()
        await asyncio.to_thread(keep, self._path, self._around.table.message())
        self._acked = message.cursor
        self._word.set()

    async def _say_on(self, call: Call, link: Connection) -> None:
        """Acknowledge at once, and be heard of when there is nothing to acknowledge."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAY_EVERY):
                    await self._word.wait()
            self._word.clear()
            await self._say(call)
            await self._around.passport.renew(link)

    async def _report_on(self, link: Connection) -> None:
        """Deliver what is kept; a server that takes none of it now is not left for that."""
        backoff = Backoff(random.random)
        while True:
            try:
                await self._around.reports.serve(partial(_report, link))
            except ServerAway as error:
                log.info("report.delayed", reason=str(error))
            await self._sleep(backoff.next())

    async def _say(self, call: Call, *, first: bool = False) -> None:
        request = deployment_pb2.WatchDeploymentsRequest(acked=self._acked)
        if first:
            request.router, request.url = self._router, self._url
        rows = self._around.statistics.take()
        request.statistics.extend(rows)
        try:
            # A write on a stream whose server just went may wait for ever.
            async with asyncio.timeout(_FIRST_WORD):
                await call.write(request)
            rows = []
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
            raise _away(error) from error
        finally:
            self._around.statistics.give_back(rows)


def _away(error: Exception) -> ServerAway:
    if isinstance(error, grpc.aio.AioRpcError):
        return ServerAway(f"{error.code().name}: {error.details()}")
    return ServerAway("the stream ended, or nothing came of it")


async def _report(
    link: Connection, request: deployment_pb2.ReportPredictionsRequest
) -> deployment_pb2.ReportPredictionsResponse | None:
    """Deliver one batch; None when it is refused for good. Raises ServerAway."""
    stub = deployment_pb2_grpc.DeploymentServiceStub(link.bulk)
    try:
        return await stub.ReportPredictions(request, metadata=link.metadata, timeout=_SEND)
    except grpc.aio.AioRpcError as error:
        if error.code() not in _FOR_GOOD:
            raise _away(error) from error
        log.warning("report.refused", code=error.code().name, details=error.details())
        return None
