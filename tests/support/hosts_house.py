"""The hosts backend for the conformance kit: the real hub, a real worker and keeper.

A whole server earns its place here: what answers the worker's claims and commits is what does so
in production, with a desk that grants every claim once, since the kit has no jobs in a store.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
from scripted_server import ScriptedServer

from hatoba.v1 import (
    artifact_pb2_grpc,
    runner_pb2,
    runner_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.hosts import HostsType
from hatoba_plugins.clock import SystemClock
from hatoba_plugins.conformance import (
    Life,
    ReplicaHarness,
    ShellHarness,
)
from hatoba_scheduler.control.draining import Drainer
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.runners import RunnerDesk
from hatoba_scheduler.domain.records import Attempt, Host
from hatoba_scheduler.services.joining import Joining
from hatoba_scheduler.services.paging import Pager
from hatoba_scheduler.services.workers import WorkerItems, WorkerServicer
from hatoba_scheduler.store.base import ServerIdentity, Store

T = TypeVar("T")
CLUSTER = "conformance"


class HostsOnly:
    """The part of a store that the hub uses."""

    identity = ServerIdentity(CLUSTER, 1)

    async def put_host(self, host: Host) -> None:
        """Not kept."""

    async def hosts(self) -> list[Host]:
        """None from before."""
        return []


class GrantOnce:
    """A desk that grants each attempt to the first nonce and believes every report."""

    def __init__(self) -> None:
        self._nonces: dict[str, str] = {}

    def known(self, name: str) -> bool:
        """Everything is."""
        return True

    def current(self, name: str, fence: int) -> Attempt | None:
        """No reports are kept."""
        return None

    def claim(
        self, request: runner_pb2.ClaimAttemptRequest
    ) -> asyncio.Future[runner_pb2.ClaimAttemptResponse]:
        """One nonce wins."""
        winner = self._nonces.setdefault(request.attempt, request.nonce)
        granted = winner == request.nonce
        return _done(
            runner_pb2.ClaimAttemptResponse(
                attempt=request.attempt,
                verdict=runner_pb2.CLAIM_VERDICT_GRANTED
                if granted
                else runner_pb2.CLAIM_VERDICT_DUPLICATE,
            )
        )

    def started(self, told: worker_pb2.AttemptStarted) -> asyncio.Future[bool]:
        """Believed."""
        return _done(True)

    def heartbeat(
        self, request: runner_pb2.HeartbeatRequest
    ) -> asyncio.Future[runner_pb2.HeartbeatResponse]:
        """Go on."""
        order = runner_pb2.RUNNER_ORDER_RUN
        return _done(runner_pb2.HeartbeatResponse(attempt=request.attempt, order=order))

    def commit(
        self, request: runner_pb2.CommitAttemptRequest
    ) -> asyncio.Future[runner_pb2.CommitAttemptResponse]:
        """Believed."""
        return _done(runner_pb2.CommitAttemptResponse(attempt=request.attempt, accepted=True))

    def gone(self, told: worker_pb2.AttemptGone) -> asyncio.Future[bool]:
        """Believed."""
        return _done(True)

    def host_of(self, name: str) -> str:
        """It does not say."""
        return ""


def _done(value: T) -> asyncio.Future[T]:
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


class Anybody:
    """Lets whoever comes speak for any host."""

    def check_speaker(self, host: str) -> None:
        """Anybody may."""


class SwallowLogs(runner_pb2_grpc.RunnerServiceServicer):
    """Acknowledges every piece of log."""

    async def PushLogs(
        self, request_iterator: AsyncIterator[runner_pb2.PushLogsRequest], context: Any
    ) -> AsyncIterator[runner_pb2.PushLogsResponse]:
        async for piece in request_iterator:
            yield runner_pb2.PushLogsResponse(
                attempt=piece.attempt,
                stream=piece.stream,
                acked=piece.offset + len(piece.data) + piece.gap_bytes,
            )

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("hosts use their stream")

    ClaimAttempt = Heartbeat = ReportMetrics = CommitCheckpoint = CommitAttempt = _unused
    AwaitExit = _unused


class HostsHarness(ShellHarness):
    """A server's side in this process, and one worker with its keeper beside it."""

    def __init__(self, directory: Path, *flags: str) -> None:
        """`flags` are the worker's beside those that it needs."""
        super().__init__(HostsType(), marks=directory / "marks")
        self._flags = flags
        self._data = directory / "host"
        self._data.mkdir()
        (self._data / "worker.token").write_text("hb_none_none\n")
        (self._data / "worker.token").chmod(0o600)
        self._hub = Hub(cast(Store, HostsOnly()), SystemClock(), "0")
        self._trees = ScriptedServer()
        self._world = AsyncExitStack()
        # Kept to the end: freeing a server takes a lock, which no coroutine of ours may wait for.
        self._server: grpc.aio.Server | None = None

    def context(self) -> BackendContext:
        made = super().context()
        return BackendContext(
            made.clock, made.rng, CLUSTER, 1, made.advertise, made.budget, made.secret, self._hub
        )

    async def __aenter__(self) -> Self:
        if self._backend is None:
            serving = _serving(self._hub, self._trees)
            port, self._server = await self._world.enter_async_context(serving)
            await self._world.enter_async_context(_working(self._data, port, *self._flags))
            async with asyncio.timeout(20):
                async for _ in self._hub.watch():
                    if self._hub.ready_hosts():
                        break
        return await super().__aenter__()

    async def reopen(self) -> None:
        opened, self._opened = self._opened, None
        assert opened is not None
        await opened.__aexit__(None, None, None)
        await super().__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        await self._world.aclose()


