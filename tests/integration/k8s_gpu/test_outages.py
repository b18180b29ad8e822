"""Watches that break while a server's jobs run, and a cluster that is away for a while.

The jobs run on a real kubelet and have no runner: that they started, and how often, they say
themselves; how they ended is what the cluster tells the server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from kube_house import CONFIG, PATIENCE, KubeHouse
from kube_proxy import EXPIRED, kube_proxy
from kube_yard import StartCounter, authority_of, through
from server_process import configured, running_server
from testbed_fixtures import own_testbed
from testbed_kubernetes import Kubernetes

from hatoba.aio import AsyncClient, AsyncJob
from hatoba_plugins.conformance.proxy import FaultProxy

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1200)]


@dataclass
class Yard:
    """A house behind a proxy, and a count of what starts."""

    house: KubeHouse
    proxy: FaultProxy
    counter: StartCounter

    async def submit(self, name: str, script: str) -> AsyncJob:
        """A shell script that first says that it has started."""
        command = ["sh", "-c", f"{self.counter.says(name)}; {script}"]
        return await self.house.client.submit(
            command, name=name, code=None, image=self.house.cluster.busybox, cpus=0.01, memory="8Mi"
        )

    async def submit_all(self, count: int, script: str) -> dict[str, AsyncJob]:
        """So many of them, by name."""
        names = [f"job-{number}" for number in range(count)]
        return {name: await self.submit(name, script) for name in names}

    async def each_ran_once(self, jobs: dict[str, AsyncJob]) -> None:
        """All succeed by one attempt that started once, and nothing stays behind."""
        for job in jobs.values():
            await job.wait(PATIENCE)
            assert job.state == "SUCCEEDED", job.record
            assert len(await self.house.attempts(job)) == 1
        assert self.counter.starts == dict.fromkeys(jobs, 1)
        await self.house.until_nothing_is_left()


@asynccontextmanager
async def yard(cluster: Kubernetes, root: Path) -> AsyncIterator[Yard]:
    """A server that reaches this cluster through a proxy, with the rights of rbac.yaml."""
    with cluster.namespace() as namespace:
        authority = await asyncio.to_thread(authority_of, namespace.kubeconfig)
        async with (
            StartCounter.running(cluster.gateway) as counter,
            kube_proxy(cluster.server, authority) as proxy,
        ):
            access = await asyncio.to_thread(through, proxy.endpoint, namespace.kubeconfig)
            options = {"kubeconfig": access, "namespace": namespace.name, "image": cluster.busybox}
            told = ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
            address = f"{cluster.gateway}:0"
            config = CONFIG.format(address=address, advertise=address, options=told)
            data = await asyncio.to_thread(configured, root / "data", config)
            async with running_server(data, worker=False) as server:
                token, trusted = str(data / "admin.token"), str(data / "tls" / "ca.pem")
                async with AsyncClient(server.address, token_file=token, ca_file=trusted) as client:
                    house = KubeHouse(server, client, cluster, namespace, root)
                    yield Yard(house, proxy, counter)


async def cut_forever(proxy: FaultProxy, every: float) -> None:
    """Break, end and expire all watches in turn."""
    while True:
        for harm in (proxy.break_streams, proxy.end_streams):
            await asyncio.sleep(every)
            harm()
        await asyncio.sleep(every)
        for kind in ("jobs", "pods"):
            proxy.refuse(f"watch {kind}", EXPIRED)
        proxy.end_streams()


async def test_jobs_run_while_watches_are_cut_and_nothing_is_missed(
    kubernetes: Kubernetes, tmp_path: Path, full_round: bool
) -> None:
    # In a full round the last of them ends five minutes after the first began.
    count, every, lasts = (200, 5.0, 210) if full_round else (10, 1.0, 3)
    async with yard(kubernetes, tmp_path) as here, asyncio.TaskGroup() as tasks:
        cutting = tasks.create_task(cut_forever(here.proxy, every), name="cut")
        await here.each_ran_once(await here.submit_all(count, f"sleep {lasts}"))
        cutting.cancel()
        assert here.proxy.counts["watch pods"] > 3
        assert set(here.proxy.most_streaming.values()) == {1}


@pytest.fixture
def own_cluster(bed_place: Path, tmp_path: Path) -> Iterator[Kubernetes]:
    """One that a test may break."""
    with own_testbed(bed_place) as bed:
        yield bed.kubernetes(tmp_path)


async def test_a_cluster_that_was_away_comes_back_and_nothing_is_lost_or_run_again(
    own_cluster: Kubernetes, tmp_path: Path, full_round: bool
) -> None:
    """Its API server is restarted, and stands there without its store for a while; jobs end
    meanwhile, and one is asked for.
    """
    count, seconds = (50, 60.0) if full_round else (6, 10.0)
    async with yard(own_cluster, tmp_path) as here:
        jobs = await here.submit_all(count, "sleep 5")
        for name in jobs:
            await here.counter.until_started(name)
        await asyncio.to_thread(own_cluster.stop, "kube-apiserver")
        await asyncio.to_thread(own_cluster.start, "kube-apiserver")
        await asyncio.to_thread(own_cluster.stop, "etcd")
        jobs["late"] = await here.submit("late", "exit 0")
        await asyncio.sleep(seconds)
        assert here.counter.starts["late"] == 0
        await asyncio.to_thread(own_cluster.start, "etcd")
        await here.each_ran_once(jobs)
