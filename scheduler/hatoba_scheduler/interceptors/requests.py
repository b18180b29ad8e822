"""Reads requests: size, bytes, rules.

grpc answers UNKNOWN to a deserializer that raises, so ours returns the error as a value and the
handler's wrapper raises it where errors are mapped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError, Message

from hatoba_scheduler import validation
from hatoba_scheduler.auth.device_credentials import DeviceCaller
from hatoba_scheduler.auth.runner_scopes import RunnerToken
from hatoba_scheduler.errors import HatobaError, InvalidArgument, Reason, ResourceExhausted
from hatoba_scheduler.interceptors.context import call_or_none

if TYPE_CHECKING:
    from hatoba_scheduler.interceptors.types import Context

Deserializer = Callable[[bytes], Any]


class Unreadable(NamedTuple):
    """Stands for a request that could not be read."""

    error: HatobaError


def reader(deserialize: Deserializer, max_bytes: int) -> Deserializer:
    """`deserialize` that never raises and refuses more than `max_bytes`."""

    def read(raw: bytes) -> Any:
        if len(raw) > max_bytes:
            return Unreadable(_too_large(len(raw), max_bytes))
        try:
            return deserialize(raw)
        except (DecodeError, UnicodeDecodeError):
            return Unreadable(_damaged())

    return read


def checked(request: Any) -> Any:
    """The request, once it is read and keeps every rule; else the error is raised."""
    if isinstance(request, Message):
        validation.check(request)
        call = call_or_none()
        if call is not None and isinstance(call.token, RunnerToken | DeviceCaller):
            call.token.check_request(call.method, request)
    elif isinstance(request, Unreadable):
        raise request.error
    return request


async def only_message(context: Context) -> Any:
    """The one message of a call that grpc takes for a stream."""
    request: Any = await context.read()
    return Unreadable(_damaged()) if request is grpc.aio.EOF else request


class CheckedStream:
    """A client's messages, each checked; iterates without an async generator to be closed."""

    __slots__ = ("_context",)

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        request = await self._context.read()
        if request is grpc.aio.EOF:
            raise StopAsyncIteration
        return checked(request)


class CheckedContext:
    """A servicer context whose `read` checks what it returns, for read/write-style handlers."""

    __slots__ = ("_context",)

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""
        request = await self._context.read()
        return request if request is grpc.aio.EOF else checked(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _too_large(size: int, limit: int) -> HatobaError:
    return ResourceExhausted(
        f"the message has {size:,} bytes, over the limit of {limit:,}; split it, or upload files "
        "through ArtifactService and send their manifest",
        reason=Reason.MESSAGE_TOO_LARGE,
        retry_after=0,
        metadata={"size_bytes": str(size), "limit_bytes": str(limit)},
    )


def _damaged() -> HatobaError:
    return InvalidArgument(
        "the request cannot be read as the message that this method takes (wrong type, text that "
        "is not UTF-8, or nested too deeply); generate the client from this server's contract",
        reason=Reason.INVALID_MESSAGE,
    )
