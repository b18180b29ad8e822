"""A real grpc.aio server behind the front, with a servicer that does what each test asks."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2, status_pb2

from hatoba.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    runner_pb2,
    runner_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from hatoba_scheduler.auth import Authenticator, Role
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.interceptors import (
    Admission,
    CallLimits,
    Front,
    Phase,
    server_options,
)
from hatoba_scheduler.telemetry.logging import configure_logging
from hatoba_scheduler.telemetry.metrics import ServerMetrics
from hatoba_scheduler.telemetry.tracing import FinishedSpan, Tracer

MAX_BYTES = 100_000
UNARY_SECONDS = 0.2

Unary = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


class MemoryTokens:
    """A token store that forgets."""

    def __init__(self) -> None:
        self.rows: dict[str, TokenRecord] = {}

    async def tokens(self) -> list[TokenRecord]:
        return list(self.rows.values())

    async def put_token(self, token: TokenRecord) -> None:
        self.rows[token.id] = token


@dataclass
class Script:
    """What the servicers do; tests put their own in."""

    unary: Unary | None = None
    stream: Callable[[Any, Any], Any] | None = None
    seen: list[Any] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)


class Jobs(job_pb2_grpc.JobServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def SubmitJob(self, request: Any, context: Any) -> Any:
        self._script.seen.append(request)
        if self._script.unary is not None:
            return await self._script.unary(request, context)
        return job_pb2.Job(name=request.spec.name)

    async def SubmitJobs(self, request: Any, context: Any) -> Any:
        return job_pb2.SubmitJobsResponse()

    async def GetJob(self, request: Any, context: Any) -> Any:
        return await self.SubmitJob(request, context)

    async def WatchJobs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Generator style."""
        # A test writes the next call's script as soon as it has read something of this one.
        stream = self._script.stream
        try:
            yield job_pb2.WatchJobsResponse(cursor="1")
            self._script.entered.set()
            if stream is not None:
                async with aclosing(stream(request, context)) as replies:
                    async for reply in replies:
                        yield reply
        finally:
            self._script.left.set()

    async def TailLogs(self, request: Any, context: Any) -> None:  # type: ignore[override]
        """Read/write style."""
        stream = self._script.stream
        try:
            await context.write(job_pb2.TailLogsResponse(data=b"1"))
            self._script.entered.set()
            if stream is not None:
                await stream(request, context)
        finally:
            self._script.left.set()


