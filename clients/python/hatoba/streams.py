"""The one way to open a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar


class Cancellable(Protocol):
    """A call of grpc.aio."""

    def cancel(self) -> bool:
        """End the call unless it is over."""
        ...


C = TypeVar("C", bound=Cancellable)


@asynccontextmanager
async def open_stream(call: C) -> AsyncIterator[C]:
    """The call, cancelled when the block is left, however that happens.

    grpcio from 1.83 on never ends a stream that nobody reads any more.
    """
    try:
        yield call
    finally:
        call.cancel()
