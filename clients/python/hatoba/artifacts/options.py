"""How trees are moved."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import grpc.aio

from hatoba.errors import from_rpc
from hatoba.v1 import artifact_pb2, artifact_pb2_grpc

T = TypeVar("T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TransferOptions:
    """How to transfer: headers of every call, who is told (bytes done, bytes in all), and limits.

    `call_seconds` bounds each call that is not a stream. `address` is named in errors. `only`, when
    there are any, are the paths that are fetched of a tree.
    """

    metadata: tuple[tuple[str, str], ...] = ()
    progress: Progress = lambda done, total: None
    call_seconds: float = 60.0
    address: str = ""
    only: frozenset[str] = frozenset()


DEFAULT = TransferOptions()


@contextmanager
def typed_errors(options: TransferOptions) -> Iterator[None]:
    """Raise the HatobaError that a server's status stands for."""
    try:
        yield
    except grpc.aio.AioRpcError as failure:
        raise from_rpc(failure, options.address) from None


def batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """The items, so many at a time."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


async def uninterrupted(work: Callable[..., T], *arguments: object) -> T:
    """Do blocking work on a thread; a cancellation waits until the thread has come back."""
    running = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        running.exception()
        raise asyncio.CancelledError
    return running.result()


async def transfer_urls(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    request: artifact_pb2.GetTransferUrlsRequest,
    options: TransferOptions,
) -> artifact_pb2.GetTransferUrlsResponse:
    """Addresses at the object store; none from a server that knows no such thing."""
    try:
        return await stub.GetTransferUrls(
            request, timeout=options.call_seconds, metadata=options.metadata
        )
    except grpc.aio.AioRpcError as failure:
        if failure.code() is not grpc.StatusCode.UNIMPLEMENTED or request.external:
            raise
        return artifact_pb2.GetTransferUrlsResponse()


async def ahead(work: Iterable[Callable[[], T]], count: int) -> AsyncGenerator[T, None]:
    """The results of blocking work in its order, with at most `count` pieces of it under way."""
    loop = asyncio.get_running_loop()
    rest = iter(work)
    running = deque(loop.run_in_executor(None, one) for one in islice(rest, count))
    try:
        while running:
            await asyncio.wait([running[0]])
            running.extend(loop.run_in_executor(None, one) for one in islice(rest, 1))
            yield running.popleft().result()
    finally:
        if running:
            # They hold open files: nobody goes on before they are done.
            await asyncio.wait(running)
            for one in running:
                one.cancelled() or one.exception()
