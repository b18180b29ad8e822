"""A GPU job on a real kubelet, drained half-way: it goes on from its checkpoint, makes a model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from digits_image import digits_image
from kube_house import PATIENCE, KubeHouse, housed, namespace
from testbed_kubernetes import Kubernetes, Namespace
from waiting import eventually

from hatoba.aio import AsyncJob
from hatoba.v1 import common_pb2, job_pb2

__all__ = ["digits_image", "namespace"]
pytestmark = pytest.mark.timeout(900)
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"
EPOCHS = 150


@dataclass
class Site:
    """A server for the cluster, and the command line of a user of it."""

    house: KubeHouse
    type: CommandLine
    image: str

    async def told(self, *arguments: str) -> Any:
        """What a command that has to end well says as JSON."""
        done = await self.type(*arguments, "-o", "json")
        assert done.code == 0, f"{arguments}:\n{done.out}\n{done.err}"
        return json.loads(done.out)

    async def begun(self) -> AsyncJob:
        """Training has begun, and does not wait for us."""
        asked = ["--image", self.image, "--code", str(EXAMPLE), "--gpus", "1", "--cpus", "0.2"]
        params = ["-p", f"epochs={EPOCHS}", "-p", "log=1", "--name", "digits"]
        done = await self.type("run", "-d", *asked, *params, "--", "python", "train.py")
        assert done.code == 0, done
        return await self.house.client.job(done.out.strip())

    async def until_saved(self, job: AsyncJob) -> None:
        """Return when the server has a checkpoint of a job that still runs."""

        async def there() -> bool:
            (attempt,) = await self.house.attempts(job)
            assert not attempt.HasField("end_time"), attempt
            return attempt.HasField("checkpoint")

        await eventually(there, PATIENCE)

    async def spans(self, job: AsyncJob) -> list[job_pb2.Span]:
        """The kept spans of its trace, once both attempts have told theirs."""
        request = job_pb2.GetJobTraceRequest(job=job.record.name)

        async def whole() -> list[job_pb2.Span] | None:
            told = await job.client.call(request, job_pb2.GetJobTraceResponse)
            attempts = [one for one in told.spans if one.name == "attempt"]
            ran = [one for one in told.spans if "hatoba-runner" in one.process]
            return list(told.spans) if len(attempts) == 2 and ran else None

        return await eventually(whole, PATIENCE)


@pytest.fixture
async def site(
    kubernetes: Kubernetes,
    namespace: Namespace,
    runtime_image: str,
    digits_image: str,
    tmp_path: Path,
) -> AsyncIterator[Site]:
    """With exactly the rights of deploy/kubernetes/rbac.yaml."""
    access = namespace.kubeconfig
    async with housed(kubernetes, namespace, runtime_image, tmp_path, access) as house:
        yield Site(house, CommandLine(house.server, tmp_path, PATIENCE), digits_image)


async def drained(house: KubeHouse, job: AsyncJob) -> None:
    """Drain the node of a job's pod, and let it have pods again."""
    (pod,) = await asyncio.to_thread(house.objects, "pods")
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["spec"]["runtimeClassName"] == "nvidia"
    node, label = pod["spec"]["nodeName"], f"job-name={pod['metadata']['labels']['job-name']}"
    # Only its pods: others are at work on this node.
    await asyncio.to_thread(house.cluster.drain, node, f"--pod-selector={label}", "--timeout=120s")
    await asyncio.to_thread(house.cluster.uncordon, node)


async def test_training_is_drained_half_way_and_makes_its_model(site: Site) -> None:
    job = await site.begun()
    await site.until_saved(job)
    await drained(site.house, job)
    await job.wait(PATIENCE)
    assert job.state == "SUCCEEDED", job.record
    first, _second = await site.house.attempts(job)
    assert first.cause.origin == common_pb2.ORIGIN_PREEMPTION, first.cause

    # Every epoch was told of, and the second attempt began where the first had saved.
    log = b"".join([piece.data async for piece in job.logs(stream="stdout", follow=True)]).decode()
    epochs = [int(one) for one in re.findall(r"epoch +(\d+) +loss", log)]
    assert epochs[-1] == EPOCHS
    assert min(epochs) > 5, "the log of the second attempt"
    steps = [step for step, _ in dict(await job.metrics())["loss"]]
    assert set(steps) == set(range(1, EPOCHS + 1))

    made = await site.told("models", "get", "digits:1")
    assert made["state"] == "READY", made
    assert (made["job"], made["attempt"]) == (job.record.name, 2)
    assert made["trace_id"] == job.record.trace_id

    spans = await site.spans(job)
    assert {span.trace_id for span in spans} == {job.record.trace_id}
    processes = {span.process.partition("/")[0] for span in spans}
    assert {"hatoba-cli", "hatoba-server", "hatoba-runner"} <= processes, processes
    ids = {span.span_id for span in spans}
    assert len([one for one in spans if one.parent_span_id not in ids]) == 1
    await site.house.until_nothing_is_left()
