"""A server on mock and null whose registry holds a few models from its start, and a router."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from house_fixtures import own_wire, wire
from server_process import HatobaServer, configured, running_server
from wire import Wire

from hatoba.v1 import deployment_pb2, deployment_pb2_grpc, model_pb2
from hatoba_scheduler.domain.datasets import CodeVersionRecord, NewDatasetVersion
from hatoba_scheduler.domain.models import ModelState, ModelVersion, Want
from hatoba_scheduler.domain.records import ManifestRef
from hatoba_scheduler.store.sqlite import open_store

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

Deployment = deployment_pb2.Deployment
PATIENCE = 15.0
COMMIT = "c" * 40
DIGEST = "sha256:" + "a" * 64
__all__ = ["own_wire", "wire"]

CONFIG = """
[defaults]
serves = "mock"

[backends.mock]
type = "mock"

[backends.mock.options]
ledger = "{ledger}"

[backends.null]
type = "null"

[backends.arm]
type = "mock"

[backends.arm.options]
ledger = "{ledger}-arm"
architectures = ["arm64"]

[backends.both]
type = "mock"

[backends.both.options]
ledger = "{ledger}-both"
architectures = ["arm64", "amd64"]

[backends.plain]
type = "mock"

[backends.plain.options]
lacks = ["canary"]
"""


def model(name: str, **fields: Any) -> ModelVersion:
    """A version that can be deployed, unless `fields` say otherwise."""
    content = model_pb2.ModelVersion()
    content.serving.handler = "serve:Digits"
    content.serving.code.digest = DIGEST
    made: dict[str, Any] = {
        "project": "default",
        "model": name,
        "version": 0,
        "state": ModelState.READY,
        "manifest": ManifestRef(DIGEST, 10, 1),
        "content": content.SerializeToString(),
        "create_time": 1,
        "created_by": "ann",
        "handler": "serve:Digits",
        "code": DIGEST,
        "has_example": True,
    }
    return ModelVersion(**{**made, **fields})


async def prepare(data: Path) -> None:
    """What is in the store before the server starts: `digits` 1 to 4, and what cannot be served."""
    configured(data, CONFIG.format(ledger=data / "mock.ledger"))
    store = await open_store(data, lambda: 1)
    try:
        code = CodeVersionRecord(
            "default", "train", 0, ManifestRef(DIGEST, 1, 1), "git@x:r", COMMIT, False, None, 1, "a"
        )
        await store.datasets.put_code(code)
        files = ManifestRef(DIGEST, 1, 1)
        images = NewDatasetVersion("default", "images", files, None, 1, 1, "ann")
        await store.datasets.create_version(images)
        made_by = {
            "job": "projects/default/jobs/train-7",
            "code_version": "projects/default/code/train/versions/1",
            "git_commit": COMMIT,
            "datasets": ("projects/default/datasets/images/versions/1",),
            "metrics": (("accuracy", 0.97),),
        }
        for fields in (made_by, {}, {}, {}):
            await store.models.register(model("digits", **fields), None)
        for _ in range(3):
            await store.models.register(model("built"), None)
        await store.models.register(model("broken", state=ModelState.FAILED), None)
        await store.models.register(model("bare", handler=""), None)
        for alias, version in (("production", 1), ("moving", 1)):
            await store.models.move(Want("default", "digits", alias, version, 0, "", "ann", 1))
    finally:
        await store.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HatobaServer]:
    """The server that all tests share."""
    data = tmp_path_factory.mktemp("deployments") / "data"
    await prepare(data)
    async with running_server(data, worker=False) as one:
        yield one


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """A server for one test alone."""
    await prepare(tmp_path / "data")
    async with running_server(tmp_path / "data", worker=False) as one:
        yield one


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"d{uuid.uuid4().hex[:10]}"


# -- asking ----------------------------------------------------------------------------------------


def wanted(reference: str = "digits:1", **fields: Any) -> deployment_pb2.DeploymentSpec:
    """A specification with a short bake."""
    spec = deployment_pb2.DeploymentSpec(model=reference, **fields)
    if not spec.strategy.HasField("bake"):
        spec.strategy.bake.FromMilliseconds(50)
    return spec


def script(**does: Any) -> dict[str, str]:
    """What a replica on the mock does."""
    return {"MOCK_REPLICA": json.dumps(does)}


async def create(
    wire: Wire, name: str, spec: deployment_pb2.DeploymentSpec | None = None, request_id: str = ""
) -> Deployment:
    """Make a deployment."""
    request = deployment_pb2.CreateDeploymentRequest(
        deployment=name, spec=spec or wanted(), request_id=request_id
    )
    return await wire.once(request, Deployment)


async def update(
    wire: Wire, name: str, paths: list[str], spec: deployment_pb2.DeploymentSpec, etag: str = ""
) -> Deployment:
    """Change a deployment."""
    request = deployment_pb2.UpdateDeploymentRequest(name=name, spec=spec, etag=etag)
    request.update_mask.paths.extend(paths)
    return await wire.once(request, Deployment)


async def get(wire: Wire, name: str) -> Deployment:
    """One deployment."""
    return await wire.once(deployment_pb2.GetDeploymentRequest(name=name), Deployment)


async def until(
    wire: Wire, name: str, holds: Callable[[Deployment], bool], patience: float = PATIENCE
) -> Deployment:
    """The deployment once something holds of it."""
    request = deployment_pb2.WatchDeploymentRequest(name=name, follow=True)
    last = Deployment()
    try:
        async with asyncio.timeout(patience):
            async for last in wire.stream(request, Deployment):
                if holds(last):
                    return last
    except TimeoutError:
        raise AssertionError(f"it never held of {last}") from None
    raise AssertionError(f"the stream ended; last: {last}")


async def settled(wire: Wire, name: str, rollout: int = 1) -> Deployment:
    """The deployment once this roll-out is over and all is as wanted."""
    return await until(
        wire,
        name,
        lambda one: (
            one.rollout.number >= rollout
            and bool(one.rollout.end_time.seconds)
            and one.state
            in (deployment_pb2.DEPLOYMENT_STATE_READY, deployment_pb2.DEPLOYMENT_STATE_FAILED)
        ),
    )


async def refusal(wire: Wire, request: Message, reply: type[Message] = Deployment) -> Any:
    """How a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.once(request, reply)
    return caught.value


