"""Jobs from submit to commit on a real kubelet, with the runner in the pod."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from kube_house import PATIENCE, KubeHouse
from waiting import until

from hatoba.v1 import common_pb2
from hatoba_plugins.backends.k8s_gpu.names import MAIN

pytestmark = pytest.mark.timeout(600)

TRAIN = """
from hatoba import current_job
job = current_job()
job.log_metrics({"loss": 0.25}, step=1)
(job.outputs / "made").write_text("out")
print("trained with", job.params["lr"], flush=True)
"""
RESUMES = """
import time
from hatoba import current_job
job = current_job()
print("from", job.latest_checkpoint and job.latest_checkpoint.name, flush=True)
if job.latest_checkpoint is None:
    with job.checkpoint(3) as directory:
        (directory / "w").write_text("3")
    time.sleep(600)
"""
EATS = "held = []\nwhile True: held.append(bytearray(2**24))\n"


async def test_a_gpu_job_goes_all_the_way(house: KubeHouse) -> None:
    """It claims, brings its code in, tells metrics and logs, brings its outputs out, and goes."""
    job = await house.submit(TRAIN, params={"lr": 0.5}, gpus=1)
    await job.wait(PATIENCE)
    assert job.state == "SUCCEEDED", job.record
    assert "trained with 0.5" in await house.log(job)
    assert dict(await job.metrics()) == {"loss": [(1, 0.25)]}
    made = await job.outputs(house.root / "outputs")
    assert await asyncio.to_thread((made / "made").read_text) == "out"
    (attempt,) = await house.attempts(job)
    assert attempt.host == "node-1"
    await house.until_nothing_is_left()


async def test_what_is_drained_goes_on_from_its_checkpoint(house: KubeHouse) -> None:
    """An eviction ends the attempt as preempted; the next one resumes, charged to nobody."""
    job = await house.submit(RESUMES)
    await house.until_running(job)
    await house.until_logged(job, "from None")
    (pod,) = [one["metadata"]["name"] for one in await asyncio.to_thread(house.objects, "pods")]
    await asyncio.to_thread(evict, house, pod)
    await job.wait(PATIENCE)
    first, _second = await house.attempts(job)
    assert job.state == "SUCCEEDED", job.record
    assert first.cause.origin == common_pb2.ORIGIN_PREEMPTION, first.cause
    assert "from step-3" in await house.log(job)


def evict(house: KubeHouse, pod: str) -> None:
    """As a node drain does it."""
    name = house.namespace.name
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": name},
    }
    path = f"/api/v1/namespaces/{name}/pods/{pod}/eviction"
    house.cluster.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))


@pytest.mark.parametrize(
    ("program", "spec", "code"),
    [
        ("raise SystemExit(3)", {}, common_pb2.CAUSE_CODE_EXIT_CODE),
        (EATS, {"memory": 2**27}, common_pb2.CAUSE_CODE_OUT_OF_MEMORY),
    ],
)
async def test_how_it_ends_is_told_apart(
    house: KubeHouse, program: str, spec: dict[str, Any], code: int
) -> None:
    job = await house.submit(program, **spec)
    await job.wait(PATIENCE)
    (attempt,) = await house.attempts(job)
    assert job.state == "FAILED"
    assert attempt.cause.code == code, attempt.cause


def written(house: KubeHouse) -> str:
    """What the command of the one pod has written so far; blocks."""
    if not (pods := house.objects("pods")) or pods[0]["status"]["phase"] != "Running":
        return ""
    name, namespace = pods[0]["metadata"]["name"], house.namespace.name
    return house.cluster.kubectl("logs", f"--namespace={namespace}", f"--container={MAIN}", name)


STOPPED = """
import signal, sys, time
def stop(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("works", flush=True)
time.sleep(600)
"""


async def test_a_cancelled_job_leaves_nothing_but_its_log(house: KubeHouse) -> None:
    job = await house.submit(STOPPED)
    # Asked of the cluster: nobody reads the log through the server.
    await until(lambda: "works" in written(house), PATIENCE)
    await job.cancel()
    await job.wait(PATIENCE)
    assert job.state == "CANCELLED"
    await house.until_nothing_is_left()
    assert await house.log(job) == "works\nsaved\n"


def ended(house: KubeHouse) -> bool:
    """Whether the command of the one pod has ended."""
    (pod,) = house.objects("pods")
    (status,) = pod["status"]["containerStatuses"]
    return "terminated" in status["state"]


async def test_a_server_that_dies_meanwhile_misses_nothing(house: KubeHouse) -> None:
    job = await house.submit("import time; time.sleep(5); print('through', flush=True)")
    await house.until_running(job)
    await house.server.kill()
    await until(lambda: ended(house), PATIENCE)
    await house.server.start()
    await job.wait(PATIENCE)
    assert (job.state, len(await house.attempts(job))) == ("SUCCEEDED", 1)
    assert "through" in await house.log(job)
