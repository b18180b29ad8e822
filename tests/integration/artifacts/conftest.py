"""A real grpc.aio server with nothing but ArtifactService; chunks in a directory or a bucket."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import obstore
import pytest
from s3_server import CREDENTIALS, S3Server, running_s3

from hatoba.v1 import artifact_pb2, artifact_pb2_grpc
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.auth import Authenticator
from hatoba_scheduler.auth.roles import METHOD_ACCESS, OPEN
from hatoba_scheduler.config import BlobsConfig
from hatoba_scheduler.control.garbage import Garbage
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.interceptors import Admission, Front, Phase, server_options
from hatoba_scheduler.services.artifacts import ArtifactLimits, ArtifactParts, ArtifactServicer
from hatoba_scheduler.store.blob_index import Roots
from hatoba_scheduler.store.blobs import ChunkStore, StoreLimits
from hatoba_scheduler.store.buckets import Bucket, Externals
from hatoba_scheduler.store.places import open_place
from hatoba_scheduler.store.sqlite import open_store
from hatoba_scheduler.store.sqlite.store import SqliteStore
from hatoba_scheduler.telemetry.metrics import ServerMetrics
from hatoba_scheduler.telemetry.tracing import Tracer

DIRECTORY = BlobsConfig()
MAX_TREE_BYTES = 10 * 1024**3


class NoTokens:
    """A token store that nobody asks."""

    async def tokens(self) -> list[TokenRecord]:
        return []

    async def put_token(self, token: TokenRecord) -> None:
        raise AssertionError(token)


class Watched(ArtifactServicer):
    """Says when uploads come and go."""

    def __init__(self, parts: ArtifactParts, limits: ArtifactLimits) -> None:
        super().__init__(parts, limits)
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.streamed = 0
        """Bytes of chunks that came by whole streams."""

    async def UploadChunks(self, requests: Any, context: Any) -> artifact_pb2.UploadChunksResponse:
        self.entered.set()
        try:
            reply = await super().UploadChunks(requests, context)
            self.streamed += reply.bytes
            return reply
        finally:
            self.left.set()


class Opened:
    """A store of chunks on a place and a store of jobs, with time that a test moves."""

    def __init__(self, chunks: ChunkStore, store: SqliteStore, clock: FakeClock) -> None:
        self.chunks = chunks
        self.store = store
        self.clock = clock
        self.roots: set[str] = set()
        self.garbage = Garbage(chunks, Roots([store, self]), clock)

    async def manifest_roots(self) -> set[str]:
        return self.roots


@asynccontextmanager
async def opened(
    root: Path,
    settings: BlobsConfig = DIRECTORY,
    reserve_bytes: int = 0,
    state: Path | None = None,
    now: float = 1_700_000_000.0,
) -> AsyncIterator[Opened]:
    """Chunks at a place, with what is not finished below `root`; the jobs' store in `state`."""
    clock = FakeClock(now)

    def micros() -> int:
        return round(clock.time() * 1e6)

    state = state or root.parent / f"{root.name}-state"
    state.mkdir(exist_ok=True)
    store = await open_store(state, micros)
    try:
        place = open_place(settings, root, reserve_bytes)
        async with ChunkStore.open(
            place, store.blob_index, micros, StoreLimits(MAX_TREE_BYTES)
        ) as chunks:
            yield Opened(chunks, store, clock)
    finally:
        await store.close()


class Harness:
    """The server's parts, and a stub that calls it."""

    def __init__(self, root: Path, settings: BlobsConfig, house: Opened, servicer: Watched) -> None:
        self.root = root
        self.settings = settings
        self.house = house
        self.store = house.chunks
        self.servicer = servicer
        self.server: grpc.aio.Server
        self.stub: artifact_pb2_grpc.ArtifactServiceAsyncStub

    async def stop(self) -> None:
        """End the server at once; the stub goes on looking for it."""
        await self.server.stop(None)

    def files(self) -> list[str]:
        """Names of all stored and temporary files and objects."""
        found = [path.name for path in self.root.rglob("*") if path.is_file()]
        if self.settings.url:
            found += [
                one["path"].rpartition("/")[2]
                for page in obstore.list(Bucket(self.settings).store)
                for one in page
            ]
        return sorted(found)


@asynccontextmanager
async def serve(
    root: Path,
    limits: ArtifactLimits | None = None,
    reserve_bytes: int = 0,
    settings: BlobsConfig = DIRECTORY,
    state: Path | None = None,
) -> AsyncIterator[Harness]:
    """A server on a free port, its store below `root`."""
    authenticator = Authenticator(NoTokens(), lambda: 0)
    access = dict.fromkeys(METHOD_ACCESS, OPEN)
    front = Front(
        authenticator, Tracer([]), ServerMetrics(), Admission(Phase.SERVING), access=access
    )
    async with opened(root, settings, reserve_bytes, state) as house:
        parts = ArtifactParts(house.chunks, house.garbage, Externals(settings))
        servicer = Watched(parts, limits or ArtifactLimits())
        harness = Harness(root, settings, house, servicer)
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


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 for all tests; each makes buckets of its own."""
    with running_s3() as server:
        yield server


_BUCKETS = itertools.count(1)


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> BlobsConfig:
    """A prefix of an empty bucket, for which the environment has credentials."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    name = f"chunks-{next(_BUCKETS)}"
    s3.make_bucket(name)
    return BlobsConfig(f"s3://{name}/hatoba", s3.endpoint, "us-east-1", allow_http=True)


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest) -> BlobsConfig:
    """Both places that chunks can be kept at."""
    if request.param == "directory":
        return DIRECTORY
    settings: BlobsConfig = request.getfixturevalue("bucket")
    return settings


@pytest.fixture
async def server(tmp_path: Path, place: BlobsConfig) -> AsyncIterator[Harness]:
    """A server with the usual limits, once on a directory and once on a bucket."""
    async with serve(tmp_path / "blobs", settings=place) as harness:
        yield harness


Serving = Callable[..., AbstractAsyncContextManager[Harness]]


@pytest.fixture
def serving() -> Serving:
    """Starts servers with limits of a test's own; see `serve`."""
    return serve


Opening = Callable[..., AbstractAsyncContextManager[Opened]]


@pytest.fixture
def opening() -> Opening:
    """Opens stores of chunks without a server; see `opened`."""
    return opened


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
