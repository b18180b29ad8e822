"""One server without a worker for all that breaks nothing, and the SDK to talk to it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio
from s3_server import CREDENTIALS, S3Server, running_s3
from server_process import HatobaServer, configured, running_server
from wire import Wire

from hatoba.aio import AsyncClient
from hatoba.v1 import common_pb2

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

NO_PROXY = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """Buckets for all tests; each makes its own."""
    with running_s3() as one:
        yield one


def configure(data: Path, endpoint: str) -> Path:
    """A data directory whose server reaches buckets at an endpoint."""
    text = f'[blobs]\nendpoint = "{endpoint}"\nregion = "us-east-1"\nallow_http = true\n'
    return configured(data, text)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(
    tmp_path_factory: pytest.TempPathFactory, s3: S3Server
) -> AsyncIterator[HatobaServer]:
    """The server that all tests share."""
    data = configure(tmp_path_factory.mktemp("datasets") / "data", s3.endpoint)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (CREDENTIALS | NO_PROXY).items():
            patch.setenv(name, value)
        async with running_server(data, worker=False) as one:
            yield one
            assert "Traceback" not in one.log_text()


Open = Callable[[HatobaServer], AbstractAsyncContextManager[AsyncClient]]


def client_of(server: HatobaServer, project: str = "") -> AsyncClient:
    """An SDK client of a server, to be opened."""
    return AsyncClient(server.address, token_file=str(server.data / "admin.token"), project=project)


@pytest.fixture
async def client(server: HatobaServer) -> AsyncIterator[AsyncClient]:
    """The SDK, in a project that no other test uses."""
    async with client_of(server, f"p{uuid.uuid4().hex[:10]}") as one:
        yield one


@pytest.fixture
async def wire(server: HatobaServer) -> AsyncIterator[Wire]:
    """Calls to the shared server, in nothing but generated messages."""
    async with Wire(server) as one:
        yield one


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered of folders beyond the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def folder(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files below a directory."""
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def contents(root: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def missing() -> common_pb2.ManifestRef:
    """A manifest that is not stored."""
    return common_pb2.ManifestRef(digest="sha256:" + "0" * 64)
