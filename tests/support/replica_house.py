"""A host for tests of replicas: orders of a small model, and what was reported of them."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
from waiting import until
from worker_house import House

from hatoba.v1 import deployment_pb2, worker_pb2

UID = "0123456789abcdef" * 2
STARTING = deployment_pb2.REPLICA_STATE_STARTING
READY = deployment_pb2.REPLICA_STATE_READY
UNHEALTHY = deployment_pb2.REPLICA_STATE_UNHEALTHY
DRAINING = deployment_pb2.REPLICA_STATE_DRAINING
GONE = deployment_pb2.REPLICA_STATE_GONE

HANDLER = """
import os, sys, time
from pathlib import Path

print("loading", os.environ["HATOBA_REPLICA"], file=sys.stderr, flush=True)
if os.environ.get("ON_LOAD") == "crash":
    sys.exit("no luck at load")

class Model:
    def __init__(self, model_dir):
        self.bias = int(Path(model_dir, "bias.txt").read_text())

    def predict(self, inputs):
        if inputs.get("do") == "crash":
            print("about to crash", file=sys.stderr, flush=True)
            os._exit(3)
        if inputs.get("do") == "eat":
            self.eaten = bytearray(1 << 30)
        if inputs.get("do") == "wait":
            Path("waiting").touch()
            time.sleep(inputs["seconds"])
        if "x" not in inputs and "do" not in inputs:
            raise ValueError("no x")
        return {
            "y": inputs.get("x", 0) + self.bias,
            "pid": os.getpid(),
            "env": dict(os.environ),
        }
"""


class ReplicaHouse(House):
    """A host with replicas."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._orders = itertools.count(1)
        self._names = itertools.count(1)
        self.model = self.server.store({"bias.txt": b"5"})
        self.code = self.server.store({"model.py": HANDLER.encode()})

    def spec(self, *, example: Any = None, revision: int = 1, **env: str) -> worker_pb2.ReplicaSpec:
        """A replica of a model that adds 5; each call makes another."""
        spec = worker_pb2.ReplicaSpec(
            name=f"r-{UID}-{revision}-{next(self._names):08x}",
            deployment="projects/default/deployments/adder",
            revision=revision,
            model_version="projects/default/models/adder/versions/3",
            model=self.model,
            env=env,
        )
        spec.serving.handler = "model:Model"
        spec.serving.code.CopyFrom(self.code)
        spec.serving.environment.caller_interpreter = sys.executable
        spec.serving.example.data = json.dumps(example or {"x": 1}).encode()
        spec.serving.example.media_type = "application/json"
        spec.drain.FromSeconds(5)
        return spec

    def order(self, *specs: worker_pb2.ReplicaSpec) -> int:
        """Have the host keep exactly these; returns the order's number."""
        number = next(self._orders)
        order = worker_pb2.ReplicaOrder(order=number, replicas=specs)
        self.server.send(worker_pb2.ServerItem(replicas=order))
        return number

    def reports(self, name: str) -> list[deployment_pb2.Replica]:
        """All that was told of a replica, in order."""
        told = self.heard.all("replicas")
        return [one for report in told for one in report.replicas if one.name == name]

    def now(self, name: str) -> deployment_pb2.Replica:
        """What was told last of a replica; empty before anything was."""
        told = self.reports(name)
        return told[-1] if told else deployment_pb2.Replica()

    async def state(
        self, spec: worker_pb2.ReplicaSpec, state: int, **fields: Any
    ) -> deployment_pb2.Replica:
        """Wait until a replica is in a state, with these values of its fields."""

        def holds() -> bool:
            now = self.now(spec.name)
            return now.state == state and all(
                getattr(now, key) == value for key, value in fields.items()
            )

        await self.heard.until(holds)
        return self.now(spec.name)

    async def ready(self, spec: worker_pb2.ReplicaSpec, **fields: Any) -> deployment_pb2.Replica:
        """Wait until a replica is ready."""
        return await self.state(spec, READY, **fields)

    async def acked(self, number: int) -> None:
        """Wait until the host has taken an order in."""
        told = self.heard.all("replicas")
        await self.heard.until(lambda: any(one.order >= number for one in told))

    def replica_home(self, spec: worker_pb2.ReplicaSpec) -> Path:
        """A replica's directory."""
        return self.data / "replicas" / spec.name

    async def vanished(self, spec: worker_pb2.ReplicaSpec) -> None:
        """Wait until nothing is kept of a replica."""
        home = self.replica_home(spec)
        await until(lambda: not home.exists())


async def predict(address: str, **inputs: Any) -> dict[str, Any]:
    """Ask a replica; raises what aiohttp raises."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{address}/predict", json=inputs) as response,
    ):
        response.raise_for_status()
        found: dict[str, Any] = await response.json()
        return found
