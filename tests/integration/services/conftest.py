"""One server on mock, null and hosts for all that breaks nothing, and a host played by hand."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from fault_zygote import ZygoteLauncher
from google.rpc import error_details_pb2, status_pb2
from house_fixtures import own_wire, wire
from server_process import HatobaServer, Launcher, configured, running_server
from waiting import PATIENCE
from wire import Wire

from hatoba.v1 import admin_pb2, common_pb2, job_pb2, runner_pb2, worker_pb2

__all__ = ["own_wire", "wire"]

CONFIG = """
[defaults]
train = "mock"

[backends.mock]
type = "mock"

[backends.null]
type = "null"

[backends.hosts]
type = "hosts"

[backends.lost]
type = "nowhere"
"""

BROKEN_PLUGIN = """\
Metadata-Version: 2.1
Name: hatoba-broken
Version: 1.2.3
Provides-Extra: engine
Requires-Dist: hatoba-no-such-engine; extra == 'engine'
"""


def _install_broken_plugin(folder: Path) -> None:
    """A distribution whose entry point fails to import, as pip would have left it."""
    info = folder / "hatoba_broken-1.2.3.dist-info"
    info.mkdir(parents=True)
    (folder / "hatoba_broken.py").write_text("import hatoba_no_such_engine\n")
    (info / "METADATA").write_text(BROKEN_PLUGIN)
    (info / "entry_points.txt").write_text("[hatoba.backends]\nbroken = hatoba_broken:plugin\n")


def configure(data: Path) -> Path:
    """Make a data directory with the suite's configuration."""
    return configured(data, CONFIG)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HatobaServer]:
    """The server that all tests share."""
    root = tmp_path_factory.mktemp("services")
    _install_broken_plugin(root / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root / "site"), prepend=os.pathsep)
        async with running_server(configure(root / "data"), worker=False) as one:
            yield one


@pytest.fixture(scope="session")
def zygote() -> Iterator[ZygoteLauncher]:
    """Starts servers in no time."""
    one = ZygoteLauncher()
    yield one
    one.close()


@pytest.fixture
def launcher(zygote: ZygoteLauncher) -> Launcher:
    """For the servers of one test, with nothing that another has set."""
    zygote.environ = {}
    return zygote


@pytest.fixture
async def own_server(tmp_path: Path, launcher: Launcher) -> AsyncIterator[HatobaServer]:
    """A server for one test alone."""
    data = configure(tmp_path / "data")
    async with running_server(data, worker=False, launcher=launcher) as one:
        yield one


@pytest.fixture
def project() -> str:
    """A project that no other test uses."""
    return fresh("p")


def fresh(prefix: str) -> str:
    """A name that nobody used before."""
    return f"{prefix}{uuid.uuid4().hex[:10]}"


# -- jobs ------------------------------------------------------------------------------------------


def spec(name: str = "job", *, backend: str = "mock", **script: Any) -> job_pb2.JobSpec:
    """A job on the mock, which does what `script` says."""
    made = job_pb2.JobSpec(name=name, command=["true"], backend=backend)
    if script:
        made.backend_options.update({"mock": script})
    return made


def held(name: str = "job") -> job_pb2.JobSpec:
    """A job that waits until it is released."""
    made = spec(name)
    made.hold = True
    return made


def running(name: str = "job", **script: Any) -> job_pb2.JobSpec:
    """A job that runs until it is stopped."""
    return spec(name, run_for=600, **script)


async def submit(
    wire: Wire, wanted: job_pb2.JobSpec, project: str = "", request_id: str = ""
) -> job_pb2.Job:
    """Submit a job."""
    request = job_pb2.SubmitJobRequest(spec=wanted, project=project, request_id=request_id)
    return await wire.once(request, job_pb2.Job)


async def cancel(wire: Wire, *names: str, reason: str = "") -> list[job_pb2.CancelResult]:
    """Cancel jobs."""
    request = job_pb2.CancelJobsRequest(jobs=names, reason=reason)
    return list((await wire.once(request, job_pb2.CancelJobsResponse)).results)


async def watch(wire: Wire, **fields: Any) -> list[job_pb2.WatchJobsResponse]:
    """All messages of a watch that ends by itself."""
    request = job_pb2.WatchJobsRequest(**fields)
    async with asyncio.timeout(PATIENCE):
        stream = wire.stream(request, job_pb2.WatchJobsResponse)
        return [message async for message in stream]


def events_of(messages: Sequence[job_pb2.WatchJobsResponse]) -> list[common_pb2.Event]:
    """The events among a watch's messages."""
    return [message.event for message in messages if message.HasField("event")]


def state(job: job_pb2.Job | job_pb2.Task | job_pb2.CancelResult) -> str:
    """A state's name without prefix."""
    return common_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")


# -- refusals --------------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """A refused call as its caller sees it."""

    code: grpc.StatusCode
    message: str
    reason: str
    fields: list[str]


async def refused(call: Awaitable[Any]) -> Refusal:
    """How a call that must fail failed."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Read the status and details of a failed call."""
    trailers = dict(error.trailing_metadata())
    raw = trailers.get("grpc-status-details-bin", b"")
    status = status_pb2.Status.FromString(raw if isinstance(raw, bytes) else raw.encode())
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        _ = detail.Unpack(info) or detail.Unpack(bad)
    fields = [violation.field for violation in bad.field_violations]
    return Refusal(error.code(), error.details() or "", info.reason, fields)


# -- tokens ----------------------------------------------------------------------------------------


