"""A thousand jobs as pods of a real control plane, whose nodes kwok plays."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from bed_place import default_directory
from bench_house import batch, position, server
from bench_idle import MIB, memory
from bench_report import Figure, Measured, Skipped
from bench_statistics import percentile
from kube_proxy import kube_proxy
from kube_yard import authority_of, through
from testbed_fixtures import Testbed
from testbed_kubernetes import FAKE, Kubernetes, Namespace
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2
from hatoba_plugins.backends.k8s_gpu import names
from hatoba_plugins.backends.k8s_gpu.client import Kube, connected
from hatoba_plugins.backends.k8s_gpu.options import K8sOptions
from hatoba_plugins.conformance.proxy import FaultProxy, Refusal

JOBS = 1_000
NODES = 12
"""Of 110 pods each: all jobs have room at once."""
CREATES_AT_ONCE = 16
"""Of the floor, as many as the backend makes."""
TIMES_FLOOR = 1.3
LAG_SECONDS = 2.0
SEEN_SHARE = 0.99
"""Of the pods that the bare watch has to have seen when the server has told all ends."""
RSS_MIB = 300.0
WATCHES = 2
"""Of a namespace: its Jobs and its pods."""
STREAMED_SECONDS = 3_600
FIRST_WITHIN = 120.0
NO_LOG = Refusal(200, "")
"""What a kubelet answers whose pod wrote nothing; kwok has none that could."""
T = TypeVar("T")
Json = dict[str, Any]


class Site(NamedTuple):
    """A namespace with the rights of rbac.yaml, and a proxy of its own on the way to it."""

    namespace: Namespace
    proxy: FaultProxy
    access: str
    """A kubeconfig that leads through the proxy."""

    def path(self, group: str, kind: str) -> str:
        """Where objects of a kind are."""
        return f"{group}/namespaces/{self.namespace.name}/{kind}"


@dataclass
class Ends:
    """When each job was known to have ended, as `time.perf_counter()` says."""

    by_cluster: dict[str, float] = field(default_factory=dict)
    """By uid: a bare watch saw its pod succeed."""
    by_server: dict[str, float] = field(default_factory=dict)
    """By name: the server's watch told its end."""

    def lags(self, jobs: job_pb2.SubmitJobsResponse) -> list[float]:
        """By how many seconds the server told each end later than the cluster; 0: not later."""
        return [
            max(0.0, self.by_server[one.name] - self.by_cluster[one.uid])
            for one in jobs.results
            if one.uid in self.by_cluster
        ]


async def kubernetes(work: Path) -> list[Figure]:
    """Jobs without a runner from their submit until the last has ended, and what following costs.

    The floor creates the same Jobs in another namespace from one bare loop, over the same way to
    the API server, and waits until all are complete; nobody removes them before all is measured.
    The mean of two, one before and one after. Raises Skipped where this machine cannot have it.
    """
    cluster = await asyncio.to_thread(_cluster, work)
    async with (
        _nodes(cluster),
        _site(cluster) as one,
        _site(cluster) as two,
        _site(cluster) as ours,
    ):
        async with server(work, config=_config(ours)) as house, Wire(house) as wire:
            sample = await _sample(ours, wire)
            floors = [await _bare(one, sample)]
            seconds, lags = await _through(ours, wire)
            peak = memory(house.pid, "VmHWM")
            print(f"kubernetes: {seconds:.1f} s after a bare loop's {floors[0]:.1f} s", flush=True)
            floors.append(await _bare(two, sample))
        watches = ours.proxy.most_streaming.total()
        print(f"kubernetes: asked of the API server {dict(ours.proxy.counts)}")
    if len(lags) < SEEN_SHARE * JOBS:
        raise RuntimeError(f"of {JOBS} pods {len(lags)} were seen to succeed")
    floor = statistics.mean(floors)
    return [
        Measured("kubernetes_jobs", seconds, "s", floor).at_most_times_floor(TIMES_FLOOR),
        Measured("kubernetes_lag_p99", percentile(lags, 0.99), "s").at_most(LAG_SECONDS),
        Measured("kubernetes_rss", peak / MIB, "MiB").at_most(RSS_MIB),
        Measured("kubernetes_watches", watches, "watches").exactly(WATCHES),
    ]


# -- the cluster ----------------------------------------------------------------------------------


def _cluster(work: Path) -> Kubernetes:
    """The testbed's, which stays up as after tests. Raises Skipped."""
    try:
        return Testbed(default_directory()).kubernetes(work)
    except pytest.skip.Exception as skipped:
        raise Skipped(str(skipped)) from None


async def _entered(stack: AsyncExitStack, made: AbstractContextManager[T]) -> T:
    """What a blocking context manager gives; it is left with the stack."""
    entered = await asyncio.to_thread(made.__enter__)
    stack.push_async_callback(asyncio.to_thread, made.__exit__, None, None, None)
    return entered


@asynccontextmanager
async def _nodes(cluster: Kubernetes) -> AsyncIterator[None]:
    """Fake nodes that are ready: a server looks at them when it starts, and then seldom."""
    async with AsyncExitStack() as stack:
        nodes = await _entered(stack, cluster.fake_nodes(NODES))
        ready = ("--for=condition=Ready", "--timeout=120s", "node")
        await asyncio.to_thread(cluster.kubectl, "wait", *ready, *nodes)
        yield


