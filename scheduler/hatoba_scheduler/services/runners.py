"""RunnerService: the unary calls of runners, and everybody's log stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from hatoba.v1 import runner_pb2, runner_pb2_grpc
from hatoba_scheduler.auth.device_credentials import DeviceCaller
from hatoba_scheduler.auth.runner_scopes import RunnerToken
from hatoba_scheduler.control.assignments import Assignments
from hatoba_scheduler.control.exits import Exits, Told
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.logs import LogStore, Piece
from hatoba_scheduler.control.metrics import MetricWriter
from hatoba_scheduler.control.runners import RunnerDesk
from hatoba_scheduler.convert import set_time
from hatoba_scheduler.domain.device_jobs import speaker
from hatoba_scheduler.domain.records import Attempt
from hatoba_scheduler.errors import FailedPrecondition, PermissionDenied, Reason, Unavailable
from hatoba_scheduler.interceptors import current_call
from hatoba_scheduler.services.workers import metric_points
from hatoba_scheduler.store.base import Store

Context = grpc.aio.ServicerContext[Any, Any]
log = structlog.get_logger(__name__)


class RunnerServicer(runner_pb2_grpc.RunnerServiceServicer):
    """See proto/hatoba/v1/runner.proto."""

    def __init__(
        self,
        desk: RunnerDesk,
        ledger: Ledger,
        store: Store,
        logs: LogStore,
        metrics: MetricWriter,
        exits: Exits,
        assignments: Assignments,
    ) -> None:
        self._assignments = assignments
        self._exits = exits
        self._desk = desk
        self._ledger = ledger
        self._store = store
        self._logs = logs
        self._metrics = metrics

    async def ClaimAttempt(
        self, request: runner_pb2.ClaimAttemptRequest, context: Context
    ) -> runner_pb2.ClaimAttemptResponse:
        """May it run, what there is to run, and who it is from now on."""
        _check_host(request.attempt, self._desk.host_of(request.attempt))
        reply = await self._desk.claim(request)
        await self._assignments.complete(request, reply)
        if caller := _runner():
            self._assignments.identify(caller, reply)
        return reply

    async def Heartbeat(
        self, request: runner_pb2.HeartbeatRequest, context: Context
    ) -> runner_pb2.HeartbeatResponse:
        """It lives; what is wanted."""
        _check_host(request.attempt, self._desk.host_of(request.attempt))
        reply = await self._desk.heartbeat(request)
        caller = _runner()
        if caller and self._desk.current(request.attempt, request.fence):
            self._assignments.renew(caller, reply)
        return reply

    async def ReportMetrics(
        self, request: runner_pb2.ReportMetricsRequest, context: Context
    ) -> runner_pb2.ReportMetricsResponse:
        """Add metric points."""
        _check_host(request.attempt, self._desk.host_of(request.attempt))
        attempt = self._desk.current(request.attempt, request.fence)
        if attempt is None:
            raise _not_current(request.attempt)
        stored: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def done(good: bool) -> None:
            if not stored.done():
                stored.set_result(good)

        await self._metrics.add(metric_points(attempt, request), done)
        if not await stored:
            raise Unavailable("the metrics could not be stored; send them again")
        return runner_pb2.ReportMetricsResponse(
            attempt=request.attempt, acked_report=request.report
        )

    async def CommitCheckpoint(
        self, request: runner_pb2.CommitCheckpointRequest, context: Context
    ) -> runner_pb2.CommitCheckpointResponse:
        """Record a checkpoint."""
        _check_host(request.attempt, self._desk.host_of(request.attempt))
        return await self._desk.checkpoint(request)

    async def CommitAttempt(
        self, request: runner_pb2.CommitAttemptRequest, context: Context
    ) -> runner_pb2.CommitAttemptResponse:
        """Decide how it ended."""
        _check_host(request.attempt, self._desk.host_of(request.attempt))
        if self._desk.known(request.attempt):
            await self._know_claim(request)
            reply = await self._desk.commit(request)
            if reply.accepted:
                return reply
        # It has left memory, perhaps only just: what is stored decides.
        return await self._desk.late_commit(request)

    async def _know_claim(self, request: runner_pb2.CommitAttemptRequest) -> None:
        """A session was given to the one that was granted the attempt: where a restored store does
        not know of that claim, it does from now on."""
        attempt = self._desk.current(request.attempt, request.fence)
        if _runner() and attempt is not None and not attempt.nonce and request.nonce:
            claim = runner_pb2.ClaimAttemptRequest(
                attempt=request.attempt, fence=request.fence, nonce=request.nonce
            )
            await self._desk.claim(claim)

    async def AwaitExit(
        self, request: runner_pb2.AwaitExitRequest, context: Context
    ) -> runner_pb2.AwaitExitResponse:
        """How its container ended, as soon as that is known."""
        _check_host(request.attempt, self._desk.host_of(request.attempt))

        def live() -> bool:
            return self._desk.current(request.attempt, request.fence) is not None

        told = await self._exits.wait(request.attempt, live, gone=request.gone)
        if not live():
            raise _not_current(request.attempt)
        if told is not None and self._exits.leaves(request.attempt):
            # The runner's end is all that its log waits for to be removed.
            await self._keep_log(request.attempt)
        return _exit_reply(request.attempt, told)

    async def _keep_log(self, name: str) -> None:
        attempt = await self._attempt(name)
        source = self._logs.sources.get(attempt.backend) if attempt is not None else None
        if source is not None:
            await source.last(name)

    async def PushLogs(
        self,
        request_iterator: AsyncIterator[runner_pb2.PushLogsRequest],
        context: Context,
    ) -> AsyncIterator[runner_pb2.PushLogsResponse]:
        """Store pieces; acknowledge each."""
        async for request in request_iterator:
            yield await self._push(request)

    async def _push(self, request: runner_pb2.PushLogsRequest) -> runner_pb2.PushLogsResponse:
        attempt = await self._attempt(request.attempt)
        _check_host(request.attempt, await self._speaker(attempt))
        if attempt is None or attempt.fence != request.fence:
            return runner_pb2.PushLogsResponse(
                attempt=request.attempt, stream=request.stream, refused=True
            )
        piece = Piece(request.offset, request.data, request.gap_bytes)
        acked = await self._logs.append(attempt, request.stream, piece)
        return runner_pb2.PushLogsResponse(
            attempt=request.attempt, stream=request.stream, acked=acked
        )

    async def _speaker(self, attempt: Attempt | None) -> str:
        """Who may say what an attempt wrote, also once it has left memory."""
        if attempt is None or not attempt.host:
            return ""
        if known := self._desk.host_of(attempt.name):
            return known
        jobs = await self._store.jobs_by_uid([attempt.job_uid])
        job = jobs.get(attempt.job_uid)
        return speaker(job, attempt) if job is not None else attempt.host

    async def _attempt(self, name: str) -> Attempt | None:
        where = self._ledger.find_attempt(name)
        rows = self._ledger.rows(where[0]) if where else None
        if where is not None and rows is not None:
            return rows.attempts.get(where[1])
        return await self._store.attempt(name)


def _runner() -> RunnerToken | None:
    """Who calls, when it is a runner elsewhere."""
    token = current_call().token
    return token if isinstance(token, RunnerToken) else None


def _check_host(attempt: str, host: str) -> None:
    """Refuse a host that speaks of what was sent to another; raises PermissionDenied."""
    token = current_call().token
    if token is None or not token.host or host in ("", token.host):
        return
    log.warning("host.foreign_attempt", host=token.host, attempt=attempt)
    if isinstance(token, DeviceCaller):
        token.spoke_for(host, current_call().method, f"attempt {attempt} is not its own")
    raise PermissionDenied(
        f"{token.principal} does not speak for attempt {attempt}, which was sent to {host!r}",
        reason=Reason.NOT_YOUR_HOST,
        metadata={"host": host, "principal": token.principal},
    )


def _not_current(attempt: str) -> FailedPrecondition:
    return FailedPrecondition(f"attempt {attempt} is not current", reason=Reason.NOT_CURRENT)


def _exit_reply(attempt: str, told: Told | None) -> runner_pb2.AwaitExitResponse:
    reply = runner_pb2.AwaitExitResponse(attempt=attempt, known=runner_pb2.EXIT_KNOWN_NOT_YET)
    if told is not None:
        ending = told.ending
        reply.known = runner_pb2.EXIT_KNOWN_ENDED
        reply.kind = runner_pb2.ExitKind.ValueType(ending.kind.value)
        reply.exit_code, reply.signal, reply.message = ending.code, ending.signal, ending.message
        if told.time:
            set_time(reply.time, told.time)
    return reply
