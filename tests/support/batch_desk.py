"""A model that can be asked, and datasets to ask it about, on a server with a real worker."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from server_process import HatobaServer
from serving_house import checked
from trees import get_tree, put_tree
from wire import Wire

from hatoba.aio import AsyncClient
from hatoba.v1 import dataset_pb2, model_pb2

HANDLER = b"""\
import json
import os
from pathlib import Path


class Doubler:
    def __init__(self, model_dir):
        self.factor = json.loads((Path(model_dir) / "factor.json").read_text())

    def predict(self, inputs):
        if "kill_once" in inputs:
            try:
                Path(inputs["kill_once"]).touch(exist_ok=False)
                os._exit(3)
            except FileExistsError:
                pass
        if inputs.get("bad"):
            raise ValueError("this one is bad")
        return inputs["value"] * self.factor
"""


class Desk:
    """One server, by the SDK and by bare calls."""

    def __init__(self, wire: Wire, client: AsyncClient) -> None:
        self.wire = wire
        self.client = client

    async def model(self) -> str:
        """A READY model that doubles; `NAME:1`."""
        name = f"m{uuid.uuid4().hex[:10]}"
        request = model_pb2.RegisterModelRequest(model=name)
        request.manifest.CopyFrom(await put_tree(self.wire, {"factor.json": b"2"}))
        request.serving.handler = "serve:Doubler"
        request.serving.example.data = b'{"value": 3}'
        request.serving.example.media_type = "application/json"
        request.serving.code.CopyFrom(await put_tree(self.wire, {"serve.py": HANDLER}))
        made = await self.wire.once(request, model_pb2.ModelVersion)
        made = await checked(self.wire, made.name)
        assert made.state == model_pb2.MODEL_STATE_READY, made.cause
        return f"{name}:1"

    async def dataset(
        self, inputs: Sequence[Mapping[str, Any]], files: Mapping[str, bytes] | None = None
    ) -> str:
        """A dataset of these inputs, whose items are numbered and labelled; `NAME:1`."""
        name = f"d{uuid.uuid4().hex[:10]}"
        items = b"".join(_line(number, told) for number, told in enumerate(inputs))
        request = dataset_pb2.CreateDatasetVersionRequest(dataset=name)
        request.manifest.CopyFrom(await put_tree(self.wire, files or {}))
        if not files:
            request.items.CopyFrom(await put_tree(self.wire, {"items.jsonl": items}))
        await self.wire.once(request, dataset_pb2.DatasetVersion)
        return f"{name}:1"

    async def version(self, name: str) -> dataset_pb2.DatasetVersion:
        request = dataset_pb2.GetDatasetVersionRequest(name=name)
        return await self.wire.call(request, dataset_pb2.DatasetVersion)

    async def items(self, name: str) -> list[dict[str, Any]]:
        """The items of a version, in order."""
        version = await self.version(name)
        tree = await get_tree(self.wire, version.items.digest)
        return [json.loads(line) for line in tree["items.jsonl"].splitlines()]

    async def versions(self, dataset: str) -> list[dataset_pb2.DatasetVersion]:
        request = dataset_pb2.ListDatasetVersionsRequest(dataset=dataset)
        reply = await self.wire.call(request, dataset_pb2.ListDatasetVersionsResponse)
        return list(reply.versions)


def _line(number: int, told: Mapping[str, Any]) -> bytes:
    attributes = {"input": told, "label": str(number % 10)}
    return json.dumps({"id": f"item-{number:05}", "attributes": attributes}).encode() + b"\n"


@asynccontextmanager
async def sitting(server: HatobaServer, wire: Wire) -> AsyncIterator[Desk]:
    token_file = str(server.data / "admin.token")
    async with AsyncClient(server.address, token_file=token_file) as client:
        yield Desk(wire, client)