@asynccontextmanager
async def _serving(hub: Hub, trees: ScriptedServer) -> AsyncIterator[tuple[int, grpc.aio.Server]]:
    desk = cast(RunnerDesk, GrantOnce())
    nobody, spans = cast(Any, None), cast(Any, NoSpans())
    items = WorkerItems(hub, desk, nobody, nobody, spans)
    async with asyncio.TaskGroup() as tasks:
        server = grpc.aio.server()
        servicer = WorkerServicer(
            hub,
            items,
            cast(Ledger, None),
            cast(Drainer, None),
            Pager(),
            tasks,
            cast(Joining, Anybody()),
        )
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server)
        runner_pb2_grpc.add_RunnerServiceServicer_to_server(SwallowLogs(), server)
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(trees, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield port, server
        finally:
            hub.close()
            await server.stop(1)


class NoSpans:
    """Of spans nothing is kept."""

    def add(self, spans: Any) -> None:
        """Nobody looks at them."""


@asynccontextmanager
async def _working(data: Path, port: int, *flags: str) -> AsyncIterator[None]:
    command = [
        *(sys.executable, "-m", "hatoba", "worker", "start"),
        *("--server", f"127.0.0.1:{port}", "--data", str(data)),
        *("--token-file", str(data / "worker.token"), "--name", "kit", "--slots", "64"),
        *flags,
    ]
    worker = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.DEVNULL, env={**os.environ}
    )
    try:
        yield
    finally:
        worker.terminate()
        await worker.wait()
        end = [sys.executable, "-m", "hatoba_worker.embedded", "end"]
        ending = await asyncio.create_subprocess_exec(*end, "--data", str(data), "--grace", "0")
        await ending.wait()


HANDLER = """
import os, threading
from pathlib import Path

def end_once():
    mark = Path(os.environ["HATOBA_DIR"], "crashed")
    if not mark.exists():
        mark.touch()
        os._exit(1)

class Model:
    def __init__(self, model_dir):
        if os.environ["LIFE"] == "crashes":
            threading.Timer(1.0, end_once).start()

    def predict(self, inputs):
        if os.environ["LIFE"] == "never_ready":
            raise ValueError("not today")
        return inputs
"""


class ReplicasHarness(HostsHarness, ReplicaHarness):
    """Real model servers."""

    def template(self, life: Life) -> worker_pb2.ReplicaSpec:
        """A model that answers what it is asked, lives as it is told."""
        spec = worker_pb2.ReplicaSpec(env={"LIFE": life.value})
        spec.model.CopyFrom(self._trees.store({"weights": b"none"}))
        spec.serving.code.CopyFrom(self._trees.store({"kit_model.py": HANDLER.encode()}))
        spec.serving.handler = "kit_model:Model"
        spec.serving.environment.python = sys.executable
        spec.serving.example.data = b"1"
        spec.serving.example.media_type = "application/json"
        spec.drain.FromSeconds(1)
        return spec
