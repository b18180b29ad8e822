"""One channel to one server: deadlines, token, typed errors, retries and streams that can be
resumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from hatoba.errors import Exhausted, HatobaError, InvalidSpec, Unavailable, from_rpc
from hatoba.settings import Server
from hatoba.streams import open_stream
from hatoba.tracing import Tracer
from hatoba.v1 import admin_pb2

R = TypeVar("R", bound=Message)

READ_VERBS = (
    "Get",
    "List",
    "Count",
    "Query",
    "Find",
    "Watch",
    "Tail",
    "Download",
    "Diff",
    "Explain",
    "Plan",
)
# First wait, growth and longest wait between tries of a unary call; after four tries it has failed.
RETRY_WAITS = (0.2, 0.4, 0.8)
MAX_RETRY_WAIT = 5.0
STREAM_WAITS = (0.1, 2.0)
TOO_MUCH_AT_ONCE = frozenset({"RATE_LIMITED", "TOO_MANY_CALLS"})
GRPC_IS_FULL = "Concurrent RPC limit exceeded"
CALL_SECONDS = 30.0
PUSH_SECONDS = 1.0
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]


@dataclass(frozen=True)
class Timing:
    """How to wait and how to spread waits; tests put their own here."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random


class Transport:
    """Calls and streams to the server that `locate` finds, asked again when it cannot be reached.

    An embedded server has another port after each start, so an address is never taken for granted.
    `locate` finds it first, `again` later (None: it is not there now); both may block.
    """

    def __init__(
        self,
        locate: Callable[[], Server],
        *,
        again: Callable[[], Server | None] | None = None,
        tracer: Tracer | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._locate = locate
        self._again = again or locate
        self._timing = timing or Timing()
        self.tracer = tracer or Tracer()
        self.server = Server("")
        # Told once for all streams of the connection.
        self.away = False
        self._channel: grpc.aio.Channel | None = None
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        await self._connect(await asyncio.to_thread(self._locate))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The group is not told of the caller's error: it would wrap it into an exception group.
        await self._tasks.__aexit__(None, None, None)
        await self._push_spans()
        await self._close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The open channel; valid until the server is looked up again."""
        if self._channel is None:
            raise RuntimeError("the client is not open: use `async with`")
        return self._channel

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries: the token, and the open trace if there is one."""
        pairs = []
        if self.server.token:
            pairs.append(("authorization", f"Bearer {self.server.token}"))
        if self.tracer.current is not None:
            pairs.append(("traceparent", self.tracer.current.traceparent))
        return tuple(pairs)

    async def call(self, request: Message, reply: type[R], *, timeout: float = CALL_SECONDS) -> R:
        """Make the one call that takes this kind of request. `timeout` is in seconds, for each try.

        A request id is added where there is room for one. Reads, and calls that carry an id, are
        tried again when the server does not answer or has too much to do, after the delay that it
        told; others never. Raises a HatobaError.
        """
        add_request_id(request)
        path = method_path(request.DESCRIPTOR)
        if is_read(request.DESCRIPTOR):
            return await self._tries(path, request, reply, timeout)
        with self.tracer.span(path.lstrip("/"), "client"):
            answer = await self._tries(path, request, reply, timeout)
        self._push_later()
        return answer

    async def _tries(self, path: str, request: Message, reply: type[R], timeout: float) -> R:
        waits = RETRY_WAITS if is_repeatable(request) else ()
        for wait in waits:
            try:
                return await self._once(path, request, reply, timeout)
            except Unavailable as away:
                await self.pause(away.details.retry_after or wait)
                await self.relocate()
            except Exhausted as busy:
                if not passes(busy):
                    raise
                await self.wait_out(busy.details.retry_after or wait)
        return await self._once(path, request, reply, timeout)

    async def _once(self, path: str, request: Message, reply: type[R], timeout: float) -> R:
        method: grpc.aio.UnaryUnaryMultiCallable[Message, R] = self.channel.unary_unary(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            return await method(request, timeout=timeout, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.server.address) from None

    async def stream(self, request: Message, reply: type[R]) -> AsyncGenerator[R, None]:
        """Messages of a server stream until it ends. The call is cancelled when the reader
        leaves.
        """
        method: grpc.aio.UnaryStreamMultiCallable[Message, R] = self.channel.unary_stream(
            method_path(request.DESCRIPTOR),
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            async with open_stream(method(request, metadata=self.metadata)) as call:
                async for message in call:
                    yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.server.address) from None

    async def exchange(
        self, requests: AsyncIterator[Message], asked: type[Message], reply: type[R]
    ) -> AsyncGenerator[R, None]:
        """Messages of a stream both ways until it ends. The call is cancelled when the reader
        leaves.
        """
        method: grpc.aio.StreamStreamMultiCallable[Message, R] = self.channel.stream_stream(
            method_path(asked.DESCRIPTOR),
            request_serializer=asked.SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            async with open_stream(method(requests, metadata=self.metadata)) as call:
                async for message in call:
                    yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.server.address) from None

    async def pause(self, seconds: float) -> None:
        """Wait between half and all of `seconds`, at most 5."""
        await self._timing.sleep(min(seconds, MAX_RETRY_WAIT) * (0.5 + self._timing.jitter() / 2))

    async def wait_out(self, seconds: float) -> None:
        """Wait for `seconds`, as the server said, and up to half as long again; at most 5."""
        await self._timing.sleep(min(seconds * (1 + self._timing.jitter() / 2), MAX_RETRY_WAIT))

    async def relocate(self) -> None:
        """Look the server up again, and go to its new address if it has one."""
        with contextlib.suppress(HatobaError):
            found = await asyncio.to_thread(self._again)
            if found is not None and found != self.server:
                await self._close()
                await self._connect(found)

    async def _connect(self, server: Server) -> None:
        self.server = server
        trusted = await asyncio.to_thread(credentials, server.ca_file) if server.tls else None
        self._channel = open_channel(server.address, trusted)

    async def _close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def _push_later(self) -> None:
        """Send ended spans beside what the caller does next, once the outermost one has ended."""
        if self.tracer.inside:
            return
        self._tasks.create_task(self._push_spans(), name="push spans")

    async def _push_spans(self) -> None:
        spans = self.tracer.take()
        if not spans or self._channel is None:
            return
        request = admin_pb2.PushSpansRequest(spans=spans)
        path = method_path(request.DESCRIPTOR)
        with contextlib.suppress(HatobaError):
            await self._once(path, request, admin_pb2.PushSpansResponse, PUSH_SECONDS)

    def flush_spans(self) -> None:
        """Begin to send the spans that have ended; for callers that made an outer one."""
        self._push_later()


def open_channel(address: str, trusted: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """A channel with keepalive; plain without credentials."""
    if trusted is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, trusted, options=CHANNEL_OPTIONS)


def credentials(ca_file: str) -> grpc.ChannelCredentials:
    """What a server's certificate is held against: a file's authority, or the public ones. Blocks.

    Raises InvalidSpec for a file that cannot be read.
    """
    if not ca_file:
        return grpc.ssl_channel_credentials()
    try:
        return grpc.ssl_channel_credentials(Path(ca_file).expanduser().read_bytes())
    except OSError as error:
        raise InvalidSpec(f"the CA file {ca_file} cannot be read: {error.strerror}") from None


def add_request_id(request: Message) -> None:
    """Give a request that has room for an id, and none yet, a random one."""
    if "request_id" in request.DESCRIPTOR.fields_by_name and not getattr(request, "request_id"):  # noqa: B009
        setattr(request, "request_id", uuid.uuid4().hex)  # noqa: B010


def passes(error: Exhausted) -> bool:
    """Whether it was refused for being too much at once, before anything of it was done."""
    return error.reason in TOO_MUCH_AT_ONCE or error.message.startswith(GRPC_IS_FULL)


def is_repeatable(request: Message) -> bool:
    """Whether doing it twice is the same as once: a read, or a call whose every part has an id."""
    if is_read(request.DESCRIPTOR) or bool(getattr(request, "request_id", "")):
        return True
    items = list(getattr(request, "items", ()))
    return bool(items) and all(bool(item.request_id) for item in items)


@lru_cache(maxsize=256)
def is_read(request: Descriptor) -> bool:
    """Whether a kind of request changes nothing, by its verb."""
    return request.name.startswith(READ_VERBS)


@lru_cache(maxsize=256)
def method_path(request: Descriptor) -> str:
    """`/package.Service/Method` of the one method that takes this kind of request."""
    for service in request.file.services_by_name.values():
        for method in service.methods:
            if method.input_type.full_name == request.full_name:
                return f"/{service.full_name}/{method.name}"
    raise ValueError(f"no method takes {request.full_name}")


def stream_waits() -> list[float]:
    """Waits between tries of a broken stream; the last one is repeated."""
    first, longest = STREAM_WAITS
    waits = []
    while first < longest:
        waits.append(first)
        first *= 2
    return [*waits, longest]
