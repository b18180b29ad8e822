"""Models of a few lines, deployments of them, and clients that ask all the time."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from server_process import HatobaServer
from trees import put_tree
from waiting import News, eventually
from wire import Wire

from hatoba.artifacts.pack import pack_tree
from hatoba.artifacts.scan import Selection
from hatoba.artifacts.transfer import TransferOptions, upload_tree
from hatoba.v1 import artifact_pb2_grpc, common_pb2, deployment_pb2, model_pb2

# What breaks it is in the deployment's variables: a change of those is a new revision.
HANDLER = """
import os, time
from pathlib import Path

BREAK = os.environ.get("BREAK", "")
COUNT = 0


class Echo:
    def __init__(self, model_dir):
        if BREAK == "never-ready":
            time.sleep(3600)
        self.name = (Path(model_dir) / "name").read_text()

    def predict(self, inputs):
        global COUNT
        COUNT += 1
        if BREAK == "predict-fails":
            raise ValueError("these weights are of another model")
        if BREAK == "crashes" and COUNT > 5:
            print("a segmentation fault, nearly", flush=True)
            os._exit(139)
        time.sleep(float(os.environ.get("SECONDS", "0.001")))
        revision = os.environ.get("HATOBA_REVISION", "")
        x = inputs["x"] + (BREAK == "answers-wrongly")
        return {"model": self.name, "revision": revision, "x": x}
"""
GOLDEN = '{"input": {"x": 3}, "expected": {"x": 3}}\n'
PATIENCE = 60.0
SETTLED = frozenset({deployment_pb2.DEPLOYMENT_STATE_READY, deployment_pb2.DEPLOYMENT_STATE_FAILED})


async def upload(wire: Wire, directory: Path) -> common_pb2.ManifestRef:
    """Store a directory."""
    stub = artifact_pb2_grpc.ArtifactServiceStub(await wire.channel())
    packed = await asyncio.to_thread(pack_tree, directory, Selection.EVERYTHING)
    return await upload_tree(stub, packed, TransferOptions(metadata=wire.metadata))


async def registered(
    wire: Wire, home: Path, name: str = "echo", *, python: str = ""
) -> model_pb2.ModelVersion:
    """A READY version of a model that answers with its name and with what it was asked, as it has
    to; each call makes another.

    It runs in this interpreter, on this server's own host, or in `python` of whatever host.
    """
    model, code = home / f"model-{name}", home / "code"
    for directory in (model, code):
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread((model / "name").write_text, f"{name}-{time.time_ns()}")
    await asyncio.to_thread((model / "golden.jsonl").write_text, GOLDEN)
    await asyncio.to_thread((code / "echo.py").write_text, HANDLER)
    serving = model_pb2.Serving(handler="echo:Echo", code=await upload(wire, code), golden=1)
    if python:
        serving.environment.python = python
    else:
        serving.environment.caller_interpreter = sys.executable
    serving.example.data = b'{"x": 0}'
    serving.example.media_type = "application/json"
    request = model_pb2.RegisterModelRequest(
        model=name, manifest=await upload(wire, model), serving=serving
    )
    version = await checked(wire, (await wire.call(request, model_pb2.ModelVersion)).name)
    assert version.state == model_pb2.MODEL_STATE_READY, version
    return version


async def checked(wire: Wire, name: str) -> model_pb2.ModelVersion:
    """A model's version once its check has ended."""
    asked = model_pb2.GetModelVersionRequest(name=name)

    async def over() -> model_pb2.ModelVersion | None:
        found = await wire.call(asked, model_pb2.ModelVersion)
        return None if found.state == model_pb2.MODEL_STATE_REGISTERING else found

    return await eventually(over, PATIENCE)


async def ready(wire: Wire, request: model_pb2.RegisterModelRequest) -> str:
    """Register a version of a model; once it is READY, what it is deployed by: `digits:3`."""
    made = await wire.once(request, model_pb2.ModelVersion)
    found = await checked(wire, made.name)
    assert found.state == model_pb2.MODEL_STATE_READY, found
    return f"{request.model}:{found.name.rpartition('/')[2]}"


