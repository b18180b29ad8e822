"""A server for runners of images and pods, in this process: the calls of RunnerService, unary.

It remembers what was said like the worker's scripted server, whose logs and trees it shares.
"""

from __future__ import annotations

import time
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from scripted_server import GRANTED, ScriptedServer

from hatoba.v1 import admin_pb2, job_pb2, runner_pb2, worker_pb2

LAUNCH_CREDENTIAL = "hr_launch"
FENCE = 1


class RunnerDesk(ScriptedServer):
    """Grants the claim of each attempt in `launches` to one nonce; sessions expire when told."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: dict[str, worker_pb2.LaunchAttempt] = {}
        self.spans: list[job_pb2.Span] = []
        self.orders: dict[str, runner_pb2.HeartbeatResponse] = {}
        self.exits: dict[str, runner_pb2.AwaitExitResponse] = {}
        self.accepts = True
        self.current = True
        self.session = "hr_session_1"
        self.claims_denied = False
        self.waits = 0
        self.members: dict[str, tuple[str, ...]] = {}

    def expect(self, attempt: str, *command: str, **fields: Any) -> worker_pb2.LaunchAttempt:
        """What a claim of this attempt is answered."""
        launch = worker_pb2.LaunchAttempt(
            attempt=attempt,
            fence=FENCE,
            job="projects/default/jobs/test-1",
            number=1,
            task_count=1,
            command=command,
            job_uid="0" * 32,
            **fields,
        )
        self.launches[attempt] = launch
        return launch

    def register(self, server: grpc.aio.Server) -> None:
        """Take in spans too."""
        method = grpc.unary_unary_rpc_method_handler(
            self._push_spans,
            request_deserializer=admin_pb2.PushSpansRequest.FromString,
            response_serializer=admin_pb2.PushSpansResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(
            "hatoba.v1.AdminService", {"PushSpans": method}
        )
        server.add_generic_rpc_handlers((handler,))

    async def _push_spans(
        self, request: admin_pb2.PushSpansRequest, context: Any
    ) -> admin_pb2.PushSpansResponse:
        self.spans += request.spans
        self.heard.changed()
        return admin_pb2.PushSpansResponse()

    def expire(self) -> None:
        """Sessions so far open nothing more; the next claim is given another."""
        self.session = f"hr_session_{time.monotonic_ns()}"

    async def _shown(self, context: Any, wanted: str) -> None:
        if ("authorization", f"Bearer {wanted}") not in context.invocation_metadata():
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the credential has expired")

    # -- RunnerService --------------------------------------------------------------------------

    async def ClaimAttempt(
        self, request: runner_pb2.ClaimAttemptRequest, context: Any
    ) -> runner_pb2.ClaimAttemptResponse:
        if self.claims_denied:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not this attempt's credential")
        await self._shown(context, LAUNCH_CREDENTIAL)
        answer = self._claim(request)
        self.heard.add(worker_pb2.WorkerItem(claim=request))
        if answer.verdict == GRANTED and self.waits:
            self.waits -= 1
            answer.verdict = runner_pb2.CLAIM_VERDICT_WAIT
            answer.retry_after.FromMilliseconds(5)
        if answer.verdict == GRANTED:
            answer.assignment.Pack(self.launches[request.attempt])
            answer.credential = self.session
            for index, address in enumerate(self.members.get(request.attempt, ())):
                answer.members.add(index=index, address=address)
        return answer

    async def Heartbeat(
        self, request: runner_pb2.HeartbeatRequest, context: Any
    ) -> runner_pb2.HeartbeatResponse:
        await self._shown(context, self.session)
        self.heard.add(worker_pb2.WorkerItem(heartbeat=request))
        plain = runner_pb2.HeartbeatResponse(
            attempt=request.attempt, order=runner_pb2.RUNNER_ORDER_RUN
        )
        return self.orders.get(request.attempt, plain)

    async def ReportMetrics(
        self, request: runner_pb2.ReportMetricsRequest, context: Any
    ) -> runner_pb2.ReportMetricsResponse:
        await self._shown(context, self.session)
        await self._fenced(context)
        self.heard.add(worker_pb2.WorkerItem(metrics=request))
        return runner_pb2.ReportMetricsResponse(
            attempt=request.attempt, acked_report=request.report
        )

    async def _fenced(self, context: Any) -> None:
        if not self.current:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "attempt is not current",
                trailing_metadata=(("grpc-status-details-bin", _reason("NOT_CURRENT")),),
            )

    async def CommitCheckpoint(
        self, request: runner_pb2.CommitCheckpointRequest, context: Any
    ) -> runner_pb2.CommitCheckpointResponse:
        await self._shown(context, self.session)
        self.heard.add(worker_pb2.WorkerItem(checkpoint=request))
        return runner_pb2.CommitCheckpointResponse(
            attempt=request.attempt, step=request.step, accepted=True
        )

    async def CommitAttempt(
        self, request: runner_pb2.CommitAttemptRequest, context: Any
    ) -> runner_pb2.CommitAttemptResponse:
        await self._shown(context, self.session)
        self.heard.add(worker_pb2.WorkerItem(commit=request))
        return runner_pb2.CommitAttemptResponse(attempt=request.attempt, accepted=self.accepts)

    async def AwaitExit(
        self, request: runner_pb2.AwaitExitRequest, context: Any
    ) -> runner_pb2.AwaitExitResponse:
        await self._shown(context, self.session)
        self.heard.changed()
        not_yet = runner_pb2.AwaitExitResponse(
            attempt=request.attempt, known=runner_pb2.EXIT_KNOWN_NOT_YET
        )
        return self.exits.get(request.attempt, not_yet)


def _reason(word: str) -> bytes:
    """A google.rpc.Status whose ErrorInfo has this reason."""
    status = status_pb2.Status(code=9, message="attempt is not current")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=word, domain="hatoba"))
    data: bytes = status.SerializeToString()
    return data
