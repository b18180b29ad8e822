"""Models and code from the server, by the device's own link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from hatoba.artifacts.manifest import digest_of
from hatoba.streams import Cancellable, open_stream
from hatoba.v1 import artifact_pb2, artifact_pb2_grpc
from hatoba_worker.agent.blobs import READ_SECONDS, Cut, Gone, Wrong
from hatoba_worker.agent.calls import Broken, next_message, typed

LARGEST_MANIFEST = 64 << 20
Metadata: TypeAlias = tuple[tuple[str, str], ...]
C = TypeVar("C", bound=Cancellable)
_REFUSALS = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)


class Way:
    """To the server: the channel for what is large, and what a call on it carries.

    gRPC does not end the calls of a channel that is closed while somebody waits for them.
    """

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self.channel = channel
        self.metadata = metadata
        self._calls: set[Cancellable] = set()

    @asynccontextmanager
    async def opened(self, call: C) -> AsyncIterator[C]:
        """A stream, which ends with the way."""
        self._calls.add(call)
        try:
            async with open_stream(call):
                yield call
        finally:
            self._calls.discard(call)

    def close(self) -> None:
        """There is no way any more."""
        for call in self._calls:
            call.cancel()


class ServerLibrary:
    """See `Library`. `way` is asked before each call; None: there is no link now."""

    def __init__(self, way: Callable[[], Way | None]) -> None:
        self._way = way

    async def manifest(self, digest: str) -> artifact_pb2.Manifest:
        """What a tree holds. Raises Gone, Cut, Wrong."""
        way = self._require_way()
        stub = artifact_pb2_grpc.ArtifactServiceStub(way.channel)
        request = artifact_pb2.DownloadManifestRequest(digest=digest)
        kind = artifact_pb2.DownloadManifestResponse
        data = bytearray()
        with _typed():
            async with way.opened(stub.DownloadManifest(request, metadata=way.metadata)) as call:
                while (reply := await next_message(call, kind, READ_SECONDS)) is not None:
                    data += reply.data
                    if len(data) > LARGEST_MANIFEST:
                        raise Wrong(f"manifest {digest} has more than {LARGEST_MANIFEST:,} bytes")
        return await asyncio.to_thread(manifest_of, digest, bytes(data))

    async def read(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of a chunk from an offset on. Raises Gone, Cut, Wrong."""
        way = self._require_way()
        stub = artifact_pb2_grpc.ArtifactServiceStub(way.channel)
        sha256 = bytes.fromhex(digest.removeprefix("sha256:"))
        request = artifact_pb2.DownloadChunksRequest(sha256=[sha256], offset=offset)
        kind = artifact_pb2.DownloadChunksResponse
        with _typed():
            async with way.opened(stub.DownloadChunks(request, metadata=way.metadata)) as call:
                while (reply := await next_message(call, kind, READ_SECONDS)) is not None:
                    if reply.position:
                        raise Wrong(f"more comes than {digest}, which was asked for")
                    yield reply.data

    def _require_way(self) -> Way:
        way = self._way()
        if way is None:
            raise Cut("the server is not connected")
        return way


@contextmanager
def _typed() -> Iterator[None]:
    """Raise Gone or Cut for what became of a call."""
    try:
        with typed():
            yield
    except Broken as error:
        raise (Gone if error.code in _REFUSALS else Cut)(str(error)) from error


def manifest_of(digest: str, data: bytes) -> artifact_pb2.Manifest:
    """A manifest that is what its digest says. Blocks; raises Wrong."""
    if digest_of(data) != digest:
        raise Wrong(f"what comes as manifest {digest} is something else")
    try:
        return artifact_pb2.Manifest.FromString(data)
    except DecodeError as error:
        raise Wrong(f"manifest {digest} cannot be read: {error}") from error
