"""A server that machines join, on loopback, and what speaks to it with keys of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from fault_zygote import ZygoteLauncher
from server_process import HatobaServer, running_server
from wire import Wire

from hatoba.errors import BROKEN_STREAM
from hatoba.v1 import worker_pb2
from hatoba_worker import key_files, keys


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HatobaServer]:
    """The server that all tests share."""
    launcher = ZygoteLauncher()
    data = tmp_path_factory.mktemp("joining") / "data"
    async with running_server(data, worker=False, launcher=launcher) as one:
        yield one
    launcher.close()


@pytest.fixture
async def wire(server: HatobaServer) -> AsyncIterator[Wire]:
    """Its administrator's calls."""
    async with Wire(server) as one:
        yield one


class Joiner:
    """A machine's two keys, and what it asks with them."""

    def __init__(self, server: HatobaServer) -> None:
        self.server = server
        self.own, self.serving = keys.new_key(), keys.new_key()

    async def join(self, secret: str, host: str) -> worker_pb2.HostCertificates:
        """Join with a token. Raises grpc.aio.AioRpcError."""
        request = worker_pb2.JoinHostRequest(
            host=host,
            csr=keys.request_for(self.own),
            serving_csr=keys.request_for(self.serving),
        )
        async with Wire(self.server, token=secret.partition(".")[0]) as wire:
            return await wire.once(request, worker_pb2.HostCertificates)

    def known_by(self, given: worker_pb2.HostCertificates, data: Path) -> keys.HostKeys:
        """The keys of a host that was given these certificates; blocks."""
        keys.write_own(key_files.directory(data) / keys.HOST, self.own, given.certificate)
        found = keys.HostKeys.load(data)
        assert found is not None
        return found


@pytest.fixture
def joiner(server: HatobaServer) -> Joiner:
    """A machine that would be a host."""
    return Joiner(server)


@asynccontextmanager
async def calls_of(server: HatobaServer, credential: str) -> AsyncIterator[Wire]:
    """Calls with another credential."""
    async with Wire(server, token=credential) as wire:
        yield wire


Call = grpc.aio.StreamStreamCall[
    worker_pb2.WorkerServiceConnectRequest, worker_pb2.WorkerServiceConnectResponse
]


@asynccontextmanager
async def stream(wire: Wire, host: str, *items: worker_pb2.WorkerItem) -> AsyncIterator[Call]:
    """A worker's stream as `host`, with an empty inventory, on which this was said."""
    channel = await wire.channel()
    call: Call = channel.stream_stream(  # type: ignore[assignment]
        "/hatoba.v1.WorkerService/Connect",
        request_serializer=worker_pb2.WorkerServiceConnectRequest.SerializeToString,
        response_deserializer=worker_pb2.WorkerServiceConnectResponse.FromString,
    )(metadata=wire.metadata)
    said = worker_pb2.WorkerHello(host=host, incarnation="incarnation", protocol=1)
    done = worker_pb2.WorkerItem(inventory_complete=worker_pb2.InventoryComplete())
    first = [worker_pb2.WorkerItem(hello=said), done, *items]
    try:
        # Of a call that was ended meanwhile only the reading tells how.
        with suppress(grpc.aio.AioRpcError):
            await call.write(worker_pb2.WorkerServiceConnectRequest(items=first))
        welcome = await call.read()
        assert isinstance(welcome, worker_pb2.WorkerServiceConnectResponse), welcome
        assert welcome.items[0].WhichOneof("item") == "welcome"
        yield call
    finally:
        call.cancel()


async def hello(wire: Wire, host: str) -> grpc.aio.AioRpcError | None:
    """Open a worker's stream as `host`; None when it is welcomed."""
    while True:
        try:
            async with stream(wire, host):
                return None
        except grpc.aio.AioRpcError as error:
            # The server's answer overtook what was being sent: as a worker does, ask again.
            if error.details() != BROKEN_STREAM:
                return error