async def token_of(
    wire: Wire, role: admin_pb2.Role.ValueType, principal: str = "ann", **ttl: Any
) -> admin_pb2.CreateTokenResponse:
    """A new token."""
    request = admin_pb2.CreateTokenRequest(principal=principal, role=role, **ttl)
    return await wire.once(request, admin_pb2.CreateTokenResponse)


# -- hosts -----------------------------------------------------------------------------------------


class Host:
    """A host's worker, played by hand: it does nothing that a test does not say."""

    def __init__(self, wire: Wire, name: str, stream: Any) -> None:
        self.name = name
        self._wire = wire
        self._stream = stream
        self._heard: list[worker_pb2.ServerItem] = []

    async def say(self, *items: worker_pb2.WorkerItem) -> None:
        """Send items."""
        await self._stream.write(worker_pb2.WorkerServiceConnectRequest(items=items))

    async def hears(self, kind: str, patience: float = PATIENCE) -> Any:
        """The next item of a kind; others are dropped."""
        async with asyncio.timeout(patience):
            while True:
                while self._heard:
                    item = self._heard.pop(0)
                    if item.WhichOneof("item") == kind:
                        return getattr(item, kind)
                response = await self._stream.read()
                assert response is not grpc.aio.EOF, f"the stream ended before {kind}"
                self._heard.extend(response.items)

    async def ends(self) -> None:
        """Wait until the server has ended the stream."""
        async with asyncio.timeout(PATIENCE):
            while await self._stream.read() is not grpc.aio.EOF:
                pass

    async def launched(self, patience: float = PATIENCE) -> worker_pb2.LaunchAttempt:
        """The next launch."""
        launch: worker_pb2.LaunchAttempt = await self.hears("launch", patience)
        return launch

    async def claim(
        self, launch: worker_pb2.LaunchAttempt, nonce: str = "n" * 16
    ) -> runner_pb2.ClaimAttemptResponse:
        """Claim an attempt by the unary call."""
        request = runner_pb2.ClaimAttemptRequest(
            attempt=launch.attempt, fence=launch.fence, nonce=nonce
        )
        return await self._wire.once(request, runner_pb2.ClaimAttemptResponse)

    async def started(self, launch: worker_pb2.LaunchAttempt) -> None:
        """Claim it and say that the user's code began."""
        assert (await self.claim(launch)).verdict == runner_pb2.CLAIM_VERDICT_GRANTED
        told = worker_pb2.AttemptStarted(attempt=launch.attempt, fence=launch.fence)
        await self.say(worker_pb2.WorkerItem(started=told))

    async def checkpoint(
        self, launch: worker_pb2.LaunchAttempt, step: int
    ) -> runner_pb2.CommitCheckpointResponse:
        """Commit a checkpoint."""
        request = runner_pb2.CommitCheckpointRequest(
            attempt=launch.attempt, fence=launch.fence, step=step, metrics={"loss": 0.5}
        )
        request.manifest.digest = f"sha256:{step:064x}"
        return await self._wire.once(request, runner_pb2.CommitCheckpointResponse)

    async def commit(
        self, launch: worker_pb2.LaunchAttempt, nonce: str = "n" * 16, **fields: Any
    ) -> runner_pb2.CommitAttemptResponse:
        """Commit an attempt's end, by default a good one of which nothing is left."""
        request = commit_of(launch, nonce, **fields)
        return await self._wire.once(request, runner_pb2.CommitAttemptResponse)


def commit_of(
    launch: worker_pb2.LaunchAttempt, nonce: str = "n" * 16, **fields: Any
) -> runner_pb2.CommitAttemptRequest:
    """The commit of an attempt, by default of a good end."""
    told = {"kind": runner_pb2.EXIT_KIND_EXITED, "gone": True, **fields}
    return runner_pb2.CommitAttemptRequest(
        attempt=launch.attempt, fence=launch.fence, nonce=nonce, **told
    )


@asynccontextmanager
async def connected(
    wire: Wire, name: str, *, complete: bool = True, **hello: Any
) -> AsyncIterator[Host]:
    """A host that is connected and, where its inventory is said to be complete, has nothing."""
    channel = await wire.channel()
    method: Any = channel.stream_stream(
        "/hatoba.v1.WorkerService/Connect",
        request_serializer=worker_pb2.WorkerServiceConnectRequest.SerializeToString,
        response_deserializer=worker_pb2.WorkerServiceConnectResponse.FromString,
    )
    stream = method(metadata=wire.metadata)
    greeting = {"incarnation": "i" * 8, "protocol": 1, "slots": 4, "version": "0", **hello}
    host = Host(wire, name, stream)
    items = [worker_pb2.WorkerItem(hello=worker_pb2.WorkerHello(host=name, **greeting))]
    if complete:
        items.append(worker_pb2.WorkerItem(inventory_complete=worker_pb2.InventoryComplete()))
    await host.say(*items)
    try:
        await host.hears("welcome")
        yield host
    finally:
        stream.cancel()


@pytest.fixture
async def host(wire: Wire) -> AsyncIterator[Host]:
    """A host of the shared server for one test alone; `job_on` makes jobs for it."""
    name = fresh("h")
    async with connected(wire, name, secrets=[name]) as one:
        yield one


def job_on(secret: str, name: str = "job") -> job_pb2.JobSpec:
    """A job that only hosts with this secret can run; its retries do not wait."""
    made = spec(name, backend="hosts")
    made.secrets.add(name=secret)
    made.retries.backoff.SetInParent()
    return made