async def unloaded(wire: Wire, name: str = "digits") -> str:
    """Another version of a model that nothing ever loads, as `digits:3`."""
    tree = await put_tree(wire, {"weights.bin": b"w"})
    code = await put_tree(wire, {"serve.py": b"class Model: ..."})
    request = model_pb2.RegisterModelRequest(model=name, manifest=tree)
    request.serving.handler = "serve:Model"
    request.serving.code.digest = code.digest
    request.serving.example.data = b"[1]"
    request.serving.example.media_type = "application/json"
    return await ready(wire, request)


async def settled(wire: Wire, name: str, patience: float = PATIENCE) -> deployment_pb2.Deployment:
    """A deployment once its roll-out is over, whatever becomes of servers meanwhile."""
    over = (
        deployment_pb2.ROLLOUT_STATE_SUCCEEDED,
        deployment_pb2.ROLLOUT_STATE_ROLLED_BACK,
        deployment_pb2.ROLLOUT_STATE_FAILED,
    )
    asked = deployment_pb2.GetDeploymentRequest(name=name)

    async def over_and_well() -> deployment_pb2.Deployment | None:
        found = await wire.call(asked, deployment_pb2.Deployment)
        return found if found.rollout.state in over and found.state in SETTLED else None

    return await eventually(over_and_well, patience)


async def deployed(
    wire: Wire, spec: deployment_pb2.DeploymentSpec, name: str = "reader"
) -> deployment_pb2.Deployment:
    """A new deployment, ready."""
    request = deployment_pb2.CreateDeploymentRequest(deployment=name, spec=spec)
    await wire.call(request, deployment_pb2.Deployment)
    found = await settled(wire, name)
    assert found.state == deployment_pb2.DEPLOYMENT_STATE_READY, found
    return found


@dataclass
class Tally:
    """What became of requests: answers by (model, revision), and failures."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0
    about: Echoes = field(default_factory=lambda: Echoes())
    news: News = field(default_factory=News)

    @property
    def answered(self) -> int:
        """Requests that were answered."""
        return self.answers.total()

    def revisions(self) -> set[str]:
        """Revisions that answered."""
        return {revision for _, revision in self.answers}


def router_of(server: HatobaServer) -> str:
    """`host:port` of the router."""
    return str(server.ready["router"])


class Echoes:
    """What clients ask, and how an answer is told from a wrong one."""

    def body(self, number: int) -> Any:
        """The JSON of a request."""
        return {"x": number}

    def judge(self, number: int, answer: Any, model: str) -> tuple[str, str]:
        """Model and revision that answered; `model` is what the router says."""
        del model
        assert answer["x"] == number
        return answer["model"], answer["revision"]


@asynccontextmanager
async def asking(
    server: HatobaServer, clients: int = 20, name: str = "reader", about: Echoes | None = None
) -> AsyncIterator[Tally]:
    """Clients that ask one after another for as long as the block lasts."""
    tally, over = Tally(about=about or Echoes()), asyncio.Event()
    url = f"http://{router_of(server)}/{name}/predict"
    headers = {"authorization": f"Bearer {await asyncio.to_thread(server.token)}"}
    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(clients):
            tasks.create_task(_ask(session, url, tally, over), name=f"client-{number}")
        try:
            yield tally
        finally:
            over.set()


async def _ask(session: aiohttp.ClientSession, url: str, tally: Tally, over: asyncio.Event) -> None:
    number = 0
    while not over.is_set():
        number += 1
        began = time.monotonic()
        try:
            async with session.post(url, json=tally.about.body(number)) as reply:
                await _count(tally, reply, number)
        except (aiohttp.ClientError, TimeoutError) as error:
            tally.failures.append(repr(error))
        tally.longest = max(tally.longest, time.monotonic() - began)


async def _count(tally: Tally, reply: aiohttp.ClientResponse, number: int) -> None:
    body = await reply.read()
    if reply.status != 200:
        tally.failures.append(f"{reply.status} {body[:500]!r}")
        return
    model = reply.headers["hatoba-model"]
    tally.answers[tally.about.judge(number, json.loads(body), model)] += 1
    tally.news.tell()
