"""Calls of grpc.aio on a link that may go away at any moment: every end of one is a `Broken`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import grpc
import grpc.aio

Reply = TypeVar("Reply")


class Broken(Exception):
    """A call ended without what was asked for; says why. `code` is the server's word, or ours."""

    def __init__(self, text: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        super().__init__(text)
        self.code = code

    @property
    def unknown(self) -> bool:
        """Whether the server does not take us for who we say we are."""
        return self.code is grpc.StatusCode.UNAUTHENTICATED


class Readable(Protocol):
    """A call with messages."""

    async def read(self) -> object:
        """The next one."""
        ...


async def next_message(call: Readable, kind: type[Reply], seconds: float | None) -> Reply | None:
    """The next message of a stream; None at its end. Raises Broken, also when none comes for so
    many seconds.
    """
    try:
        async with asyncio.timeout(seconds):
            message = await call.read()
    except TimeoutError:
        raise Broken(f"nothing came for {seconds:g} s") from None
    return message if isinstance(message, kind) else None


@contextmanager
def typed() -> Iterator[None]:
    """Raise Broken for what became of a call."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        text = f"the server says {error.code().name}: {error.details()}"
        raise Broken(text, error.code()) from error
    except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
        raise Broken("the link was closed") from error
    except asyncio.CancelledError as error:
        # A channel that is closed cancels its calls, which is not to say that we are cancelled.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Broken("the link was closed") from error