@asynccontextmanager
async def _site(cluster: Kubernetes) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        namespace = await _entered(stack, cluster.namespace())
        authority = await asyncio.to_thread(authority_of, namespace.kubeconfig)
        proxy = await stack.enter_async_context(kube_proxy(cluster.server, authority))
        access = await asyncio.to_thread(through, proxy.endpoint, namespace.kubeconfig)
        yield Site(namespace, proxy, access)


def _config(site: Site) -> str:
    options = {
        "kubeconfig": site.access,
        "namespace": site.namespace.name,
        "tolerations": list(FAKE),
        "node_selector": [f"{label}={value}" for label, value in FAKE.items()],
    }
    told = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    head = '[defaults]\ntrain = "ml"\n[backends.ml]\ntype = "k8s-gpu"\n'
    return f"{head}[backends.ml.options]\n{told}"


async def _events(kube: Kube, path: str) -> AsyncIterator[Json]:
    """All objects of a kind, each whenever it changes."""
    query = {"watch": "true", "timeoutSeconds": str(STREAMED_SECONDS)}
    async with kube.lines(path, query, None) as lines:
        async for line in lines:
            yield json.loads(line)["object"]


# -- the floor ------------------------------------------------------------------------------------


async def _sample(site: Site, wire: Wire) -> Json:
    """The Job that the server makes of a first job; returns once that has ended."""
    made: list[Json] = []

    def kept(body: Json) -> Json:
        made.append(body)
        return body

    site.proxy.change("create jobs", kept)
    for _ in range(2 * JOBS):
        site.proxy.refuse("get log", NO_LOG)
    job = await wire.submit(_spec())
    await wire.ended(job.name, FIRST_WITHIN)
    return made[0]


async def _bare(site: Site, sample: Json) -> float:
    """Seconds from the first create until all of these Jobs are complete."""
    path, left = site.path("/apis/batch/v1", "jobs"), iter(range(JOBS))
    complete: set[str] = set()
    async with connected(K8sOptions(kubeconfig=site.access)) as kube, asyncio.TaskGroup() as group:
        began = time.perf_counter()
        for number in range(CREATES_AT_ONCE):
            group.create_task(_create(kube, path, sample, left), name=f"create-{number}")
        async for job in _events(kube, path):
            if _is_complete(job):
                complete.add(job["metadata"]["name"])
            if len(complete) == JOBS:
                break
        return time.perf_counter() - began


async def _create(kube: Kube, path: str, sample: Json, left: Iterator[int]) -> None:
    for number in left:
        named = sample["metadata"] | {"name": f"bare-{number}"}
        await kube.create(path, sample | {"metadata": named})


def _is_complete(job: Json) -> bool:
    conditions = job.get("status", {}).get("conditions", ())
    return any(one["type"] == "Complete" and one["status"] == "True" for one in conditions)


# -- ours -----------------------------------------------------------------------------------------


def _spec() -> job_pb2.JobSpec:
    spec = job_pb2.JobSpec(name="bench", command=["true"])
    spec.environment.image = "nothing.example/fake:1"
    return spec


async def _through(site: Site, wire: Wire) -> tuple[float, list[float]]:
    """Seconds from the submit until all have ended, and by how many each end was told later than
    a bare watch of the pods, which does not go through the proxy, saw it.
    """
    ends, cursor = Ends(), await position(wire)
    request = batch(_spec(), 0, JOBS)
    direct = K8sOptions(kubeconfig=site.namespace.kubeconfig)
    async with connected(direct) as kube, asyncio.TaskGroup() as group:
        watching = group.create_task(_see(kube, site, ends), name="pods")
        began = time.perf_counter()
        jobs = await wire.once(request, job_pb2.SubmitJobsResponse, timeout=60.0)
        await _hear(wire, cursor, ends)
        seconds = time.perf_counter() - began
        watching.cancel()
    return seconds, ends.lags(jobs)


async def _see(kube: Kube, site: Site, ends: Ends) -> None:
    """Note pods that succeed."""
    async for pod in _events(kube, site.path("/api/v1", "pods")):
        if pod["status"].get("phase") == "Succeeded":
            uid = pod["metadata"]["labels"][names.JOB]
            ends.by_cluster.setdefault(uid, time.perf_counter())


async def _hear(wire: Wire, cursor: str, ends: Ends) -> None:
    """Note ends that the server tells, until all have ended. Raises RuntimeError unless all
    succeeded.
    """
    request = job_pb2.WatchJobsRequest(cursor=cursor, jobs_only=True)
    async for message in wire.stream(request, job_pb2.WatchJobsResponse):
        event = message.event
        if event.job_terminal:
            if event.job_to != common_pb2.JOB_STATE_SUCCEEDED:
                raise RuntimeError(f"it did not succeed: {event}")
            ends.by_server[event.job] = time.perf_counter()
        if len(ends.by_server) == JOBS:
            return
    raise RuntimeError(f"the watch ended after {len(ends.by_server)} of {JOBS} jobs")
