"""Many Jobs on nodes that kwok plays, and watches cut again and again: nothing is missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from kube_proxy import EXPIRED, kube_proxy
from kube_yard import authority_of, through
from testbed_kubernetes import Kubernetes, Namespace
from waiting import until

from hatoba.v1 import job_pb2
from hatoba_plugins.backends.k8s_gpu import K8sType, watch
from hatoba_plugins.conformance.attempts import Kit, by_name
from hatoba_plugins.conformance.harness import BackendHarness, Command, watching
from hatoba_plugins.conformance.proxy import FaultProxy
from hatoba_plugins.values import (
    GroupKind,
    Launched,
    LaunchGroup,
    Observation,
    Phase,
    Ref,
    Released,
)

pytestmark = pytest.mark.timeout(900)
FAKE = "kwok.x-k8s.io/node"


class FakeJobs(BackendHarness):
    """Jobs that fake nodes run: they begin and succeed by themselves."""

    def __init__(self, proxy: FaultProxy, namespace: Namespace, access: str) -> None:
        options: dict[str, object] = {
            "kubeconfig": access,
            "namespace": namespace.name,
            "tolerations": [FAKE],
            "node_selector": [f"{FAKE}=fake"],
        }
        super().__init__(K8sType(), options)
        self.proxy = proxy

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        spec = job_pb2.JobSpec(name="fake", command=["true"])
        spec.environment.image = "nothing.example/fake:1"
        return spec


@pytest.fixture
def namespace(kubernetes: Kubernetes) -> Iterator[Namespace]:
    with kubernetes.namespace() as made, kubernetes.fake_nodes(5):
        yield made


@asynccontextmanager
async def opened(cluster: Kubernetes, namespace: Namespace) -> AsyncIterator[FakeJobs]:
    authority = await asyncio.to_thread(authority_of, namespace.kubeconfig)
    async with kube_proxy(cluster.server, authority) as proxy:
        access = await asyncio.to_thread(through, proxy.endpoint, namespace.kubeconfig)
        async with FakeJobs(proxy, namespace, access) as harness:
            yield harness


async def ends_of(harness: FakeJobs, names: set[str]) -> dict[str, Observation]:
    """How these ended, as one watch after another tells it."""
    ends: dict[str, Observation] = {}
    assert harness.backend.jobs is not None
    while names - ends.keys():
        async with watching(harness.backend.jobs) as news:
            async for item in news:
                if isinstance(item, Observation) and item.phase is Phase.ENDED:
                    ends[item.name] = item
                if not names - ends.keys():
                    break
    return ends


async def cut_forever(proxy: FaultProxy, every: float) -> None:
    """Break, end and expire watches in turn."""
    while True:
        for harm in (proxy.break_streams, proxy.end_streams):
            await asyncio.sleep(every)
            harm()
        await asyncio.sleep(every)
        for kind in ("jobs", "pods"):
            proxy.refuse(f"watch {kind}", EXPIRED)
        proxy.end_streams()


async def test_two_watches_however_many_jobs_and_nothing_missed_when_they_are_cut(
    kubernetes: Kubernetes, namespace: Namespace, full_round: bool
) -> None:
    count, every = (1_000, 5.0) if full_round else (60, 1.0)
    async with opened(kubernetes, namespace) as harness:
        kit = Kit(harness)
        requests = tuple(kit.request() for _ in range(count))
        async with asyncio.TaskGroup() as tasks:
            cutting = tasks.create_task(cut_forever(harness.proxy, every), name="cut")
            for start in range(0, count, 100):
                group = LaunchGroup(GroupKind.SINGLE, requests[start : start + 100])
                await kit.jobs.launch(group)
            ends = await ends_of(harness, {one.name for one in requests})
            cutting.cancel()
        assert len(ends) == count
        assert all(one.exit and one.exit.code == 0 for one in ends.values())
        assert max(harness.proxy.most_streaming.values()) == 1
        assert set(harness.proxy.most_streaming) == {"watch jobs", "watch pods"}


async def test_watches_on_a_link_that_is_half_open_are_begun_anew(
    kubernetes: Kubernetes, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SILENCE", 3.0)
    async with opened(kubernetes, namespace) as harness:
        kit = Kit(harness)
        assert not await kit.owned()
        await until(lambda: harness.proxy.streaming.total() == 2)
        harness.proxy.freeze_streams()
        ref = await kit.launched()
        ends = await ends_of(harness, {ref.name})
        assert ends[ref.name].exit is not None
        assert harness.proxy.counts["watch jobs"] >= 2
        assert harness.proxy.most_streaming == {"watch jobs": 1, "watch pods": 1}


async def test_calls_do_not_grow_with_what_runs(
    kubernetes: Kubernetes, namespace: Namespace
) -> None:
    """One answer, whatever number of attempts is asked after."""
    async with opened(kubernetes, namespace) as harness:
        kit = Kit(harness)
        requests = tuple(kit.request() for _ in range(20))
        await kit.jobs.launch(LaunchGroup(GroupKind.SINGLE, requests))
        assert harness.proxy.counts["create jobs"] == len(requests)
        await ends_of(harness, {one.name for one in requests})
        harness.proxy.counts.clear()
        seen = await kit.jobs.observe([by_name(one.name) for one in requests])
        assert len(seen) == len(requests)
        assert sum(harness.proxy.counts.values()) <= 3, harness.proxy.counts


async def test_what_is_released_is_heard_of_and_not_asked_for_again_and_again(
    kubernetes: Kubernetes, namespace: Namespace
) -> None:
    """However long the cluster takes over it, and without a look at all Jobs for each."""
    async with opened(kubernetes, namespace) as harness:
        kit = Kit(harness)
        requests = tuple(kit.request() for _ in range(50))
        made = await kit.jobs.launch(LaunchGroup(GroupKind.SINGLE, requests))
        left = [Ref(one.name, 1, one.handle) for one in made if isinstance(one, Launched)]
        await ends_of(harness, {ref.name for ref in left})
        harness.proxy.counts.clear()
        while left:
            outcomes = await kit.jobs.release(left)
            released = {one.name for one in outcomes if isinstance(one, Released)}
            left = [ref for ref in left if ref.name not in released]
            await harness.sleep(0.02)
        counts = harness.proxy.counts
        assert counts["delete jobs"] <= 2 * len(requests), counts
        assert counts["get jobs"] <= 4 * len(requests), counts
        assert counts["list jobs"] <= 3, counts
