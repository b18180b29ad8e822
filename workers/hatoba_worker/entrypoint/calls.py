"""Unary calls to the server: each answered, refused for good, or to be tried again."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import grpc
import grpc.aio
import structlog

from hatoba.errors import from_rpc
from hatoba.v1 import admin_pb2, admin_pb2_grpc, job_pb2, runner_pb2, runner_pb2_grpc
from hatoba_worker.dial import Connection, Target, connection
from hatoba_worker.entrypoint.keys import Keys
from hatoba_worker.failures import Away

log = structlog.get_logger(__name__)
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
SECONDS = 30.0
"""A call has so long; a longer one is taken for lost and made again."""
COMMIT_SECONDS = 120.0
EXIT_SECONDS = 45.0
"""The server answers after 30 s at the latest."""
_DENIED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_NOT_CURRENT = "NOT_CURRENT"
_MALFORMED = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE})


class Superseded(Exception):
    """The attempt is not this runner's any more."""


class Denied(Exception):
    """The credential does not open this call; the message has the server's reason."""


class Malformed(Exception):
    """The server will never take this request."""


class Method(Protocol[R_co]):
    """A call that is made later, over whichever connection there is then."""

    def __call__(self, link: Connection, seconds: float) -> Awaitable[R_co]:
        """Make it."""


class Calls:
    """The calls of one attempt's runner, over one connection for its whole life.

    All raise Away when the server is not there, or not ready; the same again may work later.
    """

    def __init__(self, target: Target, keys: Keys, attempt: str, fence: int) -> None:
        self._target = target
        self._keys = keys
        self._attempt = attempt
        self._fence = fence
        self._link: Connection | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Channels to the server, which come and go by themselves."""
        target = dataclasses.replace(self._target, credential=lambda: self._keys.credential)
        async with connection(target) as link:
            self._link = link
            yield

    async def link(self) -> Connection:
        """The connection, which shows the newest credential."""
        assert self._link is not None
        return self._link

    async def claim(self, address: str) -> runner_pb2.ClaimAttemptResponse:
        """Ask to run the attempt, with the credential it was launched with; raises Denied."""
        request = runner_pb2.ClaimAttemptRequest(
            attempt=self._attempt,
            fence=self._fence,
            nonce=self._keys.nonce,
            address=address,
            want_assignment=True,
        )
        launched = (("authorization", f"Bearer {self._target.token}"),)
        answer = await _once(
            lambda link, seconds: _stub(link).ClaimAttempt(
                request, timeout=seconds, metadata=launched
            ),
            await self.link(),
        )
        self._keys.renew(answer.credential)
        return answer

    async def heartbeat(self, request: runner_pb2.HeartbeatRequest) -> runner_pb2.HeartbeatResponse:
        """Say that it lives; raises Superseded."""
        answer = await self._call(
            lambda link, seconds: _stub(link).Heartbeat(
                request, timeout=seconds, metadata=link.metadata
            )
        )
        self._keys.renew(answer.credential)
        return answer

    async def metrics(
        self, request: runner_pb2.ReportMetricsRequest
    ) -> runner_pb2.ReportMetricsResponse:
        """Add points; raises Superseded and Malformed."""
        return await self._call(
            lambda link, seconds: _stub(link).ReportMetrics(
                request, timeout=seconds, metadata=link.metadata
            )
        )

    async def checkpoint(
        self, request: runner_pb2.CommitCheckpointRequest
    ) -> runner_pb2.CommitCheckpointResponse:
        """Record a checkpoint; raises Superseded and Malformed."""
        return await self._call(
            lambda link, seconds: _stub(link).CommitCheckpoint(
                request, timeout=seconds, metadata=link.metadata
            )
        )

    async def commit(
        self, request: runner_pb2.CommitAttemptRequest
    ) -> runner_pb2.CommitAttemptResponse:
        """Decide how it ended; raises Superseded and Malformed."""
        return await self._call(
            lambda link, seconds: _stub(link).CommitAttempt(
                request, timeout=seconds, metadata=link.metadata
            ),
            COMMIT_SECONDS,
        )

    async def await_exit(self, *, gone: bool) -> runner_pb2.AwaitExitResponse:
        """How the user's container ended, if it is known within 30 s; `gone`: nothing of it runs
        any more. Raises Superseded.
        """
        request = runner_pb2.AwaitExitRequest(attempt=self._attempt, fence=self._fence, gone=gone)
        return await self._call(
            lambda link, seconds: _stub(link).AwaitExit(
                request, timeout=seconds, metadata=link.metadata
            ),
            EXIT_SECONDS,
        )

    async def spans(self, spans: list[job_pb2.Span]) -> None:
        """Add spans."""
        request = admin_pb2.PushSpansRequest(spans=spans)
        await self._call(
            lambda link, seconds: admin_pb2_grpc.AdminServiceStub(link.control).PushSpans(
                request, timeout=seconds, metadata=link.metadata
            )
        )

    async def last_spans(self, spans: list[job_pb2.Span], seconds: float) -> None:
        """Add spans if that can be done now: nobody comes after us who could."""
        try:
            async with asyncio.timeout(seconds):
                await self.spans(spans)
        except (Away, Malformed, Superseded, TimeoutError) as error:
            log.info("spans.lost", spans=len(spans), reason=str(error))

    async def _call(self, method: Method[R], seconds: float = SECONDS) -> R:
        try:
            return await _once(method, await self.link(), seconds)
        except Denied as denied:
            await self._claim_again(denied)
        try:
            return await _once(method, await self.link(), seconds)
        except Denied as denied:
            raise Away(str(denied)) from denied

    async def _claim_again(self, denied: Denied) -> None:
        """A credential that was out of reach for too long has expired: the nonce gets another."""
        log.info("credential.refused", reason=str(denied))
        try:
            answer = await self.claim("")
        except Denied as error:
            raise Away(str(error)) from error
        if answer.verdict != runner_pb2.CLAIM_VERDICT_GRANTED:
            raise Superseded(runner_pb2.ClaimVerdict.Name(answer.verdict))


async def _once(method: Method[R], link: Connection, seconds: float = SECONDS) -> R:
    try:
        # The deadline of the call does not end one whose channel hangs.
        async with asyncio.timeout(seconds + 5.0):
            return await method(link, seconds)
    except grpc.aio.AioRpcError as error:
        raise _failure(error) from error
    except (TimeoutError, grpc.aio.UsageError) as error:
        raise Away("the call was not answered") from error


def _failure(error: grpc.aio.AioRpcError) -> Exception:
    code, words = error.code(), f"{error.code().name}: {error.details()}"
    if code in _DENIED:
        return Denied(words)
    if from_rpc(error).reason == _NOT_CURRENT:
        return Superseded(words)
    if code in _MALFORMED:
        return Malformed(words)
    return Away(words)


def _stub(link: Connection) -> runner_pb2_grpc.RunnerServiceAsyncStub:
    stub: runner_pb2_grpc.RunnerServiceAsyncStub = runner_pb2_grpc.RunnerServiceStub(link.control)
    return stub
