"""A create whose reply is lost, and a Job that has two pods: the user's code runs once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kube_house import PATIENCE, KubeHouse, housed
from kube_proxy import kube_proxy
from kube_yard import authority_of, through
from start_gate import StartGate
from testbed_kubernetes import Kubernetes, Namespace
from waiting import until

from hatoba.aio import AsyncJob
from hatoba_plugins.conformance.proxy import FaultProxy, Json
from hatoba_plugins.runner import CLAIM_REFUSED

pytestmark = pytest.mark.timeout(600)


@dataclass
class Yard:
    """The house, what stands between it and the cluster, and what counts starts."""

    house: KubeHouse
    proxy: FaultProxy
    gate: StartGate

    async def ended_once(self, job: AsyncJob) -> None:
        """It succeeded, and its one attempt started once."""
        await job.wait(PATIENCE)
        assert job.state == "SUCCEEDED", job.record
        assert self.gate.starts == 1
        (_only,) = await self.house.attempts(job)
        made = await job.outputs(self.house.root / "outputs")
        assert await asyncio.to_thread((made / "made").read_text) == "out"
        await self.house.until_nothing_is_left()


@pytest.fixture
async def yard(
    kubernetes: Kubernetes, namespace: Namespace, runtime_image: str, tmp_path: Path
) -> AsyncIterator[Yard]:
    access = namespace.kubeconfig
    authority = await asyncio.to_thread(authority_of, access)
    async with (
        StartGate.running(kubernetes.gateway) as gate,
        kube_proxy(kubernetes.server, authority) as proxy,
    ):
        by_proxy = await asyncio.to_thread(through, proxy.endpoint, access)
        async with housed(kubernetes, namespace, runtime_image, tmp_path, by_proxy) as house:
            yield Yard(house, proxy, gate)


async def test_a_lost_reply_of_a_create_runs_once(yard: Yard) -> None:
    yard.proxy.lose_reply("create jobs")
    yard.gate.open()
    job = await yard.house.submit(yard.gate.program)
    await yard.ended_once(job)
    assert yard.proxy.most_streaming["watch jobs"] == yard.proxy.most_streaming["watch pods"] == 1


def with_two_pods(job: Json) -> Json:
    """The same Job as one whose controller begins two pods at a time."""
    spec = {key: value for key, value in job["spec"].items() if key != "completions"}
    return {**job, "spec": {**spec, "parallelism": 2}}


def refusals(pods: list[dict[str, Any]]) -> int:
    """How many pods were refused their claim."""
    statuses = [one for pod in pods for one in pod["status"].get("initContainerStatuses", ())]
    ends = [one["state"].get("terminated", {}) for one in statuses]
    return sum(end.get("exitCode") == CLAIM_REFUSED for end in ends)


async def test_of_two_pods_the_winner_decides_and_the_loser_ends_first(yard: Yard) -> None:
    yard.proxy.change("create jobs", with_two_pods)
    job = await yard.house.submit(yard.gate.program)
    await until(lambda: refusals(yard.house.objects("pods")) > 0, PATIENCE)
    await job.refresh()
    await yard.gate.until_started()
    await yard.house.until_running(job)
    yard.gate.open()
    await yard.ended_once(job)
