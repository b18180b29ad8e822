"""A whole server whose jobs run on the testbed's cluster: TLS, runners in pods, least rights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from bed_processes import free_port
from server_process import HatobaServer, configured, running_server
from testbed_kubernetes import Kubernetes, Namespace
from waiting import eventually, until

from hatoba.aio import AsyncClient, AsyncJob
from hatoba.v1 import job_pb2

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

PATIENCE = 240.0
"""Seconds: pods start one after the other on a machine that does much else."""
CONFIG = """
[server]
listen = "{address}"
advertise = "{advertise}"

[defaults]
train = "ml"

[backends.ml]
type = "k8s-gpu"
options = {{ {options} }}
"""


@dataclass
class KubeHouse:
    """The server, its administrator's client, and the namespace."""

    server: HatobaServer
    client: AsyncClient
    cluster: Kubernetes
    namespace: Namespace
    root: Path
    made: int = field(default=0)

    async def submit(self, program: str, **spec: Any) -> AsyncJob:
        """Submit a Python program."""
        self.made += 1
        code = self.root / f"code-{self.made}"
        await asyncio.to_thread(code.mkdir)
        await asyncio.to_thread((code / "job.py").write_text, program)
        return await self.client.submit(["python3", "job.py"], code=str(code), name="train", **spec)

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind in the namespace; blocks."""
        told = self.cluster.get("-n", self.namespace.name, kind)
        return list(told["items"])

    async def until_nothing_is_left(self) -> None:
        """Return when the namespace has no Job and no pod any more."""
        await until(lambda: not self.objects("jobs,pods"), PATIENCE)

    async def until_logged(self, job: AsyncJob, text: str) -> None:
        """Return when a job has written this."""

        async def told() -> bool:
            return text in await self.log(job)

        await eventually(told, PATIENCE)

    async def log(self, job: AsyncJob, index: int = 0, attempt: int = 0) -> str:
        """What an attempt of a task has written, the last one without a number."""
        told = job.logs(stream="stdout", index=index, attempt=attempt)
        pieces = [piece.data async for piece in told]
        return b"".join(pieces).decode()

    async def attempts(self, job: AsyncJob) -> list[job_pb2.Attempt]:
        """Its attempts, in order."""
        request = job_pb2.ListAttemptsRequest(job=job.record.name)
        found = (await job.client.call(request, job_pb2.ListAttemptsResponse)).attempts
        return sorted(found, key=lambda attempt: attempt.number)

    async def until_running(self, job: AsyncJob) -> None:
        """Return when the job runs."""

        async def runs() -> bool:
            await job.refresh()
            assert job.state in ("QUEUED", "LAUNCHING", "WAITING", "STARTING", "RUNNING"), (
                job.record
            )
            return job.state == "RUNNING"

        await eventually(runs, PATIENCE)


@pytest.fixture
def namespace(kubernetes: Kubernetes) -> Iterator[Namespace]:
    """One with exactly the rights of deploy/kubernetes/rbac.yaml."""
    with kubernetes.namespace() as made:
        yield made


@pytest.fixture
async def house(
    kubernetes: Kubernetes, namespace: Namespace, runtime_image: str, tmp_path: Path
) -> AsyncIterator[KubeHouse]:
    """The server on the bridge's gateway, where pods reach it."""
    access = namespace.kubeconfig
    async with housed(kubernetes, namespace, runtime_image, tmp_path, access) as made:
        yield made


@asynccontextmanager
async def housed(
    kubernetes: Kubernetes,
    namespace: Namespace,
    image: str,
    root: Path,
    access: str,
    advertise: str = "",
) -> AsyncIterator[KubeHouse]:
    """A server that reaches the cluster by this kubeconfig, and that pods find at `advertise`."""
    options = {
        "kubeconfig": access,
        "namespace": namespace.name,
        "image": image,
        "runner_image": image,
        "secrets": ["kit-secret"],
        "gpu_runtime_class": "nvidia",
        "settles_after": 1.0,
    }
    told = ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
    # Pods find it again after a restart.
    port = await asyncio.to_thread(free_port, kubernetes.gateway)
    address = f"{kubernetes.gateway}:{port}"
    config = CONFIG.format(address=address, advertise=advertise or address, options=told)
    data = await asyncio.to_thread(configured, root / "data", config)
    async with running_server(data, worker=False) as server:
        token = str(data / "admin.token")
        authority = str(data / "tls" / "ca.pem")
        async with AsyncClient(server.address, token_file=token, ca_file=authority) as client:
            yield KubeHouse(server, client, kubernetes, namespace, root)