# -- a router --------------------------------------------------------------------------------------


@dataclass
class FakeRouter:
    """A router that only reads and acknowledges; what it was told, by deployment."""

    call: Any
    name: str
    url: str
    acks: bool = True
    cursor: int = 0
    routes: dict[str, deployment_pb2.Route] = field(default_factory=dict)
    access: list[deployment_pb2.Access] = field(default_factory=list)
    cursors: list[int] = field(default_factory=list)

    async def read(self) -> deployment_pb2.WatchDeploymentsResponse:
        """Take in the next message."""
        message = await self.call.read()
        assert isinstance(message, deployment_pb2.WatchDeploymentsResponse), "the stream ended"
        self.cursors.append(message.cursor)
        self.cursor = message.cursor
        if message.complete:
            self.routes.clear()
        self.routes |= {one.deployment: one for one in message.routes}
        for gone in message.removed:
            self.routes.pop(gone, None)
        if message.access_changed:
            self.access = list(message.access)
        if self.acks:
            await self.say(acked=self.cursor)
        return message

    async def say(self, **fields: Any) -> None:
        """Send a message."""
        await self.call.write(deployment_pb2.WatchDeploymentsRequest(**fields))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Read until something holds of what it was told."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                await self.read()

    def replicas(self, deployment: str) -> list[str]:
        """Names of the replicas of a deployment."""
        route = self.routes.get(f"projects/default/deployments/{deployment}")
        targets = route.targets if route is not None else ()
        return [one.name for target in targets for one in target.replicas]


@asynccontextmanager
async def router(
    wire: Wire, server: HatobaServer, *, acks: bool = True, url: str = ""
) -> AsyncIterator[FakeRouter]:
    """A router that is connected, with the role that routers have."""
    stub = deployment_pb2_grpc.DeploymentServiceStub(await wire.channel())
    token = server.token("router")
    call = stub.WatchDeployments(metadata=(("authorization", f"Bearer {token}"),))
    made = FakeRouter(call, uuid.uuid4().hex, url or f"http://127.0.0.1/{uuid.uuid4().hex}", acks)
    try:
        await made.say(router=made.name, url=made.url)
        await made.read()
        yield made
    finally:
        call.cancel()
