"""Calls over the wire with nothing but the generated messages: no SDK between test and server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from server_process import HatobaServer
from waiting import PATIENCE, eventually

from hatoba.v1 import common_pb2, job_pb2

R = TypeVar("R", bound=Message)

AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
LEFT = 8
"""Channels to former servers that are kept until whoever called there has noticed."""
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    # How long one try may take: a busy server takes its time over a hand-shake.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", 32 << 20),
]
TERMINAL = frozenset(
    {
        common_pb2.JOB_STATE_SUCCEEDED,
        common_pb2.JOB_STATE_FAILED,
        common_pb2.JOB_STATE_CANCELLED,
        common_pb2.JOB_STATE_TIMED_OUT,
        common_pb2.JOB_STATE_UPSTREAM_FAILED,
    }
)


class Wire:
    """Calls to one server, dialled anew after each of its starts."""

    def __init__(
        self,
        server: HatobaServer,
        *,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._server = server
        self._token = server.token() if token is None else token
        self._credentials = credentials
        self._address = ""
        self._channel: grpc.aio.Channel | None = None
        self._left: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._channel is not None:
            self._left.append(self._channel)
            self._channel = None
        while self._left:
            await self._left.pop().close()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self._token}"),) if self._token else ()

    async def channel(self) -> grpc.aio.Channel:
        """A channel to where the server is now."""
        if self._channel is None or self._address != self._server.address:
            old, self._address = self._channel, self._server.address
            self._channel = self._dial(self._address)
            await self._leave(old)
        return self._channel

    def _dial(self, address: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=OPTIONS)
        return grpc.aio.secure_channel(address, self._credentials, options=OPTIONS)

    async def _leave(self, old: grpc.aio.Channel | None) -> None:
        """Others may have calls on it, which end as calls to a dead server do: closing it now would
        cancel whoever waits for them.
        """
        if old is not None:
            self._left.append(old)
        if len(self._left) > LEFT:
            await self._left.pop(0).close()

    # -- calls ------------------------------------------------------------------------------------

    async def once(self, request: Message, reply: type[R], *, timeout: float = 10.0) -> R:
        """One try. Raises grpc.aio.AioRpcError."""
        return (await self._answered(request, reply, timeout))[0]

    async def _answered(
        self, request: Message, reply: type[R], timeout: float
    ) -> tuple[R, dict[str, str]]:
        channel = await self.channel()
        method: grpc.aio.UnaryUnaryMultiCallable[Message, R] = channel.unary_unary(
            path_of(request),
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        call = method(request, timeout=timeout, metadata=self.metadata)
        found = await call
        trailers = {str(key): str(value) for key, value in await call.trailing_metadata() or ()}
        return found, trailers

    async def call(self, request: Message, reply: type[R], *, patience: float = PATIENCE) -> R:
        """The reply, however often the server goes away meanwhile. Only for repeatable calls."""
        return (await self.answer(request, reply, patience=patience))[0]

    async def answer(
        self, request: Message, reply: type[R], *, patience: float = PATIENCE
    ) -> tuple[R, bool]:
        """As `call`; also whether the server said that it had carried out the request before."""

        async def tried() -> tuple[R, bool] | None:
            try:
                found, trailers = await self._answered(request, reply, 5.0)
            except grpc.aio.AioRpcError as error:
                if error.code() in AWAY:
                    return None
                raise
            return found, trailers.get("hatoba-deduplicated") == "true"

        return await eventually(tried, patience)

    async def stream(self, request: Message, reply: type[R]) -> AsyncIterator[R]:
        """Messages of a server stream. Raises grpc.aio.AioRpcError."""
        channel = await self.channel()
        method: grpc.aio.UnaryStreamMultiCallable[Message, R] = channel.unary_stream(
            path_of(request),
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        call = method(request, metadata=self.metadata)
        try:
            async for message in call:
                yield message
        finally:
            call.cancel()

    # -- jobs -------------------------------------------------------------------------------------

    async def submit(self, spec: job_pb2.JobSpec, request_id: str = "") -> job_pb2.Job:
        """Submit a job; with a request id it may be tried as often as it takes."""
        request = job_pb2.SubmitJobRequest(spec=spec, request_id=request_id)
        if request_id:
            return await self.call(request, job_pb2.Job)
        return await self.once(request, job_pb2.Job)

    async def job(self, name: str) -> job_pb2.Job:
        """A job as the server knows it."""
        return await self.call(job_pb2.GetJobRequest(name=name), job_pb2.Job)

    async def cancel(self, name: str, request_id: str = "") -> job_pb2.CancelResult:
        """Want a job ended."""
        request = job_pb2.CancelJobsRequest(jobs=[name], request_id=request_id)
        return (await self.call(request, job_pb2.CancelJobsResponse)).results[0]

    async def ended(self, name: str, patience: float = PATIENCE) -> job_pb2.Job:
        """The job once it has ended, by watching its events."""
        return await self.watched(name, lambda job: job.state in TERMINAL, patience)

    async def in_state(
        self, name: str, *states: common_pb2.JobState.ValueType, patience: float = PATIENCE
    ) -> job_pb2.Job:
        """The job once it is in one of these states; raises AssertionError when it ends before."""
        job = await self.watched(
            name, lambda job: job.state in states or job.state in TERMINAL, patience
        )
        assert job.state in states, f"it ended before: {job}"
        return job

    async def watched(
        self, name: str, fits: Callable[[job_pb2.Job], bool], patience: float
    ) -> job_pb2.Job:
        """The job once it fits; looked at after each of its events."""
        return await eventually(lambda: self._watched_once(name, fits), patience)

    async def _watched_once(
        self, name: str, fits: Callable[[job_pb2.Job], bool]
    ) -> job_pb2.Job | None:
        request = job_pb2.WatchJobsRequest(jobs=[name], cursor="0")
        try:
            job = await self.job(name)
            if fits(job):
                return job
            async for message in self.stream(request, job_pb2.WatchJobsResponse):
                if message.WhichOneof("kind") == "end":
                    break
                job = await self.job(name)
                if fits(job):
                    return job
        except grpc.aio.AioRpcError as error:
            if error.code() not in AWAY:
                raise
        return None

    async def events(self, name: str) -> list[common_pb2.Event]:
        """All events of a job that has ended."""
        request = job_pb2.WatchJobsRequest(jobs=[name], cursor="0")
        stream = self.stream(request, job_pb2.WatchJobsResponse)
        return [message.event async for message in stream if message.HasField("event")]

    async def attempts(self, name: str) -> list[job_pb2.Attempt]:
        """The attempts of a job, oldest first."""
        request = job_pb2.ListAttemptsRequest(job=name, page_size=1000)
        return list((await self.call(request, job_pb2.ListAttemptsResponse)).attempts)

    async def tasks(self, name: str) -> list[job_pb2.Task]:
        """The tasks of a job."""
        request = job_pb2.ListTasksRequest(job=name, page_size=1000)
        return list((await self.call(request, job_pb2.ListTasksResponse)).tasks)

    async def log(
        self, name: str, *, stream: str = "stdout", index: int = 0, attempt: int = 0
    ) -> bytes:
        """What a task's attempt (0: the last) wrote, followed to its end; gaps are an error."""
        request = job_pb2.TailLogsRequest(
            job=name, index=index, attempt=attempt, stream=stream, follow=True
        )
        text = bytearray()
        async for piece in self.stream(request, job_pb2.TailLogsResponse):
            assert not piece.gap_bytes, piece
            if piece.data:
                assert piece.offset == len(text), f"piece at {piece.offset}, read {len(text)}"
                text += piece.data
        return bytes(text)


def path_of(request: Message) -> str:
    """`/package.Service/Method` of the one method that takes this kind of request."""
    kind = request.DESCRIPTOR
    for service in kind.file.services_by_name.values():
        for method in service.methods:
            if method.input_type.full_name == kind.full_name:
                return f"/{service.full_name}/{method.name}"
    raise ValueError(f"no method takes {kind.full_name}")


def shell(script: str, name: str = "job") -> job_pb2.JobSpec:
    """A job that runs a shell script."""
    return job_pb2.JobSpec(name=name, command=["/bin/sh", "-c", script])
