"""A thousand jobs as pods of a real control plane, whose nodes kwok plays."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
from hatoba_plugins.conformance.proxy import FaultProxy

JOBS = 1_000
NODES = 12
"""Of 110 pods each: all jobs have room at once."""
CREATES_AT_ONCE = 16
TIMES_FLOOR = 1.3
LAG_SECONDS = 2.0
RSS_MIB = 300.0
WATCHES = 2
"""Of a namespace: its Jobs and its pods."""
WITHIN = 1_200.0
Json = dict[str, Any]


class Site(NamedTuple):
    """A namespace, and a proxy of its own on the way to it."""

    namespace: Namespace
    proxy: FaultProxy
    access: str
    """A kubeconfig that leads through the proxy."""


async def kubernetes(work: Path) -> list[Figure]:
    """Jobs from the submit of all of them until the last has ended, and what following them costs.

    The floor creates the same Jobs in another namespace from one bare loop, over the same way to
    the API server, and waits until all are complete. Raises Skipped where there is no cluster.
    """
    cluster = await asyncio.to_thread(_cluster, work)
    global CL
    CL = cluster
    async with _site(cluster) as bare, _site(cluster) as ours:
        async with server(work, config=_config(ours)) as house, Wire(house) as wire:
            job = await _sample(ours, wire)
            floor = await _bare(bare, job)
            print(f"floor {floor:.1f} s", flush=True)
            seconds, lags = await _through(ours, wire)
            peak = memory(house.pid, "VmHWM")
        print(dict(ours.proxy.counts), dict(ours.proxy.most_streaming), dict(bare.proxy.counts))
        streams = ours.proxy.most_streaming.total()
    return [
        Measured("kubernetes_jobs", seconds, "s", floor).at_most_times_floor(TIMES_FLOOR),
        Measured("kubernetes_lag_p99", percentile(lags, 0.99), "s").at_most(LAG_SECONDS),
        Measured("kubernetes_rss", peak / MIB, "MiB").at_most(RSS_MIB),
        Measured("kubernetes_watches", streams, "watches").exactly(WATCHES),
    ]


# -- the cluster ----------------------------------------------------------------------------------


def _cluster(work: Path) -> Kubernetes:
    """The testbed's, which stays up. Raises Skipped where this machine cannot have it."""
    try:
        return Testbed(default_directory()).kubernetes(work)
    except pytest.skip.Exception as skipped:
        raise Skipped(str(skipped)) from None


@asynccontextmanager
async def _site(cluster: Kubernetes) -> AsyncIterator[Site]:
    """A namespace with the rights of rbac.yaml; nodes as well."""
    async with AsyncExitStack() as stack:
        for made in (cluster.namespace(), cluster.fake_nodes(NODES)):
            entered = await asyncio.to_thread(made.__enter__)
            stack.push_async_callback(asyncio.to_thread, made.__exit__, None, None, None)
            if isinstance(entered, Namespace):
                namespace = entered
            else:
                await asyncio.to_thread(
                    cluster.kubectl, "wait", "--for=condition=Ready", "node", *entered
                )
        authority = await asyncio.to_thread(authority_of, namespace.kubeconfig)
        proxy = await stack.enter_async_context(kube_proxy(cluster.server, authority))
        yield Site(
            namespace, proxy, await asyncio.to_thread(through, proxy.endpoint, namespace.kubeconfig)
        )


def _config(site: Site) -> str:
    options = {
        "kubeconfig": site.access,
        "namespace": site.namespace.name,
        "tolerations": list(FAKE),
        "node_selector": [f"{key}={value}" for key, value in FAKE.items()],
    }
    told = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    return (
        f'[defaults]\ntrain = "ml"\n[backends.ml]\ntype = "k8s-gpu"\n[backends.ml.options]\n{told}'
    )


# -- the floor ------------------------------------------------------------------------------------