class Workers(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def Connect(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        """Read/write style, both ways."""
        while (request := await context.read()) is not grpc.aio.EOF:
            self._script.seen.append(request)
            await context.write(worker_pb2.WorkerServiceConnectResponse())


class Runners(runner_pb2_grpc.RunnerServiceServicer):
    async def PushLogs(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Generator style, both ways."""
        async for request in requests:
            yield runner_pb2.PushLogsResponse(
                attempt=request.attempt, acked=request.offset + len(request.data)
            )


class Artifacts(artifact_pb2_grpc.ArtifactServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    async def CollectGarbage(self, request: Any, context: Any) -> Any:
        self._script.entered.set()
        await self._script.left.wait()
        return artifact_pb2.CollectGarbageResponse()

    async def UploadChunks(self, requests: Any, context: Any) -> Any:
        sizes = [len(request.data) async for request in requests]
        return artifact_pb2.UploadChunksResponse(chunks=len(sizes), bytes=sum(sizes))


class Clock:
    """Microseconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000_000

    def __call__(self) -> int:
        return self.now


@dataclass
class Harness:
    """The server, and a channel to it."""

    script: Script
    authenticator: Authenticator
    admission: Admission
    metrics: ServerMetrics
    spans: asyncio.Queue[FinishedSpan]
    clock: Clock
    server: grpc.aio.Server
    channel: grpc.aio.Channel
    tokens: dict[Role, str]
    records: dict[Role, TokenRecord]

    def metadata(self, role: Role = Role.ADMIN, /, **more: str) -> tuple[tuple[str, str], ...]:
        """Headers of a caller with this role."""
        extra = tuple((key.replace("_", "-"), value) for key, value in more.items())
        return (("authorization", f"Bearer {self.tokens[role]}"), *extra)

    @property
    def jobs(self) -> job_pb2_grpc.JobServiceAsyncStub:
        return job_pb2_grpc.JobServiceStub(self.channel)

    async def raw(self, method: str, body: bytes, metadata: Any = ()) -> Any:
        """A unary call of any bytes."""
        call: Any = self.channel.unary_unary(f"/{method}")
        return await call(body, metadata=metadata)

    async def submit(self, role: Role = Role.ADMIN, /, **more: str) -> job_pb2.Job:
        """A good SubmitJob."""
        return await self.jobs.SubmitJob(good_submit(), metadata=self.metadata(role, **more))

    def calls(self, method: str, code: str) -> float:
        """How many calls of the method the metrics say ended so."""
        value = self.metrics.registry.get_sample_value(
            "rpc_server_call_duration_seconds_count",
            {"rpc_method": method, "rpc_response_status_code": code},
        )
        return value or 0.0

    def active(self, method: str) -> float:
        """How many calls of the method the metrics say are live."""
        return (
            self.metrics.registry.get_sample_value(
                "rpc_server_active_calls", {"rpc_method": method}
            )
            or 0.0
        )

    async def span(self) -> FinishedSpan:
        """The next span to end; the server ends it just after the client knows."""
        async with asyncio.timeout(5):
            return await self.spans.get()


def good_submit() -> job_pb2.SubmitJobRequest:
    """A submit that keeps every rule."""
    return job_pb2.SubmitJobRequest(spec=job_pb2.JobSpec(name="digits", command=["true"]))


@dataclass(frozen=True)
class Failure:
    """A refused call as its caller sees it."""

    code: grpc.StatusCode
    message: str
    details: Sequence[Any]

    def find(self, kind: type[Any]) -> Any:
        """The detail of this type; StopIteration when it is not there."""
        return next(detail for detail in self.details if isinstance(detail, kind))

    @property
    def reason(self) -> str:
        return str(self.find(error_details_pb2.ErrorInfo).reason)

    @property
    def fields(self) -> list[str]:
        return [
            violation.field
            for violation in self.find(error_details_pb2.BadRequest).field_violations
        ]


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """Read the status and details of a failed call."""
    metadata = dict(error.trailing_metadata())
    raw = metadata.get("grpc-status-details-bin", b"")
    status = status_pb2.Status.FromString(raw if isinstance(raw, bytes) else raw.encode())
    details = [_unpacked(detail) for detail in status.details]
    if raw:
        assert status.code == error.code().value[0]
        assert status.message == error.details()
    return Failure(error.code(), error.details() or "", details)


def _unpacked(detail: Any) -> Any:
    message = getattr(error_details_pb2, detail.type_url.rpartition(".")[2])()
    assert detail.Unpack(message)
    return message


async def failing(call: Awaitable[Any]) -> Failure:
    """The failure that a call must end with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return failure_of(caught.value)


async def collect(stream: Any) -> list[Any]:
    """All messages of a stream."""
    return [message async for message in stream]


@asynccontextmanager
async def serving(limits: CallLimits) -> AsyncIterator[Harness]:
    """A server on a free port with a token of every role."""
    clock, spans, script = Clock(), asyncio.Queue[FinishedSpan](), Script()
    authenticator = Authenticator(MemoryTokens(), clock)
    await authenticator.load()
    made = {role: await authenticator.create(role.name.lower(), role) for role in Role}
    admission, metrics = Admission(Phase.SERVING), ServerMetrics()
    tracer = Tracer([spans.put_nowait])
    front = Front(authenticator, tracer, metrics, admission, limits=limits)
    server = grpc.aio.server(interceptors=[front], options=server_options(MAX_BYTES))
    job_pb2_grpc.add_JobServiceServicer_to_server(Jobs(script), server)  # type: ignore[abstract]
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(Workers(script), server)  # type: ignore[abstract]
    runner_pb2_grpc.add_RunnerServiceServicer_to_server(Runners(), server)  # type: ignore[abstract]
    artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(Artifacts(script), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Harness(
                script,
                authenticator,
                admission,
                metrics,
                spans,
                clock,
                server,
                channel,
                {role: text for role, (_, text) in made.items()},
                {role: record for role, (record, _) in made.items()},
            )
    finally:
        await server.stop(None)


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the server writes to its log."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    configure_logging("info", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
async def front(logged: io.StringIO) -> AsyncIterator[Harness]:
    """A server whose limits are small enough to reach."""
    async with serving(CallLimits(MAX_BYTES, UNARY_SECONDS)) as harness:
        yield harness
