"""A real grpc.aio server with nothing but ArtifactService behind the front, on a directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hatoba.v1 import artifact_pb2, artifact_pb2_grpc
from hatoba_scheduler.auth import Authenticator
from hatoba_scheduler.auth.roles import METHOD_ACCESS, OPEN
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.interceptors import Admission, Front, Phase, server_options
from hatoba_scheduler.services.artifacts import ArtifactLimits, ArtifactServicer
from hatoba_scheduler.store.blobs import ChunkStore
from hatoba_scheduler.telemetry.metrics import ServerMetrics
from hatoba_scheduler.telemetry.tracing import Tracer


class NoTokens:
    """A token store that nobody asks."""

    async def tokens(self) -> list[TokenRecord]:
        return []

    async def put_token(self, token: TokenRecord) -> None:
        raise AssertionError(token)


class Watched(ArtifactServicer):
    """Says when uploads come and go."""

    def __init__(self, store: ChunkStore, limits: ArtifactLimits) -> None:
        super().__init__(store, limits)
        self.entered = asyncio.Event()
        self.left = asyncio.Event()

    async def UploadChunks(self, requests: Any, context: Any) -> artifact_pb2.UploadChunksResponse:
        self.entered.set()
        try:
            return await super().UploadChunks(requests, context)
        finally:
            self.left.set()


class Harness:
    """The server's parts, and a stub that calls it."""

    def __init__(self, root: Path, store: ChunkStore, servicer: Watched) -> None:
        self.root = root
        self.store = store
        self.servicer = servicer
        self.server: grpc.aio.Server
        self.stub: artifact_pb2_grpc.ArtifactServiceAsyncStub

    async def stop(self) -> None:
        """End the server at once; the stub goes on looking for it."""
        await self.server.stop(None)

    def files(self) -> list[str]:
        """Names of all stored and temporary files."""
        return sorted(path.name for path in self.root.rglob("*") if path.is_file())


@asynccontextmanager
async def serve(
    root: Path, limits: ArtifactLimits | None = None, reserve_bytes: int = 0
) -> AsyncIterator[Harness]:
    """A server on a free port, its store below `root`."""
    authenticator = Authenticator(NoTokens(), lambda: 0)
    access = dict.fromkeys(METHOD_ACCESS, OPEN)
    front = Front(
        authenticator, Tracer([]), ServerMetrics(), Admission(Phase.SERVING), access=access
    )
    async with ChunkStore.open(root, reserve_bytes=reserve_bytes) as store:
        servicer = Watched(store, limits or ArtifactLimits())
        harness = Harness(root, store, servicer)
        harness.server = server = grpc.aio.server(interceptors=[front], options=server_options())
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                harness.stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
                yield harness
        finally:
            await server.stop(None)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Harness]:
    """A server with the usual limits."""
    async with serve(tmp_path / "blobs") as harness:
        yield harness


Serving = Callable[..., AbstractAsyncContextManager[Harness]]


@pytest.fixture
def serving() -> Serving:
    """Starts servers with limits of a test's own; see `serve`."""
    return serve


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with small files, a big one, an empty one and a link."""
    root = tmp_path / "source"
    (root / "pkg").mkdir(parents=True)
    for number in range(20):
        (root / "pkg" / f"m{number:02}.py").write_text(f"print({number})\n")
    (root / "weights.bin").write_bytes(bytes(range(256)) * 40_000 + b"end")
    (root / "empty").touch()
    (root / "latest").symlink_to("pkg/m00.py")
    return root