async def _sample(site: Site, wire: Wire) -> Json:
    """The Job that the server makes of a first job, which ends."""
    made: list[Json] = []
    site.proxy.change("create jobs", lambda body: made.append(body) or body)
    job = await wire.submit(_spec())
    try:
        await wire.ended(job.name, 10)
    except TimeoutError:
        print(await wire.job(job.name), site.proxy.counts)
        print(
            await asyncio.to_thread(
                CL.kubectl, "-n", site.namespace.name, "get", "jobs,pods", "-o", "wide"
            )
        )
        print(await asyncio.to_thread(CL.kubectl, "-n", site.namespace.name, "describe", "pods"))
        print(wire._server.log_text()[-3000:])
        raise
    return made[0]


async def _bare(site: Site, sample: Json) -> float:
    """Seconds from the first create until all of these Jobs are complete."""
    path = f"/apis/batch/v1/namespaces/{site.namespace.name}/jobs"
    left = iter(range(JOBS))
    options = K8sOptions(kubeconfig=site.access, namespace=site.namespace.name)
    async with connected(options) as kube, asyncio.TaskGroup() as group:
        began = time.perf_counter()
        for number in range(CREATES_AT_ONCE):
            group.create_task(_create(kube, path, sample, left), name=f"create-{number}")
        complete: set[str] = set()
        async for event in _events(kube, path):
            if _is_complete(event["object"]):
                complete.add(event["object"]["metadata"]["name"])
            if len(complete) == JOBS:
                break
        return time.perf_counter() - began


async def _create(kube: Kube, path: str, sample: Json, left: Iterator[int]) -> None:
    for number in left:
        await kube.create(
            path, sample | {"metadata": sample["metadata"] | {"name": f"bare-{number}"}}
        )


def _is_complete(job: Json) -> bool:
    conditions = job["status"].get("conditions", ())
    return any(one["type"] == "Complete" and one["status"] == "True" for one in conditions)


async def _events(kube: Kube, path: str) -> AsyncIterator[Json]:
    """What becomes of all objects of a kind, without an end."""
    query = {"watch": "true", "timeoutSeconds": "3600"}
    async with kube.lines(path, query, None) as lines:
        async for line in lines:
            yield json.loads(line)


# -- ours -----------------------------------------------------------------------------------------


def _spec() -> job_pb2.JobSpec:
    spec = job_pb2.JobSpec(name="bench", command=["true"])
    spec.environment.image = "nothing.example/fake:1"
    return spec


async def _through(site: Site, wire: Wire) -> tuple[float, list[float]]:
    """Seconds from the submit until all have ended, and by how many each end was told later than a
    bare watch of the pods told it.
    """
    cursor = await position(wire)
    ended: dict[str, float] = {}
    finished: dict[str, float] = {}
    async with connected(K8sOptions(kubeconfig=site.namespace.kubeconfig)) as kube:
        watching = asyncio.create_task(_finished(kube, site, finished), name="pods")
        began = time.perf_counter()
        reply = await wire.once(batch(_spec(), 0, JOBS), job_pb2.SubmitJobsResponse, timeout=60.0)
        print(f"submitted after {time.perf_counter() - began:.2f}")
        request = job_pb2.WatchJobsRequest(cursor=cursor, jobs_only=True)
        async for message in wire.stream(request, job_pb2.WatchJobsResponse):
            if message.HasField("event") and message.event.job_terminal:
                assert message.event.job_to == common_pb2.JOB_STATE_SUCCEEDED, message.event
                ended[message.event.job] = time.perf_counter()
            if len(ended) == JOBS:
                break
        seconds = time.perf_counter() - began
        watching.cancel()
    lags = [ended[one.name] - finished.get(one.uid, 1e9) for one in reply.results]
    print(len(finished), sorted(lags)[::50], sorted(lags)[-1])
    return seconds, [max(0.0, one) for one in lags]


async def _finished(kube: Kube, site: Site, finished: dict[str, float]) -> None:
    path = f"/api/v1/namespaces/{site.namespace.name}/pods"
    async for event in _events(kube, path):
        pod = event["object"]
        if pod["status"].get("phase") == "Succeeded":
            finished.setdefault(pod["metadata"]["labels"][names.JOB], time.perf_counter())
